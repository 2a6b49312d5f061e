"""How far the weights move when the damping, the prior or the clip is another one."""

from __future__ import annotations

from itertools import product

import numpy as np

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.estimation.diagnostics.labelled_weights import labelled_weights
from mralign_core.estimation.diagnostics.result import Result
from mralign_core.estimation.diagnostics.survey import Survey
from mralign_core.estimation.hidden_labels import from_label_sets
from mralign_core.estimation.matrices import estimate_corpus
from mralign_core.estimation.traces import batch_of_traces
from mralign_core.method.distances import WeightShift, weight_shift
from mralign_core.method.taxonomy import Taxonomy

DAMPINGS = (0.2, 0.4, 0.6, 0.8, 1.0)
PRIORS = (0.01, 0.1, 1.0, 10.0)
CLIPS = (float(np.exp(0.5)), float(np.e), float(np.exp(1.5)), None)
"""Largest weight, with its inverse the smallest; None leaves ratios as they are."""
_NO_CLIP = 1e300


class SensitivityRow(Result):
    """One setting of the estimator and the clip, against the configured one."""

    damping: float
    prior: float
    clip_min: float | None
    clip_max: float | None
    shift: WeightShift
    share_clipped: float


class Sensitivity(Result):
    """Shift in w over a grid of settings."""

    damping: float
    """The configured value, as are the next three."""
    prior: float
    clip_min: float
    clip_max: float
    grid: tuple[SensitivityRow, ...]

    def along(self, name: str) -> list[SensitivityRow]:
        """Rows in which all but one setting, "damping", "prior" or "clip", are the configured ones, in order."""
        held = {"damping", "prior", "clip"} - {name}
        rows = [row for row in self.grid if all(_setting(row, key) == _setting(self, key) for key in held)]
        if name == "clip":
            return sorted(rows, key=lambda row: row.clip_max or np.inf)
        return sorted(rows, key=lambda row: float(getattr(row, name)))


def weight_sensitivity(
    survey: Survey,
    estimate: EstimateConfig,
    reward: RewardConfig,
    *,
    taxonomy: Taxonomy,
) -> Sensitivity:
    """Shift in w when the damping, the prior or the clip is another one, over their whole grid.

    Matrices are estimated from all traces; shifts are over the segments of the sample.

    Args:
        survey: the traces as the estimator saw them.
        estimate: the configured estimator; in place of hidden labels, its nearest on label sets.
        reward: the configured weights.
        taxonomy: the labels.
    """
    estimate = from_label_sets(estimate)
    corpus, batch = survey.corpus, batch_of_traces(survey.some)
    configured = labelled_weights(batch, estimate_corpus(corpus, estimate, taxonomy), reward).weights
    clips = {(1 / clip, clip) if clip else (None, None) for clip in CLIPS} | {(reward.clip_min, reward.clip_max)}
    rows = []
    for damping, prior in product({*DAMPINGS, estimate.damping}, {*PRIORS, estimate.prior}):
        section = estimate.model_copy(update={"damping": damping, "prior": prior})
        matrices = estimate_corpus(corpus, section, taxonomy)
        for low, high in clips:
            bounds = {"clip_min": low or 1 / _NO_CLIP, "clip_max": high or _NO_CLIP}
            weighed = labelled_weights(batch, matrices, reward.model_copy(update=bounds))
            shift = weight_shift(configured, weighed.weights)
            setting = {"damping": damping, "prior": prior, "clip_min": low, "clip_max": high}
            rows.append(SensitivityRow(**setting, shift=shift, share_clipped=weighed.share_clipped))
    rows.sort(key=lambda row: (row.damping, row.prior, row.clip_max or np.inf))
    return Sensitivity(
        damping=estimate.damping,
        prior=estimate.prior,
        clip_min=reward.clip_min,
        clip_max=reward.clip_max,
        grid=tuple(rows),
    )


def _setting(row: SensitivityRow | Sensitivity, name: str) -> object:
    return (row.clip_min, row.clip_max) if name == "clip" else getattr(row, name)
