"""Does the next label set depend on more than the present one? Held-out scores of chains of order zero, one and two.

An addition to the paper, which takes order one for granted. Decisions:

* What is scored are transitions that have two predecessors, {<start>} → y₁ being one.
* States are whole label sets. With labels as states, a longer context would tell which set the present label came
  from, and a first-order chain of sets would seem to have memory. So it is the order of the chain of sets that is
  tested: Eq. 6, first-order in labels, is one such chain of order one.

Shapes: T transitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mralign_core.method import FloatArray, IntArray
from mralign_core.method.set_chains import SetChain, joined, simulate_moves


class Triples(NamedTuple):
    """Transitions with two predecessors: set numbers, each (T,), and which trace they are of, (T,)."""

    before: IntArray
    source: IntArray
    target: IntArray
    trace: IntArray
    num_traces: int


class Smoothing(NamedTuple):
    """How held-out probabilities are made.

    Args:
        num_targets: sets that can be entered, <stop> among them.
        num_folds: folds, of whole traces.
        prior: pseudo-count of each target.
        kappa: pseudo-counts with which each order leans on the one below.
    """

    num_targets: int
    num_folds: int
    prior: float
    kappa: float


def triples_of(walks: Sequence[IntArray]) -> Triples:
    """Transitions of walks from <start> to <stop> that have two predecessors.

    >>> triples = triples_of([np.array([0, 1, 2, 3])])
    >>> triples.before.tolist(), triples.source.tolist(), triples.target.tolist()
    ([0, 1], [1, 2], [2, 3])
    """
    before, source, target = (joined([walk[shift : len(walk) - 2 + shift] for walk in walks]) for shift in range(3))
    trace = np.repeat(np.arange(len(walks)), [len(walk) - 2 for walk in walks])
    return Triples(before, source, target, trace, len(walks))


def simulate_triples(chain: SetChain, rng: np.random.Generator) -> Triples:
    """The triples of as many simulated walks as there are traces.

    >>> from mralign_core.method.set_chains import fit_set_chain
    >>> chain, _ = fit_set_chain([[(1,), (2,)]])
    >>> simulate_triples(chain, np.random.default_rng(0)).target.tolist()
    [2, 3]
    """
    before = np.zeros(chain.num_walks, dtype=np.int64)
    moves, befores = list(simulate_moves(chain, chain.num_walks, rng)), []
    for move in moves:
        befores.append(before[move.walk])
        before[move.walk] = move.left
    # The first move has one predecessor only.
    walk, left, entered = (joined(list(column)) for column in zip(*moves[1:], strict=True))
    return Triples(joined(befores[1:]), left, entered, walk, chain.num_walks)


def held_out_scores(triples: Triples, smoothing: Smoothing, folds: IntArray) -> FloatArray:
    """Log-probability of each transition under chains of order zero, one and two, from the other folds, (T, 3).

    With C the counts of the other folds: P(c) ∝ C_c + prior, P(c | b) ∝ C_bc + kappa · P(c), and
    P(c | a, b) ∝ C_abc + kappa · P(c | b).

    Args:
        triples: the transitions, a before b before c.
        smoothing: number of folds, and pseudo-counts.
        folds: fold of each trace, from 0.

    >>> twice = triples_of([np.array([0, 1, 1, 2])] * 2)  # two traces 1, 1, each held out once
    >>> smoothing = Smoothing(num_targets=2, num_folds=2, prior=1.0, kappa=1.0)
    >>> np.exp(held_out_scores(twice, smoothing, np.array([0, 1])))[0].round(2).tolist()
    [0.5, 0.5, 0.75]
    """
    fold = folds[triples.trace]
    base = smoothing.num_targets + 1
    context = triples.before * base + triples.source

    def others(key: IntArray) -> IntArray:
        return _count_in_other_folds(key, fold, smoothing.num_folds)

    num_others = others(np.zeros_like(fold))
    zeroth = (others(triples.target) + smoothing.prior) / (num_others + smoothing.prior * smoothing.num_targets)
    pair, triple = triples.source * base + triples.target, context * base + triples.target
    first = (others(pair) + smoothing.kappa * zeroth) / (others(triples.source) + smoothing.kappa)
    second = (others(triple) + smoothing.kappa * first) / (others(context) + smoothing.kappa)
    logs: FloatArray = np.log(np.stack([zeroth, first, second], axis=1))
    return logs


def _count_in_other_folds(key: IntArray, fold: IntArray, num_folds: int) -> IntArray:
    """For each transition, how many of the other folds have the same key, (T,)."""
    _, place = np.unique(key, return_inverse=True)
    within = place * num_folds + fold
    number: IntArray = np.bincount(place)[place] - np.bincount(within)[within]
    return number
