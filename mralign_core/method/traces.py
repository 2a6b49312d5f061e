"""The parts of a completion: its thinking, its answer, and the segments of the thinking (§3.1.1, App. D.2).

Decisions where the paper is silent:

* The thinking runs from its opening tag, in the completion or in the prompt, to the last closing tag before the
  answer; a closing tag without an opening one closes a block that the prompt opened. A closed block with only
  whitespace in it is no thinking. An opening tag inside the thinking is a mention.
* The answer is what stands in the first ``<answer>`` after the thinking, up to ``</answer>`` or else to the end; where
  there is no such tag, all of the reply. It is stripped, and an empty one is no answer. Reading ends with ``</answer>``
  once the thinking that the mode asks for is there: no sampler's text beyond it changes what the completion says.
* Tags that are spoken of are not the answer: ``in <answer></answer> tags: <answer>Paris</answer>`` says Paris. A
  mention is a pair in quotation marks or with nothing, dots, "and", or a placeholder such as "your answer" between its
  tags; and an opening tag before another one. Where no other follows, what stands between the tags is the answer after
  all, but for words of the sentence, such as "and". The case of answer tags doesn't count.
* Text in a think block that is never closed is never taken for an answer, nor is an answer inside the thinking.
* Channels (gpt-oss) are tags like any others: an analysis message is a think block, and the reply is what the final
  channel holds. Several analysis messages, or one with commentary behind it, are several think blocks.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mralign_core.method.blanks import BLANK_CLASS, LINE_ENDS, is_blank, strip_blanks

# A line that shows nothing, whatever is in it; a paragraph separator parts by itself.
_BLANK_LINES = re.compile(rf"[{LINE_ENDS}](?:[{BLANK_CLASS}]*[{LINE_ENDS}])|\u2029")
# What stands between the tags of a mention.
_MENTION = re.compile(
    r"""
    [\s.…,_/-]*
    | (?: text | response | x+ )
    | [\s\[({<.…]*
      (?: (?:insert|put|write|give|your|the|my|a|final|short|actual|correct) \s+ ){0,4}
      answer (?: \s+ (?:goes\s+)? here )?
      [\s\])}>.…]*
    """,
    re.VERBOSE | re.IGNORECASE,
)
_QUOTES = {"`": "`", "'": "'", '"': '"', "‘": "’", "“": "”", "«": "»"}


class Span(NamedTuple):
    """Half-open range of characters."""

    start: int
    end: int


class Tags(NamedTuple):
    """What a model family writes around its thinking and its answer.

    ``reply_open`` opens the reply where that is not simply what follows the thinking.
    """

    think_open: str = "<think>"
    think_close: str = "</think>"
    answer_open: str = "<answer>"
    answer_close: str = "</answer>"
    reply_open: str = ""


Outcome = Literal[
    "unclosed_thinking",
    "several_think_blocks",
    "answer_in_thinking",
    "no_thinking",
    "unasked_thinking",
    "no_answer",
    "untagged_answer",
    "ok",
]
"""What a completion is, the first of these that holds:

* ``unclosed_thinking``: the last think block was never closed.
* ``several_think_blocks``: the thinking was closed more than once.
* ``answer_in_thinking``: a tagged answer stands inside the thinking, and none after it.
* ``no_thinking``: mode "on" only.
* ``unasked_thinking``: mode "off" only, the model thought all the same. Its answer counts; many of them show that the
  family does not switch this model's thinking off.
* ``no_answer``: nothing stands where the answer should.
* ``untagged_answer``: no answer tag after the thinking; all text there is the answer.
* ``ok``: thinking where the mode asks for it, then a tagged answer.
"""
WELL_FORMED: frozenset[Outcome] = frozenset({"ok", "untagged_answer"})
"""Outcomes of a completion that can be trained on: one closed think block where it is asked for, then an answer."""


class ParsedCompletion(NamedTuple):
    """The parts of a completion; each text is ``completion[span.start:span.end]``, None where missing.

    ``thinking_closed`` is False only where a think block was left open. A completion without thinking can still have an
    answer, and so can one with several think blocks.
    """

    thinking: str | None
    thinking_span: Span | None
    answer: str | None
    answer_span: Span | None
    thinking_closed: bool
    outcome: Outcome


def split_segments(thinking: str, *, offset: int = 0) -> list[Span]:
    r"""Split thinking into segments at blank lines: a line's end, then lines of nothing that can be seen.

    Implements the segmentation of App. D.2 of arXiv 2510.24794.

    Args:
        thinking: the text between the think tags.
        offset: place of ``thinking`` in the completion, added to every span.

    Returns:
        Spans of the segments' own text in order, without blanks around it; blank pieces are dropped.

    >>> split_segments("\nFirst.\nStill first.\n\n\u00a0\n\nSecond.\n")
    [Span(start=1, end=20), Span(start=25, end=32)]
    """
    edges = [0, *(edge for gap in _BLANK_LINES.finditer(thinking) for edge in gap.span()), len(thinking)]
    pieces = (_strip(thinking, Span(*piece)) for piece in zip(edges[::2], edges[1::2], strict=True))
    return [Span(start + offset, end + offset) for start, end in pieces if start < end]


def parse_completion(
    completion: str,
    tags: Tags,
    *,
    thinking_mode: str,
    opened_by_prompt: bool = False,
) -> ParsedCompletion:
    """Find the thinking and the answer in a completion, whatever the model family does with its tags.

    The opening tag may stand in the completion or have been written by the chat template; in the latter case
    the completion starts inside the thinking.

    Args:
        completion: the sampled text, without the end token.
        tags: the family's tags.
        thinking_mode: "on", or "off" where no thinking is expected: a think block is then skipped, and
            ``thinking`` is None.
        opened_by_prompt: the prompt ends inside an open think block. Decides, for a completion in mode "on"
            with neither tag, between thinking that was never closed and no thinking at all.

    Raises:
        ValueError: ``thinking_mode`` is neither "on" nor "off".

    >>> parsed = parse_completion("<think>Seat of Iran?</think> <answer>Tehran</answer>",
    ...                           Tags(), thinking_mode="on")
    >>> parsed.thinking, parsed.answer, parsed.outcome
    ('Seat of Iran?', 'Tehran', 'ok')
    """
    if thinking_mode not in ("on", "off"):
        raise ValueError(f"thinking_mode is {thinking_mode!r}; it must be 'on' or 'off'")
    reading = _read(completion, tags, thinking_mode == "on", opened_by_prompt)
    thinking_span = reading.thinking if thinking_mode == "on" and reading.has_thinking() else None
    thinking = _text(completion, thinking_span)
    if reading.inside:
        return ParsedCompletion(thinking, thinking_span, None, None, False, "unclosed_thinking")
    answer_span = _strip(completion, reading.answer_region())
    answer = _text(completion, answer_span) or None
    return ParsedCompletion(
        thinking,
        thinking_span,
        answer,
        answer_span if answer else None,
        True,
        _outcome(reading, thinking_mode, lacks_answer=answer is None),
    )


def answer_end(completion: str, tags: Tags, *, thinking_mode: str, opened_by_prompt: bool = False) -> int | None:
    """Where the tag that closes the answer ends, so that nothing that follows is ever read; None before it is written.

    Args:
        completion: the text so far.
        tags: the family's tags.
        thinking_mode: as in :func:`parse_completion`.
        opened_by_prompt: as in :func:`parse_completion`.

    >>> answer_end("<think>Tehran.</think><answer>Tehran</answer> It", Tags(), thinking_mode="on")
    45
    """
    reading = _read(completion, tags, thinking_mode == "on", opened_by_prompt)
    return reading.end if reading.is_complete else None


def _outcome(reading: _Reading, thinking_mode: str, *, lacks_answer: bool) -> Outcome:
    if reading.num_closings > 1:
        return "several_think_blocks"
    if lacks_answer and reading.answers_in_thinking:
        return "answer_in_thinking"
    if reading.has_thinking() != (thinking_mode == "on"):
        return "no_thinking" if thinking_mode == "on" else "unasked_thinking"
    if lacks_answer:
        return "no_answer"
    return "untagged_answer" if reading.answer_start is None else "ok"


@functools.lru_cache(maxsize=64)
def _tag_pattern(tags: Tags) -> re.Pattern[str]:
    any_case = (tags.answer_open, tags.answer_close)
    written = sorted(filter(None, tags), key=len, reverse=True)
    return re.compile("|".join(f"(?i:{re.escape(tag)})" if tag in any_case else re.escape(tag) for tag in written))


def _read(completion: str, tags: Tags, thinking_expected: bool, opened_by_prompt: bool) -> _Reading:
    """Go through the tags of a completion up to the end of its answer."""
    reading = _Reading(completion, tags, thinking_expected)
    if opened_by_prompt and thinking_expected:
        reading.start, reading.inside = 0, True
    # Without thinking, the prompt of a family with channels ends inside the final one.
    reading.in_reply = bool(tags.reply_open) and not thinking_expected
    take = {
        tags.think_open: reading.open_thinking,
        tags.think_close: reading.close_thinking,
        tags.answer_open.lower(): reading.open_answer,
        tags.answer_close.lower(): reading.close_answer,
        tags.reply_open: reading.open_reply,
    }
    for tag in _tag_pattern(tags).finditer(completion):
        written = tag.group() if tag.group() in take else tag.group().lower()
        take[written](*tag.span())
        if reading.is_complete:
            reading.end = tag.end()
            break
    if reading.answer_start is None and reading.mention:
        reading.answer_start, reading.answer_end = reading.mention
    return reading


@dataclass(slots=True)
class _Reading:
    """What the tags of a completion have shown so far. All numbers are places in it, None for what was not met."""

    completion: str
    tags: Tags
    thinking_expected: bool
    inside: bool = False
    """The text that follows is inside a think block."""
    start: int | None = None
    """First character of the thinking."""
    close: int = 0
    """Where the last closing tag begins."""
    num_closings: int = 0
    reply: int = 0
    """First character of what follows the thinking."""
    in_reply: bool = False
    """The tag that opens the reply was met."""
    reply_end: int | None = None
    answer_start: int | None = None
    """Behind the answer tag of the reply that counts so far."""
    answer_end: int | None = None
    unclosed: Span | None = None
    """What stands between that tag and an opening one before it."""
    mention: Span | None = None
    """What stands in tags that are quoted, and is the answer if there is no other."""
    answers_in_thinking: bool = False
    is_complete: bool = False
    """The answer was closed: what follows is not read."""
    end: int = 0
    """Behind the tag that closed it."""

    @property
    def thinking(self) -> Span:
        """From the first opening tag to the last closing one, or to the end; empty without a block."""
        start = self.start or 0
        return Span(start, len(self.completion) if self.inside else max(start, self.close))

    def has_thinking(self) -> bool:
        """Whether there is a block with text in it."""
        return not is_blank(self.completion[slice(*self.thinking)])

    def answer_region(self) -> Span:
        """Where the answer stands, blanks included: in its tags, or else all of the reply."""
        end = len(self.completion) if self.reply_end is None else self.reply_end
        if self.answer_start is not None:
            own = Span(self.answer_start, end if self.answer_end is None else self.answer_end)
            return self.unclosed if self.unclosed and is_blank(self.completion[slice(*own)]) else own
        unopened = self.tags.reply_open and self.start is not None and not self.in_reply
        return Span(end if unopened else self.reply, end)

    def open_thinking(self, begin: int, end: int) -> None:
        """A block opens; inside one, the tag is a mention, or repeats at once what the prompt opened."""
        if not self.inside:
            self.start = end if self.start is None else self.start
            self.inside, self.in_reply = True, False
            self._forget_answer()
        elif not self.completion[:begin].strip():
            self.start = end

    def close_thinking(self, begin: int, end: int) -> None:
        """The block closes; in channels the same tag ends the reply."""
        if self.in_reply:
            self.reply_end, self.is_complete = begin, True
            return
        if self.start is None:  # the prompt opened the block
            self.start = 0
            self.answers_in_thinking = self._holds_answer()
        self.close, self.reply, self.inside = begin, end, False
        self.num_closings += 1
        self._forget_answer()

    def open_reply(self, begin: int, end: int) -> None:
        """The reply opens, such as the final channel."""
        if not self.inside:
            self.reply, self.in_reply = end, True
            self._forget_answer()

    def open_answer(self, begin: int, end: int) -> None:
        """An answer opens; it counts in place of one that was opened before it, and is a mention or was not closed."""
        is_open = self.answer_start is not None and self.answer_end is None
        self.unclosed = Span(self.answer_start or 0, begin) if is_open else None
        self.answer_start, self.answer_end = end, None

    def close_answer(self, begin: int, end: int) -> None:
        """The answer closes; with it the reading ends, unless the thinking is still to come."""
        if self.answer_start is None or self.answer_end is not None:
            return
        self.answer_end = begin
        if self.inside:
            self.answers_in_thinking |= self._holds_answer()
            self._forget_answer()
        elif self._is_spoken_of():
            mention = Span(self.answer_start, begin)
            self._forget_answer()
            said = self.completion[slice(*mention)].strip("".join([*_QUOTES, *_QUOTES.values()]))
            self.mention = mention if said and not said[0].isspace() else None
        else:
            self.is_complete = self._holds_answer() and (not self.thinking_expected or self.has_thinking())

    def _holds_answer(self) -> bool:
        """Whether an answer was closed that is no mention of the tags."""
        if self.answer_start is None or self.answer_end is None:
            return False
        said = self.completion[self.answer_start : self.answer_end]
        return not (is_blank(said) or _MENTION.fullmatch(said) or self._is_spoken_of())

    def _is_spoken_of(self) -> bool:
        """Whether the tags are those of a sentence about them: in quotation marks, or with "and" between them."""
        start = self.answer_start or 0
        begin, said = start - len(self.tags.answer_open), self.completion[start : self.answer_end]
        before = self.completion[max(0, begin - 1) : begin]
        return said in (" and ", " or ") or (before in _QUOTES and said[:1] == _QUOTES[before])

    def _forget_answer(self) -> None:
        self.answer_start = self.answer_end = self.unclosed = self.mention = None


def _strip(text: str, span: Span) -> Span:
    bare = strip_blanks(text[slice(*span)])
    start = text.index(bare, span.start) if bare else span.end
    return Span(start, start + len(bare))


def _text(text: str, span: Span | None) -> str | None:
    return None if span is None else text[span.start : span.end]
