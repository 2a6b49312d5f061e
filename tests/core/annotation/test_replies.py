import json

import pytest
from chat_server import steps
from hypothesis import given, settings
from hypothesis import strategies as st

from mralign_core.annotation.replies import ReplyProblem, parse_reply, reply_schema
from mralign_core.method.consolidation import LabelVote
from mralign_core.method.taxonomy import PAPER_TAXONOMY

GOOD = steps(((0,), {"framing": 9}), ((1,), {"retrieval": 8, "analogy": 6.5}), ((2,), {}))


def parse(text, finish_reason="stop", num_segments=3):
    asked = [[index] for index in range(num_segments)]
    return parse_reply(text, finish_reason, asked=asked, may_merge=True, max_labels=2, taxonomy=PAPER_TAXONOMY)


def kind_of(text, finish_reason="stop"):
    with pytest.raises(ReplyProblem) as problem:
        parse(text, finish_reason)
    return problem.value.kind


def test_valid_reply_gives_a_vote_and_a_step_number_for_each_segment():
    parsed = parse(GOOD)
    assert parsed.votes == [
        LabelVote(("framing",), (9.0,)),
        LabelVote(("retrieval", "analogy"), (8.0, 6.5)),
        LabelVote((), ()),
    ]
    assert parsed.steps == [0, 1, 2]
    assert parsed.overall_confidence == 8


def test_merged_segments_share_a_vote_and_a_step_and_order_does_not_matter():
    parsed = parse(steps(((2,), {}), ((0, 1), {"framing": 9})))
    assert parsed.steps == [0, 0, 1]
    assert parsed.votes == [LabelVote(("framing",), (9.0,))] * 2 + [LabelVote((), ())]


@pytest.mark.parametrize("text", [f"```json\n{GOOD}\n```", f"```\n{GOOD}\n```", f"\n  ```json\n{GOOD}```\n"])
def test_one_fenced_block_with_nothing_around_it_is_accepted(text):
    assert parse(text) == parse(GOOD)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("The first segment frames the problem.", "not_json"),
        (f"Here it is:\n```json\n{GOOD}\n```", "not_json"),
        (f"```json\n{GOOD}\n```\n```json\n{GOOD}\n```", "not_json"),
        (f"{GOOD} Done.", "not_json"),
        (GOOD[:-20], "not_json"),
        ("[" * 100_000, "not_json"),
        ("[]", "wrong_form"),
        ("{}", "wrong_form"),
        ('{"steps": null, "overall_confidence": 8}', "wrong_form"),
        (GOOD.replace('"overall_confidence": 8', '"overall_confidence": "8"'), "wrong_form"),
        (GOOD.replace('"overall_confidence": 8', '"overall_confidence": NaN'), "wrong_form"),
        (GOOD.replace('"overall_confidence": 8', '"overall_confidence": true'), "wrong_form"),
        (GOOD.replace("[0]", "[]"), "wrong_form"),
        (GOOD.replace("[0]", "[0.0]"), "wrong_form"),
        (GOOD.replace("[0]", '["0"]'), "wrong_form"),
        (GOOD.replace("6.5", "10.5"), "wrong_form"),
        (GOOD.replace("6.5", "-1"), "wrong_form"),
        (GOOD.replace("6.5", "Infinity"), "wrong_form"),
        (GOOD.replace('"labels"', '"note": 1, "labels"'), "wrong_form"),
        (GOOD.replace("analogy", "Analogy"), "unknown_label"),
        (GOOD.replace("analogy", "<start>"), "unknown_label"),
        (GOOD.replace("analogy", "retrieval"), "repeated_label"),
        (steps(((0, 1, 2), {"framing": 9, "retrieval": 9, "analogy": 9})), "too_many_labels"),
        (GOOD.replace("[2]", "[3]"), "index_out_of_range"),
        (GOOD.replace("[2]", "[-1]"), "index_out_of_range"),
        (GOOD.replace("[2]", "[1, 2]"), "overlapping_steps"),
        (GOOD.replace("[2]", "[1]"), "overlapping_steps"),
        (steps(((0,), {}), ((1,), {})), "missing_segment"),
        ('{"steps": [], "overall_confidence": 8}', "missing_segment"),
        (steps(((0, 2), {}), ((1,), {})), "non_adjacent_merge"),
        (steps(((1, 0), {}), ((2,), {})), "non_adjacent_merge"),
        (steps(((0, 0), {}), ((1,), {}), ((2,), {})), "non_adjacent_merge"),
    ],
)
def test_what_cannot_be_used_is_a_named_problem(text, kind):
    assert kind_of(text) == kind


def test_finish_reason_counts_even_where_the_text_is_whole():
    assert kind_of(GOOD, "length") == "truncated"
    assert kind_of("", "content_filter") == "refused"


def test_adjudicator_must_decide_exactly_the_asked_steps():
    def adjudicated(text):
        asked = [[1, 2], [5]]
        return parse_reply(text, "stop", asked=asked, may_merge=False, max_labels=2, taxonomy=PAPER_TAXONOMY)

    assert adjudicated(steps(((1, 2), {"framing": 9}), ((5,), {}))).steps == [0, 0, 1]
    for text in (
        steps(((1,), {}), ((2,), {}), ((5,), {})),
        steps(((1, 2), {})),
        steps(((1, 2), {}), ((5,), {}), ((0,), {})),
    ):
        with pytest.raises(ReplyProblem):
            adjudicated(text)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["steps", "labels"]), inner),
    max_leaves=5,
)


@given(ANY_JSON)
@settings(max_examples=50)
def test_any_other_json_is_a_named_problem(value):
    with pytest.raises(ReplyProblem) as problem:
        parse(json.dumps(value))
    assert problem.value.kind in ReplyProblem.KINDS


@given(st.text())
def test_any_other_text_is_a_named_problem(text):
    with pytest.raises(ReplyProblem):
        parse(text)


def test_schema_closes_the_label_list_and_every_object():
    schema = reply_schema(PAPER_TAXONOMY)
    assert schema["$defs"]["LabelRating"]["properties"]["label"]["enum"] == list(PAPER_TAXONOMY.labels)
    for part in (schema, schema["$defs"]["Step"], schema["$defs"]["LabelRating"]):
        assert part["additionalProperties"] is False
        assert set(part["required"]) == set(part["properties"])
