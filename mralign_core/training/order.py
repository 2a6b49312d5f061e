"""Which rows come in which step, and how the rows of a step are shared out over devices and forward passes.

Everything here follows from (seed, epoch) and the lengths of the rows, so every process finds the same plan, and a
restart needs no saved order.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Lengths = Sequence[int] | Mapping[int, int]
"""Tokens of each row, by its number."""


class ForwardPass(NamedTuple):
    """Rows that go through the model together. A filler only keeps a process in step with the others."""

    rows: list[int]
    is_filler: bool = False


def step_rows(rows: Sequence[int], *, step: int, rows_per_epoch: int, batch_size: int, seed: int) -> list[int]:
    """The rows of an optimiser step.

    Rows come in shuffled passes that follow each other without a break, cut into epochs of ``rows_per_epoch``: with
    fewer rows than that (SFT sees only the positives but takes as many steps as KTO) an epoch runs through them again,
    in a new order. The last step of an epoch may be short.

    Args:
        rows: row numbers to train on.
        step: optimiser steps done.
        rows_per_epoch: rows in one epoch.
        batch_size: rows in one step, over all devices.
        seed: with the number of the pass, decides the order.
    """
    epoch, step_in_epoch = divmod(step, steps_per_epoch(rows_per_epoch, batch_size))
    start = epoch * rows_per_epoch + step_in_epoch * batch_size
    end = min(start + batch_size, (epoch + 1) * rows_per_epoch)
    passes = (divmod(position, len(rows)) for position in range(start, end))
    return [rows[_shuffled(seed, number, len(rows))[index]] for number, index in passes]


def steps_per_epoch(rows_per_epoch: int, batch_size: int) -> int:
    """Optimiser steps in an epoch; the last may be short."""
    return -(-rows_per_epoch // batch_size)


def shares(rows: Sequence[int], lengths: Lengths, num_processes: int) -> list[list[int]]:
    """The rows of each process: about as many tokens for each.

    Args:
        rows: row numbers of a step.
        lengths: tokens of the rows.
        num_processes: how many share.

    Example:
        >>> shares([0, 1, 2, 3], [10, 40, 20, 30], 2)
        [[1, 0], [3, 2]]
    """
    ordered = _longest_first(rows, lengths)
    there_and_back = [*range(num_processes), *reversed(range(num_processes))]
    parts: list[list[int]] = [[] for _ in range(num_processes)]
    for position, row in enumerate(ordered):
        parts[there_and_back[position % len(there_and_back)]].append(row)
    return parts


def forward_passes(rows: Sequence[int], lengths: Lengths, budget: int, *, padded: bool = False) -> list[list[int]]:
    """The rows of each forward pass, longest first, so that a lack of memory shows at once.

    Args:
        rows: row numbers.
        lengths: tokens of the rows.
        budget: most tokens of a pass; a longer row has a pass of its own.
        padded: count each row as long as the longest of its pass.

    Example:
        >>> forward_passes([0, 1, 2, 3], [10, 40, 20, 30], 60)
        [[1], [3, 2, 0]]
        >>> forward_passes([0, 1, 2, 3], [10, 40, 20, 30], 60, padded=True)
        [[1], [3, 2], [0]]
    """
    passes: list[list[int]] = []
    room = 0
    for row in _longest_first(rows, lengths):
        size = lengths[passes[-1][0]] if padded and passes else lengths[row]
        if not passes or size > room:
            passes.append([])
            room, size = budget, lengths[row]
        passes[-1].append(row)
        room -= size
    return passes


def aligned_passes(
    rows: Sequence[int], lengths: Lengths, budget: int, num_processes: int, *, padded: bool = False
) -> list[list[ForwardPass]]:
    """The forward passes of each process, equally many, as sharded weights need: all gather them together.

    A process with fewer passes, or without a row in a short step, repeats a pass whose result does not count.

    Example:
        >>> aligned_passes([0, 1, 2], [10, 40, 20], 30, 2)[1]
        [ForwardPass(rows=[2, 0], is_filler=False)]
        >>> aligned_passes([0], [10], 30, 2)[1]
        [ForwardPass(rows=[0], is_filler=True)]
    """
    plans = [
        [ForwardPass(part) for part in forward_passes(share, lengths, budget, padded=padded)]
        for share in shares(rows, lengths, num_processes)
    ]
    longest = max(map(len, plans))
    shortest_row = min(rows, key=lambda row: (lengths[row], row))
    filler = ForwardPass([shortest_row], is_filler=True)
    return [plan + [filler] * (longest - len(plan)) for plan in plans]


def _longest_first(rows: Sequence[int], lengths: Lengths) -> list[int]:
    return sorted(rows, key=lambda row: (-lengths[row], row))


@functools.lru_cache(maxsize=4)
def _shuffled(seed: int, number: int, num_rows: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, number]).permutation(num_rows).tolist())
