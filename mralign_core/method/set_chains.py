"""First-order chains whose states are whole label sets: fitted to traces, and simulated. An addition to the paper.

Label sets are numbered: 0 is <start>, the sets that occur are 1 and up in ascending order, and the one after them is
<stop>.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mralign_core.method import IntArray

Traces = Sequence[Sequence[Sequence[int]]]
"""Per trace, per step, the state indices of its labels."""


class SetChain(NamedTuple):
    """The first-order chain of whole label sets that traces follow, <start> and <stop> included.

    Args:
        names: the label sets; set number 0 is <start>, these have 1 and up, and the one after them is <stop>.
        successors: sets that followed, with repetitions, grouped by the set before.
        offset: where the group of each set begins.
        size: how many there are in it.
        num_walks: traces it was made from.
    """

    names: list[tuple[int, ...]]
    successors: IntArray
    offset: IntArray
    size: IntArray
    num_walks: int

    @property
    def stop(self) -> int:
        """The set number of <stop>."""
        return len(self.names) + 1


class SimulatedMoves(NamedTuple):
    """One step of the simulated walks that have not stopped: which they are, the set left, the set entered."""

    walk: IntArray
    left: IntArray
    entered: IntArray


def fit_set_chain(traces: Traces) -> tuple[SetChain, list[IntArray]]:
    """The chain that traces follow, and the traces with a label as walks over set numbers, from <start> to <stop>.

    Args:
        traces: per trace, per step, the state indices of its labels; steps without any are skipped.

    >>> chain, walks = fit_set_chain([[(1,), (), (1, 2)], [(1,)]])
    >>> chain.names, [walk.tolist() for walk in walks]
    ([(1,), (1, 2)], [[0, 1, 2, 3], [0, 1, 3]])
    """
    labelled = [walk for walk in (labelled_steps(trace) for trace in traces) if walk]
    names = sorted({step for walk in labelled for step in walk})
    number = {step: place for place, step in enumerate(names, start=1)}
    stop = len(names) + 1
    walks = [np.array([0, *(number[step] for step in walk), stop], dtype=np.int64) for walk in labelled]
    left, entered = (joined([walk[side] for walk in walks]) for side in (slice(None, -1), slice(1, None)))
    size = np.bincount(left, minlength=stop + 1)
    offset = np.cumsum(size) - size
    return SetChain(names, entered[np.argsort(left, kind="stable")], offset, size, len(walks)), walks


def simulate_moves(chain: SetChain, num_walks: int, rng: np.random.Generator) -> Iterator[SimulatedMoves]:
    """Walk from <start> until all have entered <stop>: one item a step, with the walks that have not stopped.

    Args:
        chain: where walks go.
        num_walks: walks, side by side.
        rng: seeded generator.

    >>> chain, _ = fit_set_chain([[(1,), (2,)]])
    >>> [moves.entered.tolist() for moves in simulate_moves(chain, 2, np.random.default_rng(0))]
    [[1, 1], [2, 2], [3, 3]]
    """
    walk, left = np.arange(num_walks), np.zeros(num_walks, dtype=np.int64)
    while len(walk):
        entered = chain.successors[chain.offset[left] + rng.integers(chain.size[left])]
        yield SimulatedMoves(walk, left, entered)
        goes_on = entered < chain.stop
        walk, left = walk[goes_on], entered[goes_on]


def labelled_steps(trace: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The label sets of a trace's steps in ascending order, without steps that have none.

    >>> labelled_steps([(2, 1), (), (1,)])
    [(1, 2), (1,)]
    """
    return [tuple(sorted({int(state) for state in step})) for step in trace if len(step)]


def joined(parts: Sequence[IntArray]) -> IntArray:
    """The parts behind each other; nothing where there is none.

    >>> joined([np.array([1]), np.array([2, 3])]).tolist(), joined([]).tolist()
    ([1, 2, 3], [])
    """
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
