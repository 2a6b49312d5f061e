"""The weights that the diagnostics compare: those of the labelled segments of a sample, without intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mralign_core.config import RewardConfig
from mralign_core.estimation.matrices import TransitionMatrices
from mralign_core.estimation.traces import TraceBatch
from mralign_core.estimation.weights import Weigher
from mralign_core.method import FloatArray

_NO_INTERVALS = 0.0
"""Coverage where there are no draws to make intervals of."""


class LabelledWeights(NamedTuple):
    """Weights of the segments of a batch that have a label, and the share of them that is clipped."""

    weights: FloatArray
    share_clipped: float


def labelled_weights(batch: TraceBatch, matrices: TransitionMatrices, reward: RewardConfig) -> LabelledWeights:
    """Weights of the labelled segments, as the reward stage makes them; the others have weight 1 anyway."""
    weigher = Weigher(matrices._replace(draws={}, strata_draws={}), reward, confidence=_NO_INTERVALS)
    return labelled_weights_by(weigher, batch)


def labelled_weights_by(weigher: Weigher, batch: TraceBatch) -> LabelledWeights:
    """Weights of the labelled segments, by a weigher that has weighed nothing yet."""
    weights = np.asarray(weigher.weigh(batch)["weight"], dtype=np.float64)
    has_label = (batch.labels[:, 0] > 0)[batch.step_of_segment]
    share = weigher.counts["clipped"] / max(int(has_label.sum()), 1)
    return LabelledWeights(weights[has_label], share)
