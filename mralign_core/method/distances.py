"""How far two transition matrices, or two sets of weights of the same segments, are apart (App. B.5, Eq. 13).

Decisions where the paper is silent: Eq. 13's mean is over rows, of the sum over a row; see :func:`matrix_distance` for
its unit. Where one matrix is measured against another of the same traces, rows count as often as their state is left
(:func:`weighted_distance`).

Shapes: K states, N segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mralign_core.method import FloatArray


class MatrixDistance(NamedTuple):
    """Distance of two transition matrices, over the rows that both estimated from data.

    Args:
        mean_l1: mean over rows of Σ_b |P_ab − Q_ab|, in [0, 2].
        num_rows: rows in that mean.
        num_rows_of_one: rows with support in only one of the two, left out.
    """

    mean_l1: float
    num_rows: int
    num_rows_of_one: int

    @property
    def total_variation(self) -> float:
        """Mean over rows of the total variation, half the L1 distance, in [0, 1]."""
        return self.mean_l1 / 2


@dataclass(frozen=True)
class WeightShift:
    """How two sets of weights of the same segments differ.

    Args:
        num_segments: N.
        mean_abs_log_ratio: mean of |log w − log w′|.
        share_crossing: share of segments that one up-weights (w > 1) and the other down-weights (w < 1).
    """

    num_segments: int
    mean_abs_log_ratio: float
    share_crossing: float


def matrix_distance(
    p: FloatArray, q: FloatArray, counts_p: FloatArray, counts_q: FloatArray, *, min_support: float = 1.0
) -> MatrixDistance:
    """Mean L1 distance between transition matrices that were estimated from different annotators' labels.

    Implements Eq. 13 of arXiv 2510.24794, read as the mean over rows a of Σ_b |P_ab − Q_ab|. The paper gives 1.0–1.3 %
    without the unit: total variation is half of this, and a mean over the entries of a row is this divided by K.

    Args:
        p: (K, K) transition matrix; rows sum to one.
        q: (K, K) the other.
        counts_p: (K, K) soft counts behind p.
        counts_q: (K, K) soft counts behind q.
        min_support: soft counts that a row needs in both; other rows hold little but the prior.

    >>> p, q = np.array([[0.5, 0.5], [0, 1]]), np.array([[0.75, 0.25], [1, 0]])
    >>> counts = np.array([[4.0, 4.0], [0, 0]])
    >>> matrix_distance(p, q, counts, counts)
    MatrixDistance(mean_l1=0.5, num_rows=1, num_rows_of_one=0)
    """
    supported_p, supported_q = (counts.sum(axis=1) >= min_support for counts in (counts_p, counts_q))
    rows = supported_p & supported_q
    distances = row_distances(p, q)[rows]
    mean = float(distances.mean()) if rows.any() else float("nan")
    return MatrixDistance(mean, int(rows.sum()), int((supported_p ^ supported_q).sum()))


def weighted_distance(p: FloatArray, q: FloatArray, counts: FloatArray) -> float:
    """L1 distance of the rows of two matrices, averaged in proportion to the row sums of ``counts``; in [0, 2].

    Args:
        p: (K, K) transition matrix; rows sum to one.
        q: (K, K) the other.
        counts: (K, K) soft counts, whose row sums say how often each state is left.

    >>> weighted_distance(np.array([[1.0, 0], [0, 1]]), np.array([[0.5, 0.5], [0, 1]]), np.array([[3.0, 0], [0, 1]]))
    0.75
    """
    times_left = counts.sum(axis=1)
    return float(times_left @ row_distances(p, q) / max(float(times_left.sum()), 1e-300))


def row_distances(p: FloatArray, q: FloatArray) -> FloatArray:
    """L1 distance of each row of two matrices, Σ_b |P_ab − Q_ab|, (K,).

    >>> row_distances(np.array([[0.5, 0.5], [0, 1]]), np.array([[0.75, 0.25], [1, 0]])).tolist()
    [0.5, 2.0]
    """
    distances: FloatArray = np.abs(p - q).sum(axis=1)
    return distances


def weight_shift(weights: FloatArray, others: FloatArray) -> WeightShift:
    """What other labels, another estimator or another clip do to the weights of the same segments.

    Args:
        weights: (N,) weights, above 0.
        others: (N,) the other weights of the same segments.

    Returns:
        The shift; of no segments it is none.

    >>> weight_shift(np.array([0.5, 1.0, 2.0]), np.array([0.5, 2.0, 0.5])).share_crossing
    0.3333333333333333
    """
    if not len(weights):
        return WeightShift(0, 0.0, 0.0)
    logs, other_logs = np.log(weights), np.log(others)
    is_crossing = np.sign(logs) * np.sign(other_logs) < 0
    return WeightShift(len(weights), float(np.abs(logs - other_logs).mean()), float(is_crossing.mean()))


def unexplained_share(values: FloatArray, others: FloatArray) -> float:
    """1 − R² of one (N,) array regressed on another, in [0, 1]; NaN where either's values are all equal.

    >>> unexplained_share(np.array([0.0, 1, 0, 1]), np.array([0.0, 0, 1, 1])), unexplained_share(np.ones(2), np.ones(2))
    (1.0, nan)
    """
    centred, other = values - values.mean(), others - others.mean()
    spread = float((centred @ centred) * (other @ other))
    return max(0.0, 1 - float(centred @ other) ** 2 / spread) if spread else float("nan")


def rank_correlation(values: FloatArray, others: FloatArray) -> float:
    """Spearman's ρ of two (N,) arrays; NaN where one side's values are all equal.

    >>> rank_correlation(np.array([0.5, 1.0, 2.0]), np.array([2.0, 1.0, 4.0]))
    0.5
    """
    ranks, other_ranks = _centred_ranks(values), _centred_ranks(others)
    spread = float(np.sqrt((ranks @ ranks) * (other_ranks @ other_ranks)))
    return float(ranks @ other_ranks) / spread if spread else float("nan")


def _centred_ranks(values: FloatArray) -> FloatArray:
    """Ranks less their mean, equal values sharing their mean rank."""
    _, groups, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ranks: FloatArray = (np.cumsum(sizes) - (sizes - 1) / 2)[groups]
    centred: FloatArray = ranks - ranks.mean()
    return centred
