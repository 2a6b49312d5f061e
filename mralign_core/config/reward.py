"""Section ``reward``: the weights of the segments."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from mralign_core.config.base import Section


class RewardConfig(Section):
    """Segment weights from transition ratios (§3.2.3, Eq. 10)."""

    reference: Literal["all", "opposite"] = "all"
    """Denominator: P of all traces (the paper), or of the opposite polarity (contrast weights, a departure)."""
    clip_min: float = Field(math.exp(-1), gt=0, le=1)
    """Smallest weight."""
    clip_max: float = Field(math.e, ge=1)
    """Largest weight."""
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
    normalize: Literal["none", "mean_one"] = "none"
    """`mean_one` scales each trace's weights so that its thinking tokens carry 1 on average, after clip and placebo, so
    that weights can leave the clip's bounds."""
