"""The value of a state, and the matrices that follow from it (a departure: ``estimate.estimator: value``).

The value h(s) = Pr(the trace ends right | it is in state s) decides both matrices of Eq. 10 by Doob's h-transform:

    P⁺_ab = Pr(next = b | now = a, ends right) = P_ab h(b) / Σ_c P_ac h(c),
    P⁻_ab = the same with 1 − h,

as far as what comes after b depends on b alone. So 15 numbers, each from all visits to a label in right and wrong
traces together, stand in for two matrices of 17 × 17 that are estimated apart.

Decisions: h(s) is the share of right traces among the visits to s, with a Beta prior around the share of all visits,
which itself has half a visit of either kind added; a step with two labels is half a visit to each. That a trace stops
tells nothing beyond the state that it stops in, so h(<stop>) is h(a) in the row of a.

Shapes: K states, "…" any number of tables side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.method import FloatArray


class StateValues(NamedTuple):
    """Beta posterior of h(s) for each state, both (…, K)."""

    right: FloatArray
    """Visits in traces that end right, and prior."""
    wrong: FloatArray
    """Visits in traces that end wrong, and prior."""

    @property
    def mean(self) -> FloatArray:
        """h(s), (…, K), strictly between 0 and 1."""
        mean: FloatArray = self.right / (self.right + self.wrong)
        return mean


def count_visits(multiplicities: NDArray[np.generic], sources: NDArray[np.bool_]) -> FloatArray:
    """Visits to each state but <stop>, (…, K): every step is left once, and split evenly over its labels.

    Args:
        multiplicities: (…, U) occurrences of each transition.
        sources: (U, K) bool, membership of each state in the set that is left.

    >>> count_visits(np.array([2, 1]), np.array([[True, False, False], [False, True, True]])).tolist()
    [2.0, 0.5, 0.5]
    """
    visits: FloatArray = multiplicities @ (sources / sources.sum(axis=1, keepdims=True))
    return visits


def state_values(right_visits: FloatArray, wrong_visits: FloatArray, *, prior: float) -> StateValues:
    """The value of each state from its visits.

    Args:
        right_visits: (…, K) visits in traces that end right.
        wrong_visits: (…, K) visits in traces that end wrong.
        prior: weight of the prior, in visits to a state, above 0.

    Raises:
        ValueError: the prior is not above 0.

    >>> state_values(np.array([3.0, 0.0]), np.array([1.0, 2.0]), prior=2.0).mean.round(3).tolist()
    [0.667, 0.25]
    """
    if prior <= 0:
        raise ValueError(f"prior is {prior}; it must be above 0, or a state that is rarely visited has value 0 or 1")
    right, wrong = (visits.sum(axis=-1, keepdims=True) for visits in (right_visits, wrong_visits))
    base = (right + 0.5) / (right + wrong + 1)
    return StateValues(right_visits + prior * base, wrong_visits + prior * (1 - base))


def conditioned_on_end(p: FloatArray, values: FloatArray) -> FloatArray:
    """Transition matrix of the traces that end as the values say: P_ab h(b) / Σ_c P_ac h(c).

    Args:
        p: (…, K, K) transition matrix of all traces; the last state is <stop>.
        values: (…, K) h(s), above 0; 1 − h gives the matrix of the traces that end the other way.

    Returns:
        (…, K, K), rows summing to one; zero where P is.

    >>> p = np.array([[0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5], [0, 0, 0, 1.0], [0, 0, 0, 1.0]])
    >>> conditioned_on_end(p, np.array([0.5, 0.75, 0.25, 0.5]))[:2].round(3).tolist()
    [[0.0, 0.75, 0.25, 0.0], [0.0, 0.0, 0.25, 0.75]]
    """
    reached = np.repeat(values[..., None, :], values.shape[-1], axis=-2)
    reached[..., :, -1] = values
    weighted = p * reached
    conditioned: FloatArray = weighted / weighted.sum(axis=-1, keepdims=True)
    return conditioned
