"""What replies of the labeller and the namer are accepted, and how the others are called."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.annotation.prompts import ShownTrace, read_payload
from mralign_core.annotation.replies import ReplyProblem
from mralign_core.induction.prompts import name_messages, open_label_messages
from mralign_core.induction.replies import Named, normalize, parse_names, parse_open_labels


def labelled(*labels):
    return json.dumps({"segments": [{"index": n, "labels": list(names)} for n, names in enumerate(labels)]})


def named(**fields):
    entry = {"cluster": 0, "name": "fact_check", "definition": "checks", "macro_strategy": "control"} | fields
    return json.dumps({"clusters": [entry]})


def test_labels_are_normalised_and_in_the_order_of_the_segments():
    reply = {"segments": [{"index": 1, "labels": []}, {"index": 0, "labels": ["Re-check_Claim!", "recall  FACT"]}]}
    assert parse_open_labels(json.dumps(reply), "stop", 2) == [["re check claim", "recall fact"], []]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("I recall facts.", "not_json"),
        ("", "empty"),
        ('{"segments": []}', "missing_segment"),
        (labelled(["a b"], ["a b"]), "index_out_of_range"),
        (json.dumps({"segments": [{"index": 0, "labels": [name]} for name in "ab"]}), "overlapping_steps"),
        (labelled(["a", "b", "c"]), "too_many_labels"),
        (labelled(["check it", "Check it!"]), "repeated_label"),
        (labelled(["?!"]), "wrong_form"),
        (labelled(["one two three four five six seven"]), "wrong_form"),
        (labelled(["w" * 81]), "wrong_form"),
        (labelled([7]), "wrong_form"),
        (json.dumps({"segments": [{"index": "first", "labels": []}]}), "wrong_form"),
        (json.dumps({"segments": [{"index": [0, 1], "labels": []}]}), "wrong_form"),
        (json.dumps({"segments": [{"labels": ["a b"]}]}), "wrong_form"),
        (json.dumps({"segments": "all"}), "wrong_form"),
        (labelled(["a b"])[:-3], "not_json"),
        (labelled(["a b"]) + labelled(["c d"]), "ambiguous"),
    ],
)
def test_a_labellers_reply_is_used_whole_or_not_at_all(text, kind):
    with pytest.raises(ReplyProblem) as caught:
        parse_open_labels(text, "stop", 1)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    "text",
    [
        f"<think>First {labelled(['x'], [])}?</think>\nSo:\n```JSON\n{labelled(['check it'], ['a', 'b'])}\n```\nDone.",
        "{'segments': [{'index': '0', 'labels': ['Check it.'], 'why': None}, {'index': 1, 'labels': 'a, b'},]}",
        json.dumps([{"index": 1, "label": "check it"}, {"index": 2, "labels": [{"label": "a"}, {"label": "b"}]}]),
        '{"index": 0, "labels": ["check_it"]}\n{"index": 1, "labels": ["a", "b"]}\n',
        json.dumps({"segments": {"0": ["check it"], "1": ["a", "b"]}}),
        json.dumps(labelled(["check it"], ["a", "b"])),
    ],
)
def test_a_labellers_reply_is_read_whatever_its_framing(text):
    assert parse_open_labels(text, "stop", 2) == [["check it"], ["a", "b"]]


@pytest.mark.parametrize(
    "fields",
    [{"name": "Fact Check"}, {"name": "fact-check"}, {"cluster": "0"}, {"cluster": "Cluster 0", "size": 4}],
)
def test_a_namers_reply_is_read_whatever_its_spelling(fields):
    assert parse_names(f"Sure!\n{named(**fields)}", "stop", 1) == [Named("fact_check", "checks", "control")]


@pytest.mark.parametrize(("reason", "kind"), [("length", "truncated"), ("content_filter", "refused")])
def test_a_reply_that_was_cut_or_refused_is_not_read(reason, kind):
    with pytest.raises(ReplyProblem) as caught:
        parse_open_labels(labelled(["a b"]), reason, 1)
    assert caught.value.kind == kind


def test_names_are_read():
    fenced = f"```json\n{named(definition=' checks a  claim')}\n```"
    assert parse_names(fenced, "stop", 1) == [Named("fact_check", "checks a claim", "control")]


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "2nd_check"},
        {"name": "x" * 41},
        {"name": ""},
        {"name": "Unlabelled"},
        {"definition": " "},
        {"definition": "x" * 301},
        {"macro_strategy": ""},
        {"macro_strategy": "x" * 61},
        {"cluster": 1},
        {"cluster": True},
    ],
)
def test_a_namers_reply_must_fit_a_label_set_file(fields):
    with pytest.raises(ReplyProblem):
        parse_names(named(**fields), "stop", 1)


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing_more(phrase):
    assert normalize(normalize(phrase)) == normalize(phrase)


@given(st.lists(st.text(max_size=80), min_size=1, max_size=4), st.text(max_size=40))
def test_any_text_travels_whole_inside_its_markers(texts, question):
    content = open_label_messages(ShownTrace(question, [], texts))[1]["content"]
    payload = read_payload(open_label_messages(ShownTrace(question, [], texts)))
    assert content.count("</data>") == 1 and content.encode()
    assert [part["text"] for part in payload["segments"]] == texts and payload["question"] == question


def test_instructions_are_the_same_for_every_trace_and_gold_answers_are_not_shown():
    one, other = (open_label_messages(ShownTrace(q, ["SECRET"], ["text"])) for q in ("who?", "{why} </data>"))
    assert one[0] == other[0] and "SECRET" not in one[1]["content"]


def test_the_namer_sees_the_most_frequent_phrases_with_their_counts():
    messages = name_messages([{f"phrase {n}": 100 - n for n in range(50)}, {"other": 3}])
    first, second = read_payload(messages)["clusters"]
    assert first["phrases"][0] == {"phrase": "phrase 0", "count": 100} and len(first["phrases"]) == 30
    assert second == {"cluster": 1, "phrases": [{"phrase": "other", "count": 3}]}
