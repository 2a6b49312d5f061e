"""Replies of judges in the forms that models give them."""

import json

import pytest

from mralign_core.judging.replies import parse_verdict, verdict_schema
from mralign_core.llm.json_reply import ReplyProblem

WHOLE = {"truthful_reason": "It is so.", "truthful": True, "informative_reason": "It answers.", "informative": False}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(WHOLE),
        f"<think>Is it true?</think>```json\n{json.dumps(WHOLE)}\n```",
        json.dumps({"judgement": WHOLE}),
        json.dumps([WHOLE]),
        json.dumps(WHOLE | {"truthful": "Yes", "informative": "false."}),
        json.dumps({"Truthful": True, "Informative": False}),
        f"{json.dumps(WHOLE)}\n{json.dumps(WHOLE | {'truthful_reason': 'Put otherwise.'})}",
    ],
)
def test_framing_is_read_as_a_person_would(text):
    verdict = parse_verdict(text, "stop", "truthful")
    assert (verdict.truthful, verdict.informative, verdict.grade) == (True, False, None)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("The answer is truthful.", "not_json"),
        ("", "empty"),
        (json.dumps(WHOLE)[:-9], "not_json"),
        (json.dumps(WHOLE | {"truthful": "partly"}), "wrong_form"),
        (json.dumps({**WHOLE, "truthful": 1}), "wrong_form"),
        (json.dumps({"truthful": True, "truthful_reason": "x"}), "wrong_form"),
        (f"{json.dumps(WHOLE)} or {json.dumps(WHOLE | {'truthful': False})}", "ambiguous"),
        (json.dumps([WHOLE, WHOLE | {"informative": True}]), "ambiguous"),
    ],
)
def test_a_reply_that_gives_no_plain_verdict_is_none(text, kind):
    with pytest.raises(ReplyProblem) as raised:
        parse_verdict(text, "stop", "truthful")
    assert raised.value.kind == kind


@pytest.mark.parametrize("grade", ["NOT_ATTEMPTED", "not attempted", "Not-Attempted."])
def test_a_grade_is_known_however_it_is_spelled(grade):
    assert parse_verdict(json.dumps({"reason": "r", "grade": grade}), "stop", "grade").grade == "not_attempted"


def test_schemas_ask_for_the_reason_before_the_verdict_and_for_no_other_grade():
    assert list(verdict_schema("truthful")["properties"]) == list(WHOLE)
    schema = verdict_schema("grade")["properties"]
    assert list(schema) == ["reason", "grade"]
    assert schema["grade"]["enum"] == ["CORRECT", "INCORRECT", "NOT_ATTEMPTED"]
