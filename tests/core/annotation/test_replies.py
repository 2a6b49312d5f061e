import contextlib
import json
import re
import time
from itertools import pairwise
from typing import Any

import jsonschema
import pytest
from chat_server import steps
from hypothesis import given, settings
from hypothesis import strategies as st
from reply_forms import GOOD, INDENTED, NOT_READ, OTHER, READ, relabelled

from mralign_core.annotation.replies import ReplyProblem, parse_reply, reply_schema, reply_schema_of
from mralign_core.method.consolidation import LabelVote
from mralign_core.method.taxonomy import PAPER_TAXONOMY, Taxonomy

VOTES = [
    LabelVote(("framing",), (9.0,)),
    LabelVote(("self_verification", "retrieval"), (8.0, 6.5)),
    LabelVote((), ()),
]
"""What all of ``READ`` say."""


def parse(text, finish_reason="stop", num_segments=3):
    asked = [[index] for index in range(num_segments)]
    return parse_reply(text, finish_reason, asked=asked, may_merge=True, max_labels=2, taxonomy=PAPER_TAXONOMY)


def kind_of(text, finish_reason="stop"):
    with pytest.raises(ReplyProblem) as problem:
        parse(text, finish_reason)
    return problem.value.kind


def test_valid_reply_gives_a_vote_and_a_step_number_for_each_segment():
    parsed = parse(GOOD)
    assert parsed.votes == VOTES
    assert parsed.steps == [0, 1, 2]
    assert parsed.overall_confidence == 8


def test_merged_segments_share_a_vote_and_a_step_and_order_does_not_matter():
    parsed = parse(steps(((2,), {}), ((0, 1), {"framing": 9})))
    assert parsed.steps == [0, 0, 1]
    assert parsed.votes == [LabelVote(("framing",), (9.0,))] * 2 + [LabelVote((), ())]


@pytest.mark.parametrize("text", READ.values(), ids=READ)
def test_a_reply_is_read_whatever_its_framing(text):
    parsed = parse(text)
    assert (parsed.votes, parsed.steps) == (VOTES, [0, 1, 2])
    assert parsed.overall_confidence in (8, None)


@pytest.mark.parametrize(("text", "kind"), NOT_READ.values(), ids=NOT_READ)
def test_what_can_not_be_used_is_a_named_problem(text, kind):
    assert kind_of(text) == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[]", "wrong_form"),
        ("{}", "wrong_form"),
        (GOOD.replace("[0]", "[]"), "wrong_form"),
        (steps(((0, 1, 2), {"framing": 9, "retrieval": 9, "analogy": 9})), "too_many_labels"),
        (GOOD.replace("[2]", "[1, 2]"), "overlapping_steps"),
        (GOOD.replace("[2]", "[1]"), "overlapping_steps"),
        (steps(((0,), {}), ((1,), {})), "missing_segment"),
        (steps(((0, 2), {}), ((1,), {})), "non_adjacent_merge"),
    ],
)
def test_steps_must_cover_the_segments(text, kind):
    assert kind_of(text) == kind


@pytest.mark.parametrize("form", [[1, 0, 1], "0, 1", "0-1", ["0", 1], "segments 0 to 1", [[0, 1]], "[0 and 1]"])
def test_the_segments_of_a_step_are_a_set_in_any_form(form):
    text = json.dumps({"steps": [{"thinking_step": form, "labels": []}, {"thinking_step": 2, "labels": []}]})
    assert parse(text).steps == [0, 0, 1]


@pytest.mark.parametrize("zero", [0, 0.0, "0", [0], {"confidence": 0}])
def test_a_label_that_a_mapping_rates_0_is_none_of_the_steps(zero):
    labels = [{"framing": zero, "analogy": 9}, {"framing": zero}, [{"label": "framing", "confidence": 0}]]
    parsed = parse(relabelled(*labels, overall_confidence=8))
    assert parsed.votes == [LabelVote(("analogy",), (9.0,)), LabelVote((), ()), LabelVote(("framing",), (0.0,))]


def test_one_segment_numbered_1_is_not_taken_for_segment_0():
    with pytest.raises(ReplyProblem, match="index_out_of_range"):
        parse(steps(((1,), {"framing": 9})), num_segments=1)


def test_who_counts_from_1_may_merge_too():
    assert parse(steps(((1, 2), {"framing": 9}), ((3,), {}))) == parse(steps(((0, 1), {"framing": 9}), ((2,), {})))


def test_labels_of_a_set_that_only_marks_tell_apart_must_be_spelled_exactly():
    close = Taxonomy(("re_use", "reuse"), {"re_use": "x", "reuse": "x"}, {"re_use": "y", "reuse": "y"})
    options: dict[str, Any] = {"asked": [[0]], "may_merge": True, "max_labels": 2, "taxonomy": close}
    assert parse_reply(steps(((0,), {"reuse": 9})), "stop", **options).votes == [LabelVote(("reuse",), (9.0,))]
    with pytest.raises(ReplyProblem, match="unknown_label"):
        parse_reply(steps(((0,), {"Re-use": 9})), "stop", **options)


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


RATINGS = st.dictionaries(st.sampled_from(PAPER_TAXONOMY.labels), st.sampled_from([0, 3.5, 7, 10]), max_size=2)
PROSE = st.text(st.sampled_from("Here it is, so: `~#*'\"<>()!?.\n-– ’“”{}[]0123"), max_size=40)
FRAMES = (
    lambda text: f"```json\n{text}\n```",
    lambda text: f"~~~\n{text}",
    lambda text: f"<think>Let me see.</think>{text}",
    lambda text: f"Or {OTHER}? No.</think>\n{text}",
    lambda text: f'{{"result": {text}, "done": true}}',
    lambda text: f"[{text},]",
    lambda text: json.dumps(text),
    lambda text: text.replace("steps", "Steps").replace("thinking_step", "thinkingStep"),
    lambda text: text.replace("_", "-"),
    lambda text: text.replace("}]", "},\n]").replace(", ", " ,\u00a0"),
    lambda text: text.replace('"', "'"),
)


@st.composite
def framed_replies(draw):
    """A reply of any labels, merges and order, its text, and that text in some frames."""
    cuts = draw(st.sets(st.integers(1, 5)))
    groups = [list(range(a, b)) for a, b in pairwise([0, *sorted(cuts), 6])]
    plain = steps(*draw(st.permutations([(group, draw(RATINGS)) for group in groups])))
    text = plain
    for frame in draw(st.lists(st.sampled_from(FRAMES), max_size=3)):
        text = frame(text)
    return plain, text


@given(framed_replies(), PROSE, PROSE)
@settings(max_examples=300)
def test_the_same_votes_in_any_frame(reply, before, after):
    """Prose around it may make a reply unreadable, where it holds brackets or quotes, but never say anything else."""
    plain, text = reply
    assert parse(text, num_segments=6)._replace(overall_confidence=8) == parse(plain, num_segments=6)
    with contextlib.suppress(ReplyProblem):
        assert parse(f"{before}\n{text}\n{after}", num_segments=6).votes == parse(plain, num_segments=6).votes
    words = [re.sub(r"[][{}'\"<“”’]", "", prose) for prose in (before, after)]
    assert parse("\n".join([words[0], text, words[1]]), num_segments=6).votes == parse(plain, num_segments=6).votes


@given(st.sampled_from(sorted(READ)), st.data())
@settings(max_examples=500)
def test_a_mutilated_reply_says_the_same_or_nothing(name, data):
    """Cut, or with a character lost or a mark added: labels are right, or there is a problem.

    What is cut right after a draft, in thinking that then is never closed, can't be told from an answer.
    """
    text = READ[name]
    place = data.draw(st.integers(0, len(text) - 1))
    how = data.draw(st.sampled_from(["lose", "add", *([] if OTHER in text else ["cut"])]))
    extra = data.draw(st.sampled_from("{}[]\"',:/\\ \n`<")) if how == "add" else ""
    mutilated = text[:place] if how == "cut" else text[:place] + extra + text[place + (how == "lose") :]
    try:
        votes = parse(mutilated).votes
    except ReplyProblem:
        return
    assert [vote.labels for vote in votes] == [vote.labels for vote in VOTES]


@given(st.integers(0, len(INDENTED) - 1))
def test_a_reply_that_was_cut_anywhere_is_not_read(length):
    with pytest.raises(ReplyProblem):
        parse(f"```json\n{INDENTED[:length]}")


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


TANGLES = {
    "50 MB": "a" * 50_000_000,
    "4 MB of blanks": "[" + " " * 3_900_000,
    "a million brackets": "[" * 1_000_000,
    "a million pairs": "[]" * 1_000_000,
    "100,000 deep": GOOD[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "objects without end": '{"a":' * 500_000,
    "quotes": '{"' * 500_000,
    "labels nested 900 deep": GOOD.replace('"framing"', "[" * 900 + "]" * 900),
    "labels nested 30,000 deep": GOOD.replace('"framing"', "[" * 30_000 + "]" * 30_000),
    "indices nested 900 deep": GOOD.replace("[0]", "[" * 900 + "]" * 900),
    "typographic quotes": "{“a" * 500_000,
    "quotes of all kinds": "[“'‘\"" * 500_000,
    "backslashes": '["' + "\\" * 3_000_000,
    "escapes": '["' + "\\n" * 1_500_000 + '"]',
    "comments": "[/*" * 1_000_000,
    "line comments": "[#" * 1_000_000,
    "digits": "[" + "1" * 3_000_000,
    "words": "[" + "a." * 1_500_000,
    "think marks": "<think>" * 500_000 + GOOD,
    "ends of thinking": "</think>{}" * 100_000,
    "steps": "{'steps': [" * 300_000,
    "answers": (GOOD + "\n") * 3_000,
    "a text in a text": json.dumps(json.dumps(json.dumps("[" * 100_000))),
    "keys": json.dumps({f"k{n}": n for n in range(300_000)}),
    "labels": GOOD.replace("framing", "framing," * 300_000),
    "indices": GOOD.replace("[0]", json.dumps(list(range(30_000)))),
    "ranges": GOOD.replace("[0]", json.dumps(["0-9999"] * 10_000)),
    "ranges in a text": GOOD.replace("[0]", json.dumps(",".join(["0-9999"] * 1_400))),
    "ranges in steps": '{"steps": [' + ",".join(['{"thinking_step": "0-9999", "labels": []}'] * 3_000) + "]}",
    "blanks after a bracket": "<" + " " * 60_000 + GOOD,
    "brackets and blanks": ("<" + " " * 9 + "/") * 100_000,
    "index text": GOOD.replace("[0]", json.dumps("0," * 300_000)),
}


@pytest.mark.parametrize("text", TANGLES.values(), ids=TANGLES)
def test_reading_takes_no_longer_whatever_the_text(text):
    started = time.process_time()
    with contextlib.suppress(ReplyProblem):
        parse(text)
    assert time.process_time() - started < 5  # a quiet machine takes 0.1 s, one with much else to do took 1.1 s


def test_a_problem_fits_into_a_table_and_a_prompt():
    with pytest.raises(ReplyProblem) as problem:
        parse(GOOD.replace("framing", "\ud83d\x00" * 10_000))
    assert len(str(problem.value)) < 600 and str(problem.value).encode()


def test_schema_closes_the_label_list_and_every_object():
    schema = reply_schema(PAPER_TAXONOMY)
    assert schema["$defs"]["LabelRating"]["properties"]["label"]["enum"] == list(PAPER_TAXONOMY.labels)
    for part in (schema, schema["$defs"]["Step"], schema["$defs"]["LabelRating"]):
        assert part["additionalProperties"] is False
        assert set(part["required"]) == set(part["properties"])


def test_exact_schema_takes_a_reply_of_the_asked_steps_and_no_other():
    schema = reply_schema_of(PAPER_TAXONOMY, [[0], [1, 2]], max_labels=2)
    framing = {"label": "framing", "confidence": 9}

    def takes(*asked, labels=(framing,)):
        given = [{"thinking_step": list(indices), "labels": list(labels)} for indices in asked]
        return jsonschema.Draft202012Validator(schema).is_valid({"steps": given, "overall_confidence": 8})

    assert takes((0,), (1, 2)) and takes((0,), (1, 2), labels=())
    assert not takes((0,)), "a step is left out"
    assert not takes((0, 1), (2,)) and not takes((1, 2), (0,)) and not takes((0,), (1, 2), (3,))
    assert not takes((0,), (1, 2), labels=[framing] * 3)
    assert not takes((0,), (1, 2), labels=[framing | {"label": "musing"}])
    assert not takes((0,), (1, 2), labels=[framing | {"confidence": 0.9}]), "the scale is not one from 0 to 1"
    assert not takes((0,), (1, 2), labels=[framing | {"confidence": 11}])
