"""Weights of segments from ratios of transition probabilities, kept inside the clip (§3.2.3, Eq. 10).

A ratio is an advantage. For any process, Pr(next = b | now = a, ends right) = Pr(b | a) · h(b)/h(a), with h(s) =
Pr(ends right | in s) (Doob's h-transform), so P⁺/P = h(b)/h(a): the factor by which a move changes the chance to end
right, and P⁻/P = (1 − h(b))/(1 − h(a)). :func:`weights_of_ratios` makes weights of it, in the paper's form or another.

Decisions where the paper is silent: an unlabelled step has ratio 1, and the next labelled step is reached
from the last labelled one before it. A transition that neither matrix allows has ratio 1; one that only the
denominator excludes is infinite, and is clipped. Neither occurs with matrices smoothed by a positive prior.

Departures, all off by default:

* By choice of ``p_denominator``: the matrix of the opposite polarity instead of all traces'.
* :func:`shrink_ratios`: ratios of rarely seen transitions are drawn towards 1.
* :func:`weights_of_ratios`: other forms than the clipped ratio itself, of which two allow a negative weight.

Shapes: U transitions between label sets, K states.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.method import FloatArray
from mralign_core.method.transitions import set_transition_probs

WeightForm = Literal["ratio", "power", "linear", "signed"]


class ClippedWeights(NamedTuple):
    """Weights of clipped ratios, and whether the clip moved the ratio of each, both of one shape."""

    weights: FloatArray
    is_clipped: NDArray[np.bool_]


def segment_weights(
    ratios: FloatArray,
    support: FloatArray,
    *,
    shrinkage: float,
    low: float,
    high: float,
    form: WeightForm = "ratio",
    gamma: float = 1.0,
) -> ClippedWeights:
    """Weights of Eq. 10 of arXiv 2510.24794: ratios, drawn to 1 where support is small, kept inside the clip.

    The only place where ratios are clipped, whatever the form of the weights.

    Args:
        ratios: (…, U) from :func:`set_pair_ratios`.
        support: (U,) soft counts behind the transition of the numerator.
        shrinkage: τ of :func:`shrink_ratios`; 0 in the paper.
        low: smallest ratio, in (0, 1]; 1/e in the paper.
        high: largest ratio, at least 1; e in the paper.
        form: of :func:`weights_of_ratios`; "ratio" in the paper.
        gamma: γ of the form.

    Returns:
        Both (…, U).

    Raises:
        ValueError: the shrinkage is negative, or the bounds don't enclose 1.

    >>> segment_weights(np.array([0.1, 1.0, 9.0]), np.ones(3), shrinkage=0, low=0.5, high=2.0)
    ClippedWeights(weights=array([0.5, 1. , 2. ]), is_clipped=array([ True, False,  True]))
    """
    shrunk = shrink_ratios(ratios, support, shrinkage)
    clipped = clip_ratios(shrunk, low, high)
    return ClippedWeights(weights_of_ratios(clipped, form, gamma), clipped != shrunk)


def weights_of_ratios(ratios: FloatArray, form: WeightForm, gamma: float) -> FloatArray:
    """Weights as a function of the clipped ratio c, which is at 1 for a move that tells nothing.

    ======== =========== ======== ===================================================================================
    form     w           w(c = 1) what a telling move weighs
    ======== =========== ======== ===================================================================================
    ratio    c           1        the paper's Eq. 10
    power    c^γ         1        γ = 2 counts every factor twice, and squares the bounds of the clip
    linear   1 + γ log c 1        the first two terms of c^γ; below 0 where c < e^(−1/γ)
    signed   γ log c     0        the log-advantage γ (log h(b) − log h(a)) alone, which sums over a trace to a
                                  difference of its ends; a move that is rarer in traces of this polarity is pushed
                                  the other way, and one that tells nothing trains nothing
    ======== =========== ======== ===================================================================================

    The implicit reward is Σ_t w_t log π_θ/π_ref (Eq. 9), so a token's share of the gradient is w_t times its own
    ∇ log π_θ: the form decides how large a share, and with which sign.

    Args:
        ratios: (…, U) clipped, above 0.
        form: as above.
        gamma: γ, above 0; "ratio" has none.

    Returns:
        (…, U) weights.

    Raises:
        ValueError: γ is not above 0.

    >>> weights_of_ratios(np.array([0.5, 1.0, 2.0]), "power", 2.0).tolist()
    [0.25, 1.0, 4.0]
    >>> weights_of_ratios(np.array([0.5, 1.0, 2.0]), "signed", 2.0).round(3).tolist()
    [-1.386, 0.0, 1.386]
    """
    if gamma <= 0:
        raise ValueError(f"gamma is {gamma}; it must be above 0, or a move would weigh against what it tells")
    if form == "ratio":
        return ratios
    if form == "power":
        power: FloatArray = ratios**gamma
        return power
    return neutral_weight(form) + gamma * np.log(ratios)


def neutral_weight(form: WeightForm) -> float:
    """The weight of a move that tells nothing (ratio 1), and so of a segment without a label: 0 if signed, else 1.

    >>> neutral_weight("ratio"), neutral_weight("signed")
    (1.0, 0.0)
    """
    return 0.0 if form == "signed" else 1.0


def set_pair_ratios(
    p_numerator: FloatArray, p_denominator: FloatArray, sources: NDArray[np.bool_], targets: NDArray[np.bool_]
) -> FloatArray:
    """Ratios of the probabilities of transitions, under one pair of matrices or under each of several.

    Implements the ratio in Eq. 10 of arXiv 2510.24794, Pr(y_t | y_{t−1}, P^±) / Pr(y_t | y_{t−1}, P), with
    y_0 = {<start>}.

    Args:
        p_numerator: (…, K, K), P⁺ for a positive trace, P⁻ for a negative one.
        p_denominator: (…, K, K), P of all traces.
        sources: (U, K) bool, membership of each state in the set that is left.
        targets: (U, K) bool, membership in the set that is entered.

    Returns:
        (…, U) ratios, at least 0.

    >>> p_plus = np.array([[0, 0.8, 0.2], [0, 0.5, 0.5], [0, 0, 1.0]])
    >>> p_all = np.array([[0, 0.4, 0.6], [0, 0.2, 0.8], [0, 0, 1.0]])
    >>> set_pair_ratios(p_plus, p_all, np.array([[True, False, False]]), np.array([[False, True, False]])).tolist()
    [2.0]
    """
    numerator = set_transition_probs(p_numerator, sources, targets)
    return probability_ratios(numerator, set_transition_probs(p_denominator, sources, targets))


def probability_ratios(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Quotients of probabilities of one shape: 1 where both are 0, infinite where only the denominator is.

    >>> probability_ratios(np.array([0.6, 0.0, 0.1]), np.array([0.3, 0.0, 0.0])).tolist()
    [2.0, 1.0, inf]
    """
    impossible = np.where(numerator > 0, np.inf, 1.0)
    ratios: FloatArray = np.divide(numerator, denominator, where=denominator > 0, out=impossible)
    return ratios


def shrink_ratios(ratios: FloatArray, support: FloatArray, shrinkage: float) -> FloatArray:
    """Ratios drawn towards 1 where few observations stand behind them: ratio ** (n / (n + τ)).

    A departure from the paper, which has no shrinkage (τ = 0). At n = τ the log-ratio is halved.

    Args:
        ratios: (…, U), at least 0.
        support: (U,) n, the soft counts behind the transition of the numerator, at least 0.
        shrinkage: τ, at least 0.

    Returns:
        (…, U) ratios.

    Raises:
        ValueError: τ is negative.

    >>> shrink_ratios(np.array([4.0, 4.0, 4.0]), np.array([0.0, 5.0, 1e9]), 5.0).round(3).tolist()
    [1.0, 2.0, 4.0]
    """
    if shrinkage < 0:
        raise ValueError(f"shrinkage is {shrinkage}; it must be at least 0")
    if shrinkage == 0:
        return ratios
    shrunk: FloatArray = ratios ** (support / (support + shrinkage))
    return shrunk


def clip_ratios(ratios: FloatArray, low: float, high: float) -> FloatArray:
    """Ratios, kept inside [low, high].

    Implements the clip in Eq. 10 of arXiv 2510.24794, where the bounds are 1/e and e.

    Args:
        ratios: (…, U), at least 0.
        low: smallest ratio, in (0, 1].
        high: largest ratio, at least 1.

    Returns:
        (…, U) ratios.

    Raises:
        ValueError: the bounds don't enclose 1, the ratio of a move that tells nothing.

    >>> clip_ratios(np.array([0.1, 1.0, 9.0]), 0.5, 2.0).tolist()
    [0.5, 1.0, 2.0]
    """
    if not 0 < low <= 1 <= high:
        raise ValueError(f"clip bounds are [{low}, {high}]; they must enclose 1, with the lower one above 0")
    return np.clip(ratios, low, high)
