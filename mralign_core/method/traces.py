"""The parts of a completion: its thinking, its answer, and the segments of the thinking (§3.1.1, App. D.2).

Decisions where the paper is silent:

* The thinking runs from the first opening tag to the last closing tag. A block that is opened again after the
  last closing tag is unclosed thinking: its text is never taken for an answer.
* A closed block with only whitespace in it is no thinking.
* The answer is what stands in the first ``<answer>`` after the thinking, up to ``</answer>`` or else to the
  end; where there is no such tag, all text after the thinking. It is stripped, and an empty one is no answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

ANSWER_OPEN = "<answer>"
ANSWER_CLOSE = "</answer>"

_BLANK_LINES = re.compile(r"\n(?:[ \t\r]*\n)+")


class Span(NamedTuple):
    """Half-open range of characters."""

    start: int
    end: int


class ParsedCompletion(NamedTuple):
    """The parts of a completion; each text is ``completion[span.start:span.end]``, None where missing.

    ``outcome`` is the first that holds of: ``unclosed_thinking``, ``no_thinking`` (mode "on" only),
    ``no_answer``, ``ok``. A completion without thinking can still have an answer. ``thinking_closed`` is
    False only where a think block was left open.
    """

    thinking: str | None
    thinking_span: Span | None
    answer: str | None
    answer_span: Span | None
    thinking_closed: bool
    outcome: str


def split_segments(thinking: str, *, offset: int = 0) -> list[Span]:
    r"""Split thinking into segments at blank lines (a newline, then lines of nothing but spaces and tabs).

    Implements the segmentation of App. D.2 of arXiv 2510.24794.

    Args:
        thinking: the text between the think tags.
        offset: place of ``thinking`` in the completion, added to every span.

    Returns:
        Spans of the segments' own text in order, without whitespace around it; blank pieces are dropped.

    >>> split_segments("\nFirst.\nStill first.\n\n \n\nSecond.\n")
    [Span(start=1, end=20), Span(start=25, end=32)]
    """
    edges = [0, *(edge for gap in _BLANK_LINES.finditer(thinking) for edge in gap.span()), len(thinking)]
    pieces = (_strip(thinking, Span(*piece)) for piece in zip(edges[::2], edges[1::2], strict=True))
    return [Span(start + offset, end + offset) for start, end in pieces if start < end]


def parse_completion(
    completion: str,
    *,
    think_open: str,
    think_close: str,
    thinking_mode: str,
    opened_by_prompt: bool = False,
) -> ParsedCompletion:
    """Find the thinking and the answer in a completion, whatever the model family does with its tags.

    The opening tag may stand in the completion or have been written by the chat template; in the latter case
    the completion starts inside the thinking.

    Args:
        completion: the sampled text, without the end token.
        think_open: tag that opens the thinking.
        think_close: tag that closes it.
        thinking_mode: "on", or "off" where no thinking is expected: a think block is then skipped, and
            ``thinking`` is None.
        opened_by_prompt: the prompt ends inside an open think block. Decides, for a completion in mode "on"
            with neither tag, between thinking that was never closed and no thinking at all.

    Raises:
        ValueError: ``thinking_mode`` is neither "on" nor "off".

    >>> parsed = parse_completion("<think>Seat of Iran?</think> <answer>Tehran</answer>",
    ...                           think_open="<think>", think_close="</think>", thinking_mode="on")
    >>> parsed.thinking, parsed.answer, parsed.outcome
    ('Seat of Iran?', 'Tehran', 'ok')
    """
    if thinking_mode not in ("on", "off"):
        raise ValueError(f"thinking_mode is {thinking_mode!r}; it must be 'on' or 'off'")
    expected = thinking_mode == "on"
    block = _think_block(completion, think_open, think_close, opened_by_prompt and expected)
    thinking_span = block.text if expected and (_text(completion, block.text) or "").strip() else None
    thinking = _text(completion, thinking_span)
    if not block.closed:
        return ParsedCompletion(thinking, thinking_span, None, None, False, "unclosed_thinking")
    answer_span = _answer_span(completion, block.answer_from)
    answer = _text(completion, answer_span)
    outcome = "no_thinking" if expected and thinking is None else "no_answer" if answer is None else "ok"
    return ParsedCompletion(thinking, thinking_span, answer, answer_span, True, outcome)


class _ThinkBlock(NamedTuple):
    """Text between the tags (None without a block), whether it was closed, where the answer region starts."""

    text: Span | None
    closed: bool
    answer_from: int


def _think_block(completion: str, think_open: str, think_close: str, opened_by_prompt: bool) -> _ThinkBlock:
    first_open = completion.find(think_open)
    first_close = completion.find(think_close)
    if first_open < 0 and first_close < 0 and not opened_by_prompt:
        return _ThinkBlock(None, True, 0)
    tagged = first_open >= 0 and (first_close < 0 or first_open < first_close)
    # After a prompt that opened the block, a tag is the opening one only if the model repeats it at once.
    if tagged and opened_by_prompt:
        tagged = not completion[:first_open].strip()
    start = first_open + len(think_open) if tagged else 0
    last_close = completion.rfind(think_close)
    if last_close < 0 or completion.find(think_open, last_close) >= 0:
        return _ThinkBlock(Span(start, len(completion)), False, len(completion))
    return _ThinkBlock(Span(start, last_close), True, last_close + len(think_close))


def _answer_span(completion: str, start: int) -> Span | None:
    end = len(completion)
    tag = completion.find(ANSWER_OPEN, start)
    if tag >= 0:
        start = tag + len(ANSWER_OPEN)
        close = completion.find(ANSWER_CLOSE, start)
        end = close if close >= 0 else end
    span = _strip(completion, Span(start, end))
    return span if span.start < span.end else None


def _strip(text: str, span: Span) -> Span:
    piece = text[span.start : span.end]
    start = span.start + len(piece) - len(piece.lstrip())
    return Span(start, max(start, span.start + len(piece.rstrip())))


def _text(text: str, span: Span | None) -> str | None:
    return None if span is None else text[span.start : span.end]
