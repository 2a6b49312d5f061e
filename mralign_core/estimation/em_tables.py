"""EM of many tables of the same transitions side by side: Algorithm 2 as ``method.transitions`` has it, only faster.

Permutations and left-out questions need thousands of estimates whose pairs of label sets are the same and whose counts
differ. One product with a sparse matrix, pairs × base pairs, is the E-step of all of them.

Shapes: H tables, U distinct pairs of label sets, K states, C = K² cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.method import FloatArray
from mralign_core.method.set_pairs import SetPairCounts
from mralign_core.method.transitions import transition_mask

if TYPE_CHECKING:
    from scipy import sparse


class TransitionTables(NamedTuple):
    """Estimates of many tables: transition probabilities and soft counts, both (H, K, K)."""

    p: FloatArray
    counts: FloatArray


def fit_em_tables(
    pairs: SetPairCounts,
    multiplicities: NDArray[Any],
    *,
    num_iterations: int = 5,
    damping: float = 0.6,
    prior: float = 0.1,
    tolerance: float = 1e-6,
) -> TransitionTables:
    """The matrices of ``transitions.fit_em``, for many tables of the same pairs side by side, without log-likelihoods.

    Args:
        pairs: the transitions; their own multiplicities are not read.
        multiplicities: (H, U) occurrences of each pair in each table, at least 0.
        num_iterations: most iterations, of each table.
        damping: step towards the M-step's matrix, in (0, 1].
        prior: Dirichlet pseudo-count of each allowed transition, above 0.
        tolerance: a table stops when no entry of its P differs by this much from the iteration before.

    Raises:
        ValueError: the prior is 0, so that a pair could become impossible.

    >>> states = np.eye(3, dtype=bool)  # <start> → 1 → <stop>, nine times in one table and never in the other
    >>> pairs = SetPairCounts(states[:2], states[1:], np.array([9, 9]), 9, 0, 0)
    >>> fit_em_tables(pairs, np.array([[9, 9], [0, 0]]), damping=1.0, prior=1.0).p[:, 0].round(3).tolist()
    [[0.0, 0.909, 0.091], [0.0, 0.5, 0.5]]
    """
    num_states = pairs.sources.shape[1]
    if prior <= 0:
        raise ValueError(f"prior is {prior}; it must be above 0")
    mask = transition_mask(num_states)
    flat_mask = mask.reshape(-1, 1)
    paths = _paths(pairs)
    times_UH = np.ascontiguousarray(multiplicities.T, dtype=np.float64)
    p_CH = np.repeat((mask / mask.sum(axis=1, keepdims=True)).reshape(-1, 1), times_UH.shape[1], axis=1)
    counts_CH, going = np.zeros_like(p_CH), np.arange(times_UH.shape[1])
    for iteration in range(num_iterations):
        p, times = p_CH[:, going], times_UH[:, going]
        counts = _e_step(p, paths, times)
        posterior = ((counts + prior) * flat_mask).reshape(num_states, num_states, -1)
        moved = (1 - damping) * p + damping * (posterior / posterior.sum(axis=1, keepdims=True)).reshape(p.shape)
        p_CH[:, going], counts_CH[:, going] = moved, counts
        if iteration:
            going = going[np.abs(moved - p).max(axis=0, initial=0.0) >= tolerance]
        if not len(going):
            break
    shape = (-1, num_states, num_states)
    return TransitionTables(p_CH.T.reshape(shape), counts_CH.T.reshape(shape))


def expected_counts(p: FloatArray, pairs: SetPairCounts, multiplicities: NDArray[Any]) -> FloatArray:
    """The soft counts of ``transitions.e_step``, for many tables of the same pairs, each under a matrix of its own.

    Args:
        p: (H, K, K) transition matrices, above 0 on some base pair of each pair that occurs.
        pairs: the transitions; their own multiplicities are not read.
        multiplicities: (H, U) occurrences of each pair in each table.

    Returns:
        (H, K, K).

    >>> states = np.eye(3, dtype=bool)
    >>> pairs = SetPairCounts(states[:1], states[1:2], np.array([0]), 0, 0, 0)
    >>> expected_counts(np.full((1, 3, 3), 0.5), pairs, np.array([[4]]))[0, 0].tolist()
    [0.0, 4.0, 0.0]
    """
    times_UH = np.ascontiguousarray(multiplicities.T, dtype=np.float64)
    counts_CH = _e_step(p.reshape(len(p), -1).T, _paths(pairs), times_UH)
    return counts_CH.T.reshape(p.shape)


def _paths(pairs: SetPairCounts) -> sparse.csr_array:
    """Which base pairs each pair of sets has, (U, C)."""
    from scipy import sparse

    return sparse.csr_array(
        (pairs.sources[:, :, None] & pairs.targets[:, None, :]).reshape(len(pairs.sources), -1) * 1.0
    )


def _e_step(p_CH: FloatArray, paths: sparse.csr_array, times_UH: FloatArray) -> FloatArray:
    """Expected base pairs of each table, (C, H)."""
    sums = paths @ p_CH
    counts: FloatArray = p_CH * (paths.T @ np.divide(times_UH, sums, where=sums > 0, out=np.zeros_like(sums)))
    return counts
