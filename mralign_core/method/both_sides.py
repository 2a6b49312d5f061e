"""Which draws of a question the transition matrices are estimated from, where it is not the selected traces.

A departure from the paper, off by default (``estimate.traces``). The paper estimates P⁺ and P⁻ from the selected traces
(:mod:`mralign_core.method.selection`), whose questions are right in every draw or wrong in every draw: few traces, and
of different questions on either side, so that the kind of question can pass for a habit of thinking. Draws that end
right and draws that end wrong on the *same* question differ in how they went, not in what was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal


def draws_on_both_sides(is_right: Sequence[bool | None], take: Literal["all_draws", "matched"]) -> list[int]:
    """Indices of the draws of one question that count, in ascending order.

    Args:
        is_right: per draw, in the order of draws, whether its answer is right; None for a draw that is no trace: it
            failed, has no well-formed thinking and answer, or is too short or too long.
        take: "all_draws" takes every trace, so that right and wrong ones have their natural shares; "matched" the first
            min(right, wrong) of either, so that both sides have the same questions in the same numbers, and none of
            a question that only ever ends right, or only wrong.

    Raises:
        ValueError: ``take`` is unknown.

    >>> draws_on_both_sides([True, None, False, True, True], "all_draws")
    [0, 2, 3, 4]
    >>> draws_on_both_sides([True, None, False, True, True], "matched")
    [0, 2]
    """
    right, wrong = ([draw for draw, one in enumerate(is_right) if one is side] for side in (True, False))
    if take == "all_draws":
        return sorted([*right, *wrong])
    if take != "matched":
        raise ValueError(f"take is {take!r}; it must be 'all_draws' or 'matched'")
    return sorted(draw for pair in zip(right, wrong, strict=False) for draw in pair)
