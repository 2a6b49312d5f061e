import re
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.method.blanks import is_blank
from mralign_core.method.traces import (
    WELL_FORMED,
    Outcome,
    Span,
    Tags,
    answer_end,
    parse_completion,
    split_segments,
)
from mralign_core.schemas.outcomes import OUTCOMES

CHANNELS = Tags("<|channel|>analysis<|message|>", "<|end|>", reply_open="<|channel|>final<|message|>")


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
        ("One.\n\u00a0\nTwo.\n\u3000\u2009\nThree.", ["One.", "Two.", "Three."]),
        ("One.\n\u200b\nTwo.\n\ufeff\u2060\nThree.", ["One.", "Two.", "Three."]),
        ("One.\r\n\u00a0\r\nTwo.\r\nStill two.", ["One.", "Two.\r\nStill two."]),
        ("One.\u2028\u2028Two.\u2029Three.\u2028Still three.", ["One.", "Two.", "Three.\u2028Still three."]),
        ("One.\n\x0c\n\u200bTwo.\u3164\n\x0b\n", ["One.", "Two."]),
        ("\u200b\n\n\u00a0", []),
        ("One.\u00a0Still\u3000one.\u200b", ["One.\u00a0Still\u3000one."]),
    ],
)
def test_segments_are_split_at_blank_lines(thinking, segments):
    assert texts(thinking) == segments


def test_offset_moves_every_span():
    assert split_segments("a\n\nb", offset=7) == [Span(7, 8), Span(10, 11)]


@given(st.text(alphabet="ab .\n\t\r\u00a0\u3000\u200b", max_size=60))
def test_spans_partition_the_thinking(thinking):
    spans = split_segments(thinking)
    edges = [0, *(edge for span in spans for edge in span), len(thinking)]
    assert edges == sorted(edges)
    gaps = [thinking[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    assert all(map(is_blank, gaps)), "only blanks lie between segments"
    assert all(gap.count("\n") >= 2 for gap in gaps[1:-1]), "segments are a blank line apart"
    for start, end in spans:
        own = thinking[start:end]
        assert own == own.strip() != ""
        assert not re.search("\n[ \t\r\u00a0\u3000\u200b]*\n", own), "no blank line is left inside"


@given(st.lists(st.text(alphabet="xy .", min_size=1).filter(str.strip), max_size=8))
def test_joined_segments_are_found_again(segments):
    assert texts("\n\n".join(segments)) == [segment.strip() for segment in segments]


CASES = [
    # completion, mode, opened_by_prompt, thinking, answer, outcome
    ("<think>t</think><answer>a</answer>", "on", False, "t", "a", "ok"),
    ("<think>t</think><answer>a", "on", False, "t", "a", "ok"),
    ("<think>t</think>So: <answer> a </answer> done <answer>b</answer>", "on", False, "t", "a", "ok"),
    ("Sure. <think>t</think><answer>a</answer>", "on", False, "t", "a", "ok"),
    ("<answer>x</answer><think>t</think><answer>a</answer>", "on", False, "t", "a", "ok"),
    # nothing behind the answer is read
    ("<think>t</think><answer>a</answer> <think>u", "on", False, "t", "a", "ok"),
    ("<think>t</think><answer>a</answer></think>b", "on", False, "t", "a", "ok"),
    # a mention of a tag inside the thinking
    ("write <think> here</think><answer>a</answer>", "on", True, "write <think> here", "a", "ok"),
    ("<think>an <answer> tag</think><answer>a</answer>", "on", False, "an <answer> tag", "a", "ok"),
    # opened by the chat template
    ("t</think><answer>a</answer>", "on", True, "t", "a", "ok"),
    ("t</think><answer>a</answer>", "on", False, "t", "a", "ok"),
    ("\n<think>t</think><answer>a</answer>", "on", True, "t", "a", "ok"),
    # tags that are spoken of
    ("<think>t</think>I put it in <answer></answer> tags: <answer>Paris</answer>", "on", False, "t", "Paris", "ok"),
    ("<think>t</think>in <answer> </answer>: <answer>Paris</answer> x", "on", False, "t", "Paris", "ok"),
    ("<think>t</think>in <answer>…</answer>: <answer>Paris</answer>", "on", False, "t", "Paris", "ok"),
    ("<think>t</think>in <answer>your answer</answer>: <answer>Paris</answer>", "on", False, "t", "Paris", "ok"),
    ("<think>t</think>in <answer>[final answer here]</answer> <answer>a</answer>", "on", False, "t", "a", "ok"),
    ("<think>t</think>between <answer> and </answer>: <answer>a</answer>", "on", False, "t", "a", "ok"),
    ("<think>t</think>the `<answer>` and `</answer>` tags: <answer>a</answer>", "on", False, "t", "a", "ok"),
    ("<think>t</think>the “<answer>” tag: <answer>a</answer>", "on", False, "t", "a", "ok"),
    ("<think>t</think>the <answer> tag: <answer>a</answer>", "on", False, "t", "a", "ok"),
    ("<think>t</think><answer><answer>a</answer></answer>", "on", False, "t", "a", "ok"),
    ("<think>t</think><answer></answer><answer>a", "on", False, "t", "a", "ok"),
    ("<think>t</think>`<answer>a</answer>`", "on", False, "t", "a", "ok"),
    ("<think>t</think><ANSWER>a</Answer> b", "on", False, "t", "a", "ok"),
    ("<think>t</think><answer>a<answer>", "on", False, "t", "a", "ok"),
    ("<think>t</think><answer>+</answer>", "on", False, "t", "+", "ok"),
    ("<think>t</think><answer>AND</answer> <answer>b</answer>", "on", False, "t", "AND", "ok"),
    ("<think>t</think><answer>the answer</answer>", "on", False, "t", "the answer", "ok"),
    ("<think>t</think><answer>...</answer>", "on", False, "t", "...", "ok"),
    # a quoted pair is a mention only where another answer follows
    ('<think>t</think>"<answer>"Paris"</answer>"', "on", False, "t", '"Paris"', "ok"),
    ('<think>t</think>So "<answer>"Paris"</answer>" it is', "on", False, "t", '"Paris"', "ok"),
    ('<think>t</think>"<answer>"x"</answer>": <answer>Paris</answer>', "on", False, "t", "Paris", "ok"),
    ("<think>t</think>as <answer>text</answer>: <answer>Paris</answer>", "on", False, "t", "Paris", "ok"),
    ("<think>t</think>as <answer>response</answer>: <answer>Paris</answer>", "on", False, "t", "Paris", "ok"),
    ("<think>t</think>as <answer>xxx</answer>: <answer>Paris</answer>", "on", False, "t", "Paris", "ok"),
    ("<think>t</think>as <answer>X</answer>: <answer>Paris</answer>", "on", False, "t", "Paris", "ok"),
    ("<think>t</think>in <answer>/</answer>: <answer>Paris</answer>", "on", False, "t", "Paris", "ok"),
    ("<think>t</think><answer>X</answer> as in ten", "on", False, "t", "X", "ok"),
    ("<think>t</think><answer>text</answer>", "on", False, "t", "text", "ok"),
    (
        '<think>t</think>a "<answer>" tag and a "</answer>". a',
        "on",
        False,
        "t",
        'a "<answer>" tag and a "</answer>". a',
        "untagged_answer",
    ),
    (
        "<think>t</think>`<answer>` or `</answer>`. a",
        "on",
        False,
        "t",
        "`<answer>` or `</answer>`. a",
        "untagged_answer",
    ),
    ("in <answer></answer> tags: <answer>a</answer>", "off", False, None, "a", "ok"),
    ("<think>use <answer> and </answer></think>\n", "on", False, "use <answer> and </answer>", None, "no_answer"),
    ("<think>t</think><answer>\u200b</answer>", "on", False, "t", None, "no_answer"),
    ("<think>\u3164</think>a", "on", False, None, "a", "no_thinking"),
    # no answer tag
    ("<think>t</think>\n\n a \n", "on", False, "t", "a", "untagged_answer"),
    ("<think>is it <answer>x</answer>?</think>a", "on", False, "is it <answer>x</answer>?", "a", "untagged_answer"),
    # several blocks
    ("<think>t</think>x<think>u</think>a", "on", False, "t</think>x<think>u", "a", "several_think_blocks"),
    ("<think>t</think>x</think>a", "on", False, "t</think>x", "a", "several_think_blocks"),
    ("t</think>x<think>u</think>", "on", True, "t</think>x<think>u", None, "several_think_blocks"),
    # never closed
    ("<think>t", "on", False, "t", None, "unclosed_thinking"),
    ("<think>t <answer>a</answer>", "on", False, "t <answer>a</answer>", None, "unclosed_thinking"),
    ("t", "on", True, "t", None, "unclosed_thinking"),
    ("<think>t</think>x<think>u", "on", False, "t</think>x<think>u", None, "unclosed_thinking"),
    ("<think>", "on", False, None, None, "unclosed_thinking"),
    ("", "on", True, None, None, "unclosed_thinking"),
    # no thinking
    ("<answer>a</answer>", "on", False, None, "a", "no_thinking"),
    ("<think>\n\n</think>a", "on", False, None, "a", "no_thinking"),
    ("", "on", False, None, None, "no_thinking"),
    # no answer
    ("<think>t</think>", "on", False, "t", None, "no_answer"),
    ("<think>t</think> <answer> </answer>", "on", False, "t", None, "no_answer"),
    ("<think>t <answer>a</answer></think>\n", "on", False, "t <answer>a</answer>", None, "answer_in_thinking"),
    ("t <answer>a</answer></think>", "on", False, "t <answer>a</answer>", None, "answer_in_thinking"),
    ("<think>t <answer></answer></think>\n", "on", False, "t <answer></answer>", None, "no_answer"),
    # mode off
    ("<answer>a</answer>", "off", False, None, "a", "ok"),
    ("a", "off", False, None, "a", "untagged_answer"),
    ("a", "off", True, None, "a", "untagged_answer"),
    ("<think>\n\n</think>\n\na", "off", False, None, "a", "untagged_answer"),
    ("<think><answer>x</answer></think><answer>a</answer>", "off", False, None, "a", "unasked_thinking"),
    ("<answer>a</answer><think>t", "off", False, None, "a", "ok"),
    ("t</think>a", "off", False, None, "a", "unasked_thinking"),
    ("<think>t</think>", "off", False, None, None, "unasked_thinking"),
    ("<answer></answer>", "off", False, None, None, "no_answer"),
    ("", "off", False, None, None, "no_answer"),
    ("<think>t", "off", False, None, None, "unclosed_thinking"),
]
THOUGHT = "<|channel|>analysis<|message|>t<|end|><|start|>assistant"
CHANNEL_CASES = [
    (THOUGHT + "<|channel|>final<|message|><answer>a</answer>", "on", False, "t", "a", "ok"),
    (THOUGHT + "<|channel|>final<|message|> a", "on", False, "t", "a", "untagged_answer"),
    (THOUGHT + "<|channel|>final<|message|>a<|end|>x", "on", False, "t", "a", "untagged_answer"),
    (THOUGHT + "<|channel|>final<|message|>", "on", False, "t", None, "no_answer"),
    (THOUGHT, "on", False, "t", None, "no_answer"),
    ("<|channel|>analysis<|message|>t", "on", False, "t", None, "unclosed_thinking"),
    ("<|channel|>final<|message|>a", "on", False, None, "a", "no_thinking"),
    ("<|channel|>final<|message|>a<|end|>", "on", False, None, "a", "no_thinking"),
    ("a", "off", False, None, "a", "untagged_answer"),
    ("a<|end|>", "off", False, None, "a", "untagged_answer"),
    ("<|channel|>final<|message|>a", "off", False, None, "a", "untagged_answer"),
    (THOUGHT + "<|channel|>final<|message|>a", "off", False, None, "a", "unasked_thinking"),
]


@pytest.mark.parametrize(("completion", "mode", "opened", "thinking", "answer", "outcome"), CASES)
def test_parts_and_outcome(completion, mode, opened, thinking, answer, outcome):
    parsed = parse_completion(completion, Tags(), thinking_mode=mode, opened_by_prompt=opened)
    assert (parsed.thinking, parsed.answer, parsed.outcome) == (thinking, answer, outcome)


@pytest.mark.parametrize(("completion", "mode", "opened", "thinking", "answer", "outcome"), CHANNEL_CASES)
def test_channels_are_tags(completion, mode, opened, thinking, answer, outcome):
    parsed = parse_completion(completion, CHANNELS, thinking_mode=mode, opened_by_prompt=opened)
    assert (parsed.thinking, parsed.answer, parsed.outcome) == (thinking, answer, outcome)


@pytest.mark.parametrize("channel", ["analysis", "commentary"])
def test_a_second_message_before_the_final_one_is_a_second_block(channel):
    completion = THOUGHT + f"<|channel|>{channel}<|message|>u<|end|><|start|>assistant<|channel|>final<|message|>a"
    parsed = parse_completion(completion, CHANNELS, thinking_mode="on")
    assert (parsed.answer, parsed.outcome) == ("a", "several_think_blocks")
    assert parsed.thinking is not None
    assert parsed.thinking.startswith("t<|end|>") and parsed.thinking.endswith("u")


def test_cases_cover_every_outcome_and_the_schema_names_them():
    assert {case[-1] for case in CASES} == set(OUTCOMES) == set(get_args(Outcome))
    assert WELL_FORMED.issubset(OUTCOMES)


def test_other_tags():
    parsed = parse_completion("[T]t[/T](a)b", Tags("[T]", "[/T]", "(", ")"), thinking_mode="on")
    assert (parsed.thinking, parsed.answer, parsed.outcome) == ("t", "a", "ok")


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'maybe'"):
        parse_completion("a", Tags(), thinking_mode="maybe")


def pieces(tags):
    written = [*(tag for tag in tags if tag), tags.answer_open.upper(), tags.answer_close.upper()]
    said = ["a", "b c", " ", "\n\n", "é", "`", " and ", "...", "your answer"]
    return st.lists(st.sampled_from([*written, *said]), max_size=12).map("".join)


@pytest.mark.parametrize("mention", ["", " ", "...", "your answer", " and ", "` and `"])
def test_sampling_ends_at_the_answer_and_not_at_a_mention_of_its_tags(mention):
    quote = "`" if "`" in mention else ""
    said = f"<think>t</think>I put it in {quote}<answer>{mention}</answer>{quote} tags: "
    assert answer_end(said, tags=Tags(), thinking_mode="on") is None
    whole = f"{said}<answer>Paris</answer>"
    assert answer_end(f"{whole} more", tags=Tags(), thinking_mode="on") == len(whole)


COMPLETIONS = st.sampled_from([Tags(), CHANNELS]).flatmap(lambda tags: st.tuples(st.just(tags), pieces(tags)))
MODES = st.sampled_from(["on", "off"])


@given(COMPLETIONS, MODES, st.booleans())
def test_texts_are_what_their_spans_hold(written, mode, opened):
    tags, completion = written
    parsed = parse_completion(completion, tags, thinking_mode=mode, opened_by_prompt=opened)
    for text, span in ((parsed.thinking, parsed.thinking_span), (parsed.answer, parsed.answer_span)):
        assert (text is None) == (span is None)
        assert span is None or text == completion[span.start : span.end] != ""
    assert parsed.outcome in OUTCOMES
    assert (parsed.outcome == "unclosed_thinking") == (not parsed.thinking_closed)
    if parsed.outcome in WELL_FORMED:
        assert parsed.answer is not None
        assert (parsed.thinking is not None) == (mode == "on")
        assert parsed.thinking is None or tags.think_close not in parsed.thinking
    if mode == "off":
        assert parsed.thinking is None
    if parsed.thinking_span and parsed.answer_span:
        assert parsed.thinking_span.end + len(tags.think_close) <= parsed.answer_span.start
        assert completion.startswith(tags.think_close, parsed.thinking_span.end)


@given(COMPLETIONS, MODES, st.booleans(), st.text("a <>/think\n", max_size=20))
def test_text_behind_a_complete_answer_changes_nothing(written, mode, opened, more):
    tags, completion = written
    kinds = {"thinking_mode": mode, "opened_by_prompt": opened}
    parsed = parse_completion(completion, tags, **kinds)
    end = answer_end(completion, tags, **kinds)
    if end is None:
        return
    assert parse_completion(completion[:end], tags, **kinds) == parsed
    assert any(completion[:end].lower().endswith(tag) for tag in (tags.answer_close, tags.think_close))
    assert parsed.outcome in ("ok", "several_think_blocks", "unasked_thinking") or tags.reply_open
    for rest in (more, *tags, "<think>t</think><answer>b</answer>"):
        assert parse_completion(completion + rest, tags, **kinds) == parsed
        assert answer_end(completion + rest, tags, **kinds) == end


@given(COMPLETIONS, MODES, st.booleans())
def test_an_answer_is_never_complete_inside_the_thinking(written, mode, opened):
    tags, completion = written
    if answer_end(completion, tags, thinking_mode=mode, opened_by_prompt=opened) is not None:
        parsed = parse_completion(completion, tags, thinking_mode=mode, opened_by_prompt=opened)
        assert parsed.thinking_closed
