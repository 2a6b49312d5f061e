"""Transitions between label sets: what they are in the columns of many traces, and how often each occurs (§3.2.2).

A label set is a row of its states in ascending order, with 0 behind the last one. As a whole number it is first state
· K + second, so that a transition is one too: its *code*, number of the set left · K² + number of the set entered. The
number 0 is {<start>} where a set is left, and the empty set in a step.

Decisions where the paper is silent: a step with no label is skipped, and the transition joins its labelled neighbours;
a trace with no labelled step tells nothing and is left out. Both are counted.

Shapes: N traces, T steps, M transitions, U distinct pairs of label sets, L most labels of a set, K states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.method import IntArray


class SetPairCounts(NamedTuple):
    """Every distinct transition between two label sets, once, with how often it occurs.

    Args:
        sources: (U, K) bool, membership of each state in the set that is left.
        targets: (U, K) bool, membership in the set that is entered.
        multiplicities: (U,) int64, occurrences of each pair.
        num_traces: traces that were counted.
        num_empty_steps: steps without a label, skipped.
        num_empty_traces: traces without a labelled step, left out.
    """

    sources: NDArray[np.bool_]
    targets: NDArray[np.bool_]
    multiplicities: IntArray
    num_traces: int
    num_empty_steps: int
    num_empty_traces: int

    @property
    def num_transitions(self) -> int:
        """Transitions counted, <start> and <stop> included."""
        return int(self.multiplicities.sum())


class Moves(NamedTuple):
    """Transitions into steps (or into <stop>), each (M,): number of the set left, of the set entered, trace, step."""

    sources: IntArray
    targets: IntArray
    traces: IntArray
    steps: IntArray


def moves_into_steps(labels: IntArray, trace_of_step: IntArray, num_states: int) -> Moves:
    """Transitions into each labelled step, from <start> or from the last labelled step before it.

    Args:
        labels: (T, 2) states of each step, 0 where there is none; the steps of a trace are together and in order.
        trace_of_step: (T,) which trace each step belongs to.
        num_states: K.

    >>> moves = moves_into_steps(np.array([[1, 0], [0, 0], [1, 2], [2, 0]]), np.array([0, 0, 0, 1]), 4)
    >>> moves.sources.tolist(), moves.targets.tolist(), moves.steps.tolist()  # <start> → 1 → {1, 2}; <start> → 2
    ([0, 4, 0], [4, 6, 8], [0, 2, 3])
    """
    numbers = set_numbers(labels, num_states)
    steps = np.flatnonzero(numbers)
    targets, traces = numbers[steps], trace_of_step[steps]
    sources = np.zeros_like(targets)
    is_same_trace = traces[1:] == traces[:-1]
    sources[1:] = np.where(is_same_trace, targets[:-1], 0)
    return Moves(sources, targets, traces, steps)


def moves_into_stop(moves: Moves, num_states: int) -> Moves:
    """Transitions from the last labelled step of each trace into <stop>.

    Args:
        moves: all transitions into steps, from :func:`moves_into_steps`.
        num_states: K.

    >>> moves = moves_into_steps(np.array([[1, 0], [2, 0], [1, 2]]), np.array([0, 0, 1]), 4)
    >>> into_stop = moves_into_stop(moves, 4)
    >>> into_stop.sources.tolist(), into_stop.targets.tolist()  # 2 → <stop>, {1, 2} → <stop>
    ([8, 6], [12, 12])
    """
    last = np.flatnonzero(np.diff(moves.traces, append=-1))
    stop = np.full(len(last), (num_states - 1) * num_states)
    return Moves(moves.targets[last], stop, moves.traces[last], moves.steps[last])


def set_numbers(labels: IntArray, num_states: int) -> IntArray:
    """A number for each label set, (T,); 0 is the empty set.

    Args:
        labels: (T, 2) states of each set, ascending, 0 where there is none.
        num_states: K.

    >>> set_numbers(np.array([[0, 0], [1, 0], [1, 2], [2, 0]]), 4).tolist()
    [0, 4, 6, 8]
    """
    numbers: IntArray = labels[:, 0] * num_states + labels[:, 1]
    return numbers


def members_of_codes(codes: IntArray, num_states: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Membership of each state in the sets that transitions leave and enter, twice (U, K).

    Args:
        codes: (U,) of transitions.
        num_states: K.

    >>> left, entered = members_of_codes(np.array([0 * 16 + 6]), 4)  # <start> → {1, 2}
    >>> left.astype(int).tolist(), entered.astype(int).tolist()
    ([[1, 0, 0, 0]], [[0, 1, 1, 0]])
    """
    sources, targets = (np.stack(np.divmod(side, num_states), axis=1) for side in np.divmod(codes, num_states**2))
    return membership(sources, num_states), membership(targets, num_states)


def membership(sets: IntArray, num_states: int) -> NDArray[np.bool_]:
    """Which states are in each of many sets, (U, K).

    Args:
        sets: (U, L) states of each set, at least one, with 0 behind the last; 0 comes first in {<start>} only.
        num_states: K.

    >>> membership(np.array([[1, 2], [2, 0], [0, 0]]), 4).astype(int).tolist()
    [[0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0]]
    """
    member_UK = np.zeros((len(sets), num_states), dtype=np.bool_)
    rows = np.arange(len(sets))
    member_UK[rows, sets[:, 0]] = True
    for states in sets.T[1:]:
        member_UK[rows[states > 0], states[states > 0]] = True
    return member_UK


def padded_sets(sets: Sequence[Sequence[int]]) -> IntArray:
    """Sets as the rows that :func:`membership` takes, (U, L).

    Args:
        sets: the states of each, ascending, at least one.

    >>> padded_sets([(1, 2), (2,)]).tolist()
    [[1, 2], [2, 0]]
    """
    most = max(map(len, sets), default=1)
    return np.array([(*states, *[0] * (most - len(states))) for states in sets], dtype=np.int64).reshape(-1, most)
