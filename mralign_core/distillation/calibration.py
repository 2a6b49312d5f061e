"""How sure a distilled annotator may be: from the chain's probabilities to how often such labels were right.

A segment may have two labels, and the chain's probabilities of its labels sum to one: with two they come to about ½
each, and no probability says that a label is among them. So one curve for all labels, fitted on segments that the chain
did not see (Platt 1999):

    Pr(label is among the segment's | m) = c · sigmoid( a + b · logit m )

where c is the share of segments that have a label at all, and a and b are fitted on those.

Shapes: T segments, S labels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.method import FloatArray

SMALLEST = 1e-6
LEAST_SLOPE = 1e-3
"""The more probable label stays the surer one, whatever little the chain knows."""
_NUM_BINS = 10


class Calibration(NamedTuple):
    """The curve; ``Calibration(0.0, 1.0)`` leaves probabilities as they are."""

    intercept: float
    slope: float
    ceiling: float = 1.0

    def apply(self, marginals: FloatArray) -> FloatArray:
        """Pr(label is among the segment's), of any shape.

        >>> Calibration(0.0, 1.0).apply(np.array([0.25])).round(6).tolist()
        [0.25]
        """
        calibrated: FloatArray = self.ceiling / (1 + np.exp(-(self.intercept + self.slope * _logit(marginals))))
        return calibrated


def fit_calibration(marginals: FloatArray, given: NDArray[np.bool_]) -> Calibration:
    """Fit the curve by maximum likelihood.

    Args:
        marginals: (T, S) of segments that the chain did not see.
        given: (T, S) their labels; none where the teacher found none.

    Raises:
        ValueError: nothing is given, or everything.
    """
    from sklearn.linear_model import LogisticRegression

    if given.all() or not given.any():
        raise ValueError("a calibration needs labels that were given and labels that were not")
    labelled = given.any(axis=1)
    ceiling, marginals, given = float(labelled.mean()), marginals[labelled], given[labelled]
    fitted = LogisticRegression(C=np.inf).fit(_logit(marginals).reshape(-1, 1), given.ravel())
    slope = float(fitted.coef_[0, 0])
    if slope < LEAST_SLOPE:
        return Calibration(float(_logit(given.mean())), LEAST_SLOPE, ceiling)
    return Calibration(float(fitted.intercept_[0]), slope, ceiling)


def calibration_error(confidences: FloatArray, is_right: NDArray[np.bool_]) -> float:
    """Expected calibration error: mean distance of confidence from accuracy, over ten bins of equal width.

    Args:
        confidences: (T,) in [0, 1].
        is_right: (T,).

    >>> calibration_error(np.array([0.95, 0.95]), np.array([True, False])).__round__(6)
    0.45
    """
    if not len(confidences):
        return float("nan")
    bins = np.minimum((confidences * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
    gaps = np.bincount(bins, weights=confidences - is_right, minlength=_NUM_BINS)
    return float(np.abs(gaps).sum() / len(confidences))


def _logit(probs: FloatArray) -> FloatArray:
    clipped = np.clip(probs, SMALLEST, 1 - SMALLEST)
    logits: FloatArray = np.log(clipped) - np.log1p(-clipped)
    return logits
