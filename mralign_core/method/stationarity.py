"""Does P change along a trace? The likelihood ratio of two matrices, one a half, to one matrix for both.

An addition to the paper, which takes P as constant. Decisions:

* What is compared are label → label transitions of the first and the second half of each trace. <start> → and
  → <stop> are left out: each belongs to one half by construction. Of an odd number, the middle one is left out.
* Sets of two labels enter through Eq. 6. Without a prior, the likelihood is concave in P, so plain EM from the uniform
  matrix reaches its maximum; where several matrices reach it, the maximum is still one number.

Shapes: N traces, U distinct pairs of label sets, H tables of multiplicities, K states, R resamples.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.method import FloatArray, IntArray
from mralign_core.method.set_chains import SetChain, Traces, labelled_steps, simulate_moves
from mralign_core.method.set_pairs import membership, padded_sets

if TYPE_CHECKING:
    import torch

MIN_COUNT = 0.01
"""Soft counts below which a transition has not been seen, and takes no degree of freedom."""


class Halves(NamedTuple):
    """Label → label transitions of both halves, by distinct pair of label sets.

    Args:
        sources: (U, K) bool, membership in the set that is left.
        targets: (U, K) bool, membership in the set that is entered.
        first: (N, U) transitions in the first half of each trace.
        second: (N, U) transitions in the second half.
    """

    sources: NDArray[np.bool_]
    targets: NDArray[np.bool_]
    first: IntArray
    second: IntArray


class LikelihoodRatios(NamedTuple):
    """Likelihood-ratio statistics and their degrees of freedom, each (R,)."""

    values: FloatArray
    degrees_of_freedom: IntArray

    @property
    def standardised(self) -> FloatArray:
        """Less their mean and over their standard deviation, had they been χ²."""
        freedom = np.maximum(self.degrees_of_freedom, 1)
        standardised: FloatArray = (self.values - freedom) / np.sqrt(2 * freedom)
        return standardised


def split_halves(traces: Traces, num_states: int) -> Halves:
    """Count the label → label transitions of each half of each trace that has at least two.

    Args:
        traces: per trace, per step, the state indices of its labels; steps without any are skipped.
        num_states: K.

    >>> halves = split_halves([[(1,), (2,), (1,), (2,)], [(1,), (2,)]], num_states=4)
    >>> halves.first.tolist(), halves.second.tolist()  # 1→2, 2→1, 1→2: the middle one is left out
    ([[1]], [[1]])
    """
    walks = [labelled_steps(trace) for trace in traces]
    ids: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    rows = []
    for walk in (walk for walk in walks if len(walk) >= 3):
        pairs = list(pairwise(walk))
        half = len(pairs) // 2
        parts = pairs[:half], pairs[-half:]
        rows.append(tuple([ids.setdefault(pair, len(ids)) for pair in part] for part in parts))
    first, second = (
        np.array([np.bincount(row[side], minlength=len(ids)) for row in rows], dtype=np.int64).reshape(
            len(rows), len(ids)
        )
        for side in (0, 1)
    )
    sides = (padded_sets([pair[side] for pair in ids]) for side in (0, 1))
    sources, targets = (membership(sets, num_states) for sets in sides)
    return Halves(sources, targets, first, second)


def likelihood_ratios(sources: NDArray[np.bool_], targets: NDArray[np.bool_], tables: IntArray) -> LikelihoodRatios:
    """2 (log-likelihood with a matrix a half − with one matrix) of many tables of the same pairs.

    Args:
        sources: (U, K) bool, membership in the set that is left.
        targets: (U, K) bool, membership in the set that is entered.
        tables: (R, 2, U) transitions of both halves.

    >>> one, two = np.eye(2, dtype=bool)
    >>> halves = np.array([[[4, 0], [0, 4]]])  # first 1 → 1, then 1 → 2, from 1 only: 2 · 8 · log 2
    >>> ratios = likelihood_ratios(np.array([one, one]), np.array([one, two]), halves)
    >>> ratios.values.round(2).tolist(), ratios.degrees_of_freedom.tolist()
    ([11.09], [1])
    """
    three = np.concatenate([tables, tables.sum(axis=1, keepdims=True)], axis=1).astype(np.float64)
    flat, counts = max_log_likelihoods(sources, targets, three.reshape(-1, three.shape[-1]))
    first, second, pooled = flat.reshape(-1, 3).T
    freedom = _degrees_of_freedom(counts.reshape(len(tables), 3, *counts.shape[1:]))
    return LikelihoodRatios(np.maximum(2 * (first + second - pooled), 0.0), freedom)


def max_log_likelihoods(
    sources: NDArray[np.bool_],
    targets: NDArray[np.bool_],
    multiplicities: FloatArray,
    *,
    tolerance: float = 1e-4,
    num_iterations: int = 1000,
) -> tuple[FloatArray, FloatArray]:
    """Largest log-likelihood (Eq. 8) over all matrices, for several tables of the same pairs at once.

    Undamped EM without prior from the uniform matrix, until no table gains ``tolerance`` nats an iteration: the E-step
    and M-step of ``transitions``, for many tables side by side. Factors ρ are left out: they are the same for every
    matrix.

    Args:
        sources: (U, K) bool.
        targets: (U, K) bool.
        multiplicities: (H, U) transitions of each pair in each table.
        tolerance: nats.
        num_iterations: most iterations.

    Returns:
        (H,) log-likelihoods, and (H, K, K) soft counts.

    >>> one, two = np.eye(2, dtype=bool)
    >>> log_likelihoods, counts = max_log_likelihoods(np.array([one, one]), np.array([one, two]), np.array([[1.0, 3]]))
    >>> round(float(log_likelihoods[0]), 4), counts[0].tolist()  # 1 log ¼ + 3 log ¾
    (-2.2493, [[1.0, 3.0], [0.0, 0.0]])
    """
    import torch

    num_states = sources.shape[1]
    pair_of_path, cell_of_path = _paths(sources, targets)
    times_UH = torch.tensor(np.ascontiguousarray(multiplicities.T), dtype=torch.float64)
    p_CH = torch.full((num_states**2, len(multiplicities)), 1 / num_states, dtype=torch.float64)
    last_reached = torch.full((len(multiplicities),), -torch.inf, dtype=torch.float64)
    for _ in range(num_iterations):
        sums_UH = torch.zeros_like(times_UH).index_add_(0, pair_of_path, p_CH[cell_of_path])
        reached = torch.special.xlogy(times_UH, sums_UH).sum(dim=0)
        shares_UH = times_UH / sums_UH
        shares_UH[times_UH == 0] = 0
        counts_CH = p_CH * torch.zeros_like(p_CH).index_add_(0, cell_of_path, shares_UH[pair_of_path])
        if bool((reached - last_reached < tolerance).all()):
            break
        last_reached = reached
        counts_KKH = counts_CH.reshape(num_states, num_states, -1)
        p_CH = (counts_KKH / counts_KKH.sum(dim=1, keepdim=True).clamp_min(1e-300)).reshape(p_CH.shape)
    return reached.numpy(), counts_CH.T.reshape(-1, num_states, num_states).numpy()


def chi2_tail(statistic: float, degrees_of_freedom: int) -> float:
    """Probability that χ² with so many degrees of freedom is at least as large.

    >>> round(chi2_tail(3.841, 1), 3), chi2_tail(0.0, 4), chi2_tail(1.0, 0)
    (0.05, 1.0, 1.0)
    """
    if degrees_of_freedom < 1 or statistic <= 0:
        return 1.0
    import torch

    half = torch.tensor([degrees_of_freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def simulate_halves(chain: SetChain, pairs: IntArray, num_resamples: int, rng: np.random.Generator) -> IntArray:
    """Transitions of both halves in sets of as many simulated walks as there are traces, (R, 2, U).

    Args:
        chain: where walks go.
        pairs: (U, 2) the set numbers of label → label transitions that are counted, all that can occur.
        num_resamples: R.
        rng: seeded generator.

    >>> from mralign_core.method.set_chains import fit_set_chain
    >>> chain, _ = fit_set_chain([[(1,), (2,), (3,)]])
    >>> simulate_halves(chain, np.array([[1, 2], [2, 3]]), 1, np.random.default_rng(0)).tolist()
    [[[1, 0], [0, 1]]]
    """
    pair_id = np.full((chain.stop + 1, chain.stop + 1), -1, dtype=np.int64)
    pair_id[pairs[:, 0], pairs[:, 1]] = np.arange(len(pairs))
    length = np.zeros(num_resamples * chain.num_walks, dtype=np.int64)
    inner: list[tuple[IntArray, IntArray]] = []
    for move in simulate_moves(chain, len(length), rng):
        between = (move.left > 0) & (move.entered < chain.stop)
        inner.append((move.walk[between], pair_id[move.left[between], move.entered[between]]))
        length[move.walk[between]] += 1
    tables = np.zeros((num_resamples, 2, len(pairs)), dtype=np.int64)
    # The first move, out of <start>, is no label → label transition: the one made at step s has place s - 1.
    for place, (walk, pair) in enumerate(inner[1:]):
        half = length[walk] // 2
        for side, within in enumerate((place < half, place >= length[walk] - half)):
            np.add.at(tables, (walk[within] // chain.num_walks, side, pair[within]), 1)
    return tables


def _paths(sources: NDArray[np.bool_], targets: NDArray[np.bool_]) -> tuple[torch.Tensor, torch.Tensor]:
    """Every base pair of every pair of sets: which pair of sets it is of, and its cell in a flat matrix."""
    import torch

    pair, source, target = np.nonzero(sources[:, :, None] & targets[:, None, :])
    return torch.tensor(pair), torch.tensor(source * sources.shape[1] + target)


def _degrees_of_freedom(counts: FloatArray) -> IntArray:
    """Over rows with counts in both halves, the cells that have any in the pooled table, less one.

    Args:
        counts: (R, 3, K, K) soft counts of the first half, the second, and both.
    """
    in_both = (counts[:, :2].sum(axis=3) > MIN_COUNT).all(axis=1)
    cells = (counts[:, 2] > MIN_COUNT).sum(axis=2)
    freedom: IntArray = ((cells - 1) * in_both).sum(axis=1)
    return freedom
