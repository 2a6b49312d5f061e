"""Do scores of held-out traces tell right from wrong? The area under the ROC curve, and what it takes to show it.

An addition to the paper, whose weights are noise, whatever their size, where label sequences of right and wrong traces
do not differ on questions that the matrices were not estimated from.

Shapes: N traces, R resamples.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from mralign_core.method import FloatArray, IntArray


def area_under_curve(
    scores: FloatArray, is_positive: NDArray[np.bool_], strata: IntArray, times: NDArray[np.integer] | None = None
) -> FloatArray:
    """Share of pairs of a positive and a negative trace of one stratum in which the positive one scores higher, (R,).

    The Mann–Whitney statistic over the number of pairs, which is the area under the ROC curve (Hanley and McNeil,
    Radiology 143, 1982); ties count one half. With one stratum it is the plain AUC; with several a trace is compared
    with traces of its own stratum only, and every such pair counts alike.

    Args:
        scores: (N,) finite scores.
        is_positive: (N,) bool.
        strata: (N,) number of each trace's stratum.
        times: (R, N) how often each resample holds each trace; without it, once each in a single resample.

    Returns:
        (R,) areas in [0, 1], NaN where there is no such pair.

    >>> everywhere = np.zeros(4, dtype=int)
    >>> area_under_curve(np.array([3.0, 1, 1, 0]), np.array([True, True, False, False]), everywhere).tolist()
    [0.875]
    """
    weights = np.ones((1, len(scores))) if times is None else times.astype(np.float64)
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        order = members[np.argsort(scores[members], kind="stable")]
        first_of_value = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
        ups, downs = (
            np.add.reduceat(weights[:, order] * (is_positive[order] == sign), first_of_value, axis=1)
            for sign in (True, False)
        )
        won += (ups * (np.cumsum(downs, axis=1) - downs / 2)).sum(axis=1)
        pairs += ups.sum(axis=1) * downs.sum(axis=1)
    areas: FloatArray = np.divide(won, pairs, where=pairs > 0, out=np.full(len(weights), np.nan))
    return areas


def questions_to_show(
    auc: float, num_questions: int, null_error: float, standard_error: float, *, significance: float, power: float
) -> int | None:
    """Questions at which an AUC as large as the observed one would be told from ½; None where it is not above ½.

    n · ((z_{1−α/2} s₀ + z_{power} s₁) / (AUC − ½))², the sample size of a z test as in Hanley and McNeil (Radiology
    143, 1982, Eq. 3), with s₀ and s₁ measured at n questions in place of their variances for independent cases, and
    taken to fall as 1/√n. Matrices of more questions also tell more, so fewer may do.

    Args:
        auc: observed.
        num_questions: n, the questions that it was observed on.
        null_error: s₀, standard deviation of the AUC with permuted polarities.
        standard_error: s₁, its bootstrap standard error.
        significance: α of a two-sided test.
        power: probability that it is then shown.

    >>> questions_to_show(0.6, 100, 0.05, 0.05, significance=0.05, power=0.8)  # 100 · (0.05 · 2.8 / 0.1)²
    197
    """
    if auc <= 0.5:
        return None
    z_level, z_power = (NormalDist().inv_cdf(share) for share in (1 - significance / 2, power))
    return math.ceil(num_questions * ((z_level * null_error + z_power * standard_error) / (auc - 0.5)) ** 2)
