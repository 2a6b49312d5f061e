"""Section ``reward``: the weights of the segments."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from mralign_core.config.base import Section, refuse_ignored

MAX_LOG_WEIGHT = 20.0
"""Largest logarithm of a weight that a power may make."""


class RewardConfig(Section):
    """Segment weights from transition ratios (§3.2.3, Eq. 10)."""

    reference: Literal["all", "opposite"] = "all"
    """Denominator: P of all traces (the paper), or of the opposite polarity (contrast weights, a departure)."""
    form: Literal["ratio", "power", "linear", "signed"] = "ratio"
    """What becomes of the clipped ratio c: c itself (the paper), c^γ, 1 + γ log c, or γ log c. The last two can be
    negative, and push a telling move the other way; with the last, a segment without a label trains nothing."""
    gamma: float = Field(1.0, gt=0, le=100)
    """γ of these forms; not used by `ratio`."""
    clip_min: float = Field(math.exp(-1), gt=0, le=1)
    """Smallest ratio: the smallest weight, in the paper's form."""
    clip_max: float = Field(math.e, ge=1)
    """Largest ratio."""
    support_shrinkage: float = Field(0.0, ge=0, le=1e9)
    """Soft counts at which a ratio is drawn halfway (of its logarithm) to 1, for want of data; 0 never (the paper)."""
    condition_on: Literal["none", "stratum"] = "none"
    """Matrices behind the ratios: those of all traces (the paper), or of the trace's own question stratum."""
    leave_own_question_out: bool = False
    """Weigh each trace by matrices estimated without any trace of its own question (the paper: with them), so that no
    trace is weighed by itself. Such weights have no intervals, and diagnostics show what it changes."""
    placebo: Literal["none", "within_trace", "other_traces"] = "none"
    """A placebo: the clipped weights permuted among the labelled segments of each trace, or taken from another trace of
    the same polarity. Diagnostics and comparisons of annotators show the weights before it."""
    normalize: Literal["none", "mean_one", "centred", "per_segment"] = "none"
    """What is done to each trace's weights after clip and placebo: `mean_one` scales them so that its thinking tokens
    carry 1 on average, regardless of sign, and the answer its share; `centred` shifts them so that they carry on
    average what a move carries that tells nothing; `per_segment` has long segments weigh no more than short ones."""

    @property
    def of_paper_form(self) -> RewardConfig:
        """What the weights are made of: clipped ratios, of all questions, with no placebo or normalisation."""
        paper = ("form", "gamma", "placebo", "normalize", "leave_own_question_out")
        return self.model_copy(update={name: type(self).model_fields[name].default for name in paper})

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> RewardConfig:
        if self.form == "ratio":
            refuse_ignored(self, "reward", ("gamma",), "when reward.form is 'ratio'")
        largest = self.gamma * max(math.log(self.clip_max), -math.log(self.clip_min))
        if self.form == "power" and largest > MAX_LOG_WEIGHT:
            raise ValueError(
                f"reward.gamma {self.gamma:g} makes weights of up to e^{largest:.0f} of ratios within the clip, and no "
                f"training survives that: lower it, or narrow clip_min and clip_max, to at most e^{MAX_LOG_WEIGHT:g}"
            )
        return self
