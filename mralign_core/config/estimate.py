"""Section ``estimate``: the transition matrices."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mralign_core.config.base import Section, refuse_ignored


class EstimateConfig(Section):
    """EM estimation of the transition matrices (§3.2.2, Algorithm 2)."""

    traces: Literal["selected", "all_draws", "matched"] = "selected"
    """Which traces the matrices are estimated from: the selected ones (the paper), which are weighed in any case; every
    think-on draw of a kept length by its own answer; or of each question as many right as wrong draws, so that
    both sides are of the same questions. The last two need generate.draws `exhaustive`, and labels for these draws."""
    estimator: Literal["em", "em_converged", "frequency", "value", "oracle", "hidden"] = "em"
    """EM over latent labels (the paper's five damped iterations, or undamped until it converges), or the frequency
    count it is compared with. `value`: P by EM, P⁺ and P⁻ from P and one number a label, how often a trace that makes
    such a move ends right. `oracle`: the matrices of 45,000 traces that the pocket world's grammar writes, by its own
    labels, to see what perfect labels and a perfect estimate would bring; pocket models, the paper's labels only.
    `hidden`: no label is final; EM over true labels, with how each annotator errs, from what both annotators and the
    adjudicator said."""
    labels_per_segment: Literal["two", "one"] = "two"
    """Use up to two labels a segment, or only the most confident (the paper's "label diversity off")."""
    num_iterations: int = Field(5, ge=1, le=10_000)
    """Most EM iterations; `em` and `value` only."""
    damping: float = Field(0.6, gt=0, le=1)
    """Step towards the new matrix (the paper's dp); 1 is undamped EM. `em` and `value` only."""
    prior: float = Field(0.1, gt=0, le=100)
    """Dirichlet pseudo-count of each allowed transition."""
    tolerance: float = Field(1e-6, ge=0)
    """Stop when no entry of P moved by this much; EM only."""
    num_resamples: int = Field(200, ge=0, le=10_000)
    """Bootstrap resamples of questions behind the intervals of P and of the weights; 0 gives no intervals."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of these intervals."""
    permute_polarity: bool = False
    """A placebo: estimate P⁺ and P⁻ from the same traces with their polarities dealt out anew; weights and training
    still go by the true ones. The ratios are raised to the power that gives them the size of the true ones."""

    @property
    def uses_draws(self) -> bool:
        """Whether the matrices are estimated from other traces than those that are weighed."""
        return self.traces != "selected"

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> EstimateConfig:
        ignored = {
            "frequency": ("num_iterations", "damping", "tolerance"),
            "em_converged": ("num_iterations", "damping"),
            "hidden": ("num_iterations", "damping"),
            "oracle": ("num_iterations", "damping", "tolerance", "permute_polarity", "traces"),
        }.get(self.estimator, ())
        refuse_ignored(self, "estimate", ignored, f"when estimate.estimator is {self.estimator!r}")
        if not self.num_resamples:
            refuse_ignored(self, "estimate", ("confidence",), "when estimate.num_resamples is 0")
        return self
