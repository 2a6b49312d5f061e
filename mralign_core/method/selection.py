"""Which questions and which of their draws become training traces (§3.1.1, App. D.2).

Departures, each an option: keep every distinct draw that passes the filter; make only the draws that can still
matter (:func:`next_draw`). A question is kept only if all its draws agree, so the first one that does not decides it,
and the selected questions are the same as with every draw made.

Decisions where the paper is silent: the length bounds are inclusive; the kept trace is the first draw that
passes the filter; a question that is not kept is counted under the first draw, in the order of :func:`next_draw`,
that ruled it out, so that the counts too are the same. A draw that failed is neither right nor wrong (None): it decides
nothing, and where no earlier one did its question is left undecided, whatever draws are there behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Literal, NamedTuple

UNDECIDED = "a draw failed"
"""Why a question has no polarity that waits for a draw which is neither right nor wrong."""
Polarity = Literal["positive", "negative"]
ThinkingMode = Literal["on", "off"]


class Verdict(NamedTuple):
    """Polarity of a question, or why it has none."""

    polarity: Polarity | None
    reason: str


class LengthBounds(NamedTuple):
    """Inclusive bounds on the number of segments and of thinking tokens of a kept trace."""

    min_segments: int
    max_segments: int
    min_reasoning_tokens: int
    max_reasoning_tokens: int


def question_polarity(right_on: Sequence[bool], right_off: Sequence[bool]) -> Polarity | None:
    """Polarity of a question, or None where its draws don't all say the same.

    Implements §3.1.1 of arXiv 2510.24794: positive if every draw has (z_on, z_off) = (1, 0), negative if
    every draw has (0, 1).

    Args:
        right_on: per draw, whether the answer given with thinking is right (z_on).
        right_off: the same without thinking (z_off).

    Returns:
        "positive", "negative" or None; None too where there is no draw.

    Raises:
        ValueError: the two modes have different numbers of draws.

    >>> question_polarity([True, True, True], [False, False, False])
    'positive'
    >>> question_polarity([True, True, False], [False, False, False]) is None
    True
    """
    outcomes = {(bool(on), bool(off)) for on, off in zip(right_on, right_off, strict=True)}
    if outcomes == {(True, False)}:
        return "positive"
    if outcomes == {(False, True)}:
        return "negative"
    return None


def next_draw(
    right_off: Sequence[bool | None], right_on: Sequence[bool | None], num_draws: int
) -> tuple[ThinkingMode, int] | None:
    """The next draw of a question that can still matter, or None where it is decided, or waits for one that failed.

    Without thinking first, because those draws are short; then with thinking, one at a time. A question is decided at
    the first pair that rules out both (1, 0) and (0, 1) in every draw.

    Args:
        right_off: whether the answers given so far without thinking are right, draw by draw; None for a draw that
            failed.
        right_on: the same with thinking.
        num_draws: draws per mode (the paper's N).

    Returns:
        Thinking mode and number, from 0, of the draw to make.

    >>> next_draw([True, True, True], [False], num_draws=3)
    ('on', 1)
    >>> next_draw([True, True, True], [False, True], num_draws=3) is None
    True
    """
    if None in right_off or None in right_on:
        return None
    if len(set(right_off)) > 1 or set(right_off) & set(right_on):
        return None
    if len(right_off) < num_draws:
        return "off", len(right_off)
    return ("on", len(right_on)) if len(right_on) < num_draws else None


def judge_question(right_off: Sequence[bool | None], right_on: Sequence[bool | None], num_draws: int) -> Verdict:
    """Polarity of a question from all its draws, or from those that :func:`next_draw` asked for.

    Both give the same verdict, with the same reason.

    Args:
        right_off: whether the answers given without thinking are right, draw by draw; None for a draw that failed.
        right_on: the same with thinking.
        num_draws: draws per mode.

    >>> judge_question([True, True], [False, True], num_draws=2)
    Verdict(polarity=None, reason='a think-on draw is right too')
    >>> judge_question([True, None], [False, False], num_draws=2)
    Verdict(polarity=None, reason='a draw failed')
    """
    off = _before_failure(right_off)
    on = _before_failure(right_on) if len(off) == len(right_off) else []
    if len(off) == len(on) == num_draws and (polarity := question_polarity(on, off)):
        return Verdict(polarity, "")
    if len(set(off)) > 1:
        return Verdict(None, "think-off draws disagree")
    if both := set(off) & set(on):
        return Verdict(None, f"a think-on draw is {'right' if True in both else 'wrong'} too")
    return Verdict(None, UNDECIDED if None in (*right_off, *right_on) else "draws are missing")


def _before_failure(right: Sequence[bool | None]) -> list[bool]:
    """The draws up to the first that failed: those that would have been made if one waited for another."""
    return [bool(one) for one in takewhile(lambda one: one is not None, right)]


def length_problem(num_segments: int, num_tokens: int, bounds: LengthBounds) -> str:
    """Why a trace is too short or too long to keep; "" where it is kept.

    The reason has the limit but not the trace's own number in it, so that reasons can be counted.

    >>> length_problem(3, 500, LengthBounds(4, 15, 450, 1000))
    'fewer than 4 segments'
    """
    if num_segments < bounds.min_segments:
        return f"fewer than {bounds.min_segments} segments"
    if num_segments > bounds.max_segments:
        return f"more than {bounds.max_segments} segments"
    if num_tokens < bounds.min_reasoning_tokens:
        return f"fewer than {bounds.min_reasoning_tokens} reasoning tokens"
    if num_tokens > bounds.max_reasoning_tokens:
        return f"more than {bounds.max_reasoning_tokens} reasoning tokens"
    return ""


def choose_draws(
    completions: Sequence[Sequence[int]], passes: Sequence[bool], keep: Literal["first", "all_distinct"]
) -> list[int]:
    """Indices of the draws of one question that are kept as traces, in ascending order.

    Args:
        completions: token ids of each draw; draws are the same when their token ids are.
        passes: per draw, whether it passes the length filter.
        keep: "first" keeps the first draw that passes, "all_distinct" the first of each distinct one.

    Raises:
        ValueError: ``completions`` and ``passes`` differ in length, or ``keep`` is unknown.

    >>> choose_draws([(5, 6), (5, 6), (5, 7)], [True, True, True], "all_distinct")
    [0, 2]
    """
    if keep not in ("first", "all_distinct"):
        raise ValueError(f"keep is {keep!r}; it must be 'first' or 'all_distinct'")
    first_seen: dict[tuple[int, ...], int] = {}
    for draw, (completion, kept) in enumerate(zip(completions, passes, strict=True)):
        if kept:
            first_seen.setdefault(tuple(completion), draw)
    draws = list(first_seen.values())
    return draws[:1] if keep == "first" else draws
