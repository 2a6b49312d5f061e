"""Which questions and which of their draws become training traces (§3.1.1, App. D.2).

Decisions where the paper is silent: the length bounds are inclusive; the kept trace is the first draw that
passes the filter. A departure, as an option: keep every distinct draw that passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Polarity = Literal["positive", "negative"]


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
