import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.method.traces import Span, parse_completion, split_segments
from mralign_core.schemas import OUTCOMES

TAGS = {"think_open": "<think>", "think_close": "</think>"}


def texts(thinking):
    return [thinking[start:end] for start, end in split_segments(thinking)]


@pytest.mark.parametrize(
    ("thinking", "segments"),
    [
        ("", []),
        (" \n\n \t\n", []),
        ("One.", ["One."]),
        ("One.\nStill one.", ["One.\nStill one."]),
        ("One.\n\nTwo.", ["One.", "Two."]),
        ("\n\nOne.\n\n\n\nTwo.\n\n", ["One.", "Two."]),
        ("One.\n \t\n  Two.", ["One.", "Two."]),
        ("One.\n \n \nTwo.", ["One.", "Two."]),
        ("One.\r\n\r\nTwo.\r\n", ["One.", "Two."]),
        ("- a\n- b\n\n- c", ["- a\n- b", "- c"]),
    ],
)
def test_segments_are_split_at_blank_lines(thinking, segments):
    assert texts(thinking) == segments


def test_offset_moves_every_span():
    assert split_segments("a\n\nb", offset=7) == [Span(7, 8), Span(10, 11)]


@given(st.text(alphabet="ab .\n\t\r", max_size=60))
def test_spans_partition_the_thinking(thinking):
    spans = split_segments(thinking)
    edges = [0, *(edge for span in spans for edge in span), len(thinking)]
    assert edges == sorted(edges)
    gaps = [thinking[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    assert all(gap.strip() == "" for gap in gaps), "only whitespace lies between segments"
    assert all(gap.count("\n") >= 2 for gap in gaps[1:-1]), "segments are a blank line apart"
    for start, end in spans:
        own = thinking[start:end]
        assert own == own.strip() != ""
        assert not re.search(r"\n[ \t\r]*\n", own), "no blank line is left inside"


@given(st.lists(st.text(alphabet="xy .", min_size=1).filter(str.strip), max_size=8))
def test_joined_segments_are_found_again(segments):
    assert texts("\n\n".join(segments)) == [segment.strip() for segment in segments]


CASES = [
    # completion, mode, opened_by_prompt, thinking, answer, closed, outcome
    ("<think>t</think><answer>a</answer>", "on", False, "t", "a", True, "ok"),
    ("<think>t</think>\n\n a \n", "on", False, "t", "a", True, "ok"),
    ("<think>t</think><answer>a", "on", False, "t", "a", True, "ok"),
    ("<think>t</think>So: <answer> a </answer> done <answer>b</answer>", "on", False, "t", "a", True, "ok"),
    ("<think>is it <answer>x</answer>?</think>a", "on", False, "is it <answer>x</answer>?", "a", True, "ok"),
    ("Sure. <think>t</think>a", "on", False, "t", "a", True, "ok"),
    # several blocks: from the first opening to the last closing tag
    ("<think>t</think>x<think>u</think>a", "on", False, "t</think>x<think>u", "a", True, "ok"),
    ("<think>t</think>x</think>a", "on", False, "t</think>x", "a", True, "ok"),
    # opened by the chat template
    ("t</think><answer>a</answer>", "on", True, "t", "a", True, "ok"),
    ("t</think><answer>a</answer>", "on", False, "t", "a", True, "ok"),
    ("t</think>x<think>u</think>a", "on", False, "t</think>x<think>u", "a", True, "ok"),
    ("\n<think>t</think>a", "on", True, "t", "a", True, "ok"),
    ("write <think> here</think>a", "on", True, "write <think> here", "a", True, "ok"),
    # never closed
    ("<think>t", "on", False, "t", None, False, "unclosed_thinking"),
    ("<think>t <answer>a</answer>", "on", False, "t <answer>a</answer>", None, False, "unclosed_thinking"),
    ("t", "on", True, "t", None, False, "unclosed_thinking"),
    ("<think>t</think>x<think>u", "on", False, "t</think>x<think>u", None, False, "unclosed_thinking"),
    ("<think>", "on", False, None, None, False, "unclosed_thinking"),
    ("", "on", True, None, None, False, "unclosed_thinking"),
    # no thinking
    ("<answer>a</answer>", "on", False, None, "a", True, "no_thinking"),
    ("<think>\n\n</think>a", "on", False, None, "a", True, "no_thinking"),
    ("", "on", False, None, None, True, "no_thinking"),
    # no answer
    ("<think>t</think>", "on", False, "t", None, True, "no_answer"),
    ("<think>t</think> <answer> </answer>", "on", False, "t", None, True, "no_answer"),
    ("<think>t <answer>a</answer></think>\n", "on", False, "t <answer>a</answer>", None, True, "no_answer"),
    # mode off
    ("<answer>a</answer>", "off", False, None, "a", True, "ok"),
    ("a", "off", False, None, "a", True, "ok"),
    ("a", "off", True, None, "a", True, "ok"),
    ("<think>\n\n</think>\n\na", "off", False, None, "a", True, "ok"),
    ("<think><answer>x</answer></think><answer>a</answer>", "off", False, None, "a", True, "ok"),
    ("t</think>a", "off", False, None, "a", True, "ok"),
    ("<answer></answer>", "off", False, None, None, True, "no_answer"),
    ("", "off", False, None, None, True, "no_answer"),
    ("<think>t", "off", False, None, None, False, "unclosed_thinking"),
]


@pytest.mark.parametrize(("completion", "mode", "opened", "thinking", "answer", "closed", "outcome"), CASES)
def test_families_and_outcomes(completion, mode, opened, thinking, answer, closed, outcome):
    parsed = parse_completion(completion, thinking_mode=mode, opened_by_prompt=opened, **TAGS)
    assert (parsed.thinking, parsed.answer) == (thinking, answer)
    assert (parsed.thinking_closed, parsed.outcome) == (closed, outcome)


def test_cases_cover_every_outcome_of_the_schema():
    assert {case[-1] for case in CASES} == set(OUTCOMES)


def test_other_tags():
    parsed = parse_completion("[T]t[/T]a", think_open="[T]", think_close="[/T]", thinking_mode="on")
    assert (parsed.thinking, parsed.answer) == ("t", "a")


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'maybe'"):
        parse_completion("a", thinking_mode="maybe", **TAGS)


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "a", "b c", " ", "\n\n", "é"]),
    max_size=10,
)


@given(PIECES.map("".join), st.sampled_from(["on", "off"]), st.booleans())
def test_texts_are_what_their_spans_hold(completion, mode, opened):
    parsed = parse_completion(completion, thinking_mode=mode, opened_by_prompt=opened, **TAGS)
    for text, span in ((parsed.thinking, parsed.thinking_span), (parsed.answer, parsed.answer_span)):
        assert (text is None) == (span is None)
        assert span is None or text == completion[span.start : span.end] != ""
    assert parsed.outcome in OUTCOMES
    assert (parsed.outcome == "unclosed_thinking") == (not parsed.thinking_closed)
    assert parsed.outcome != "ok" or parsed.answer is not None
    if mode == "off":
        assert parsed.thinking is None
    if parsed.thinking_span and parsed.answer_span:
        assert parsed.thinking_span.end + len("</think>") <= parsed.answer_span.start
        assert completion.startswith("</think>", parsed.thinking_span.end)
