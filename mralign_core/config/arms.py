"""The arms that an ablation can choose from: what each trains, and the fields in which it differs from the run.

An arm differs from the run's config in how transitions are estimated, how weights are made of them, or how the adapter
is trained; or in the traces that it trains on, or the model that is aligned. Evaluation is the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from mralign_core.reporting.titles import VARIANT_TITLES

ONLY = "only_"
"""What the names of those arms begin with that train on one set of ``questions.train``, whose name follows."""
GROUND_FIELDS = (
    "model.source",
    "model.path",
    "model.revision",
    "model.family",
    "model.dtype",
    "model.pocket.architecture",
    "model.pocket.num_layers",
    "model.pocket.pretrain_steps",
    "questions.train",
    "questions.train_on",
    "generate.traces_path",
)
"""The fields by which an arm has another model, or other traces to train on, than the run."""
OF_ACCOUNTS = tuple(field for field in GROUND_FIELDS if not field.startswith("questions."))
"""Those of them that give an arm an account of its own; the labels of a question are the same whatever set it is in."""


class Arm(NamedTuple):
    """One arm: its name in tables and figures, the variant that is trained, and dotted field → value."""

    title: str
    variant: Literal["sft", "kto", "mr_align"]
    overrides: Mapping[str, Any]


def _weighted(title: str, **overrides: Any) -> Arm:
    """An MR-ALIGN arm; fields are written ``section__field``."""
    return Arm(title, "mr_align", {name.replace("__", ".", 1): value for name, value in overrides.items()})


_SQUARED = {"reward__form": "power", "reward__gamma": 2.0}
_WIDER = {"reward__gamma": 2.0, "reward__clip_min": math.exp(-1.5), "reward__clip_max": math.exp(1.5)}
"""2 log c, kept between −3 and 3."""
_LINEAR = {"reward__form": "linear", **_WIDER}
_SIGNED = {"reward__form": "signed", **_WIDER}

ARMS: dict[str, Arm] = {
    "sft": Arm(VARIANT_TITLES["sft"], "sft", {}),
    "kto": Arm(VARIANT_TITLES["kto"], "kto", {}),
    "mr_align": Arm(VARIANT_TITLES["mr_align"], "mr_align", {}),
    "contrast": _weighted("contrast weights", reward__reference="opposite"),
    "placebo_within": _weighted("placebo within", reward__placebo="within_trace"),
    "placebo_others": _weighted("placebo others", reward__placebo="other_traces"),
    "placebo_polarity": _weighted("placebo polarity", estimate__permute_polarity=True),
    "mean_one": _weighted("weights of mean 1", reward__normalize="mean_one"),
    "frequency": _weighted("frequency estimate", estimate__estimator="frequency"),
    "single_label": _weighted("single label", estimate__labels_per_segment="one"),
    "wide_clip": _weighted("clip 1/e² to e²", reward__clip_min=math.exp(-2), reward__clip_max=math.exp(2)),
    "narrow_clip": _weighted("clip 1/√e to √e", reward__clip_min=math.exp(-0.5), reward__clip_max=math.exp(0.5)),
    "no_clip": _weighted("no clip", reward__clip_min=1e-9, reward__clip_max=1e9),
    "undesirable_0.5": _weighted("λ_r = 0.5", train__undesirable_weight=0.5),
    "undesirable_1.0": _weighted("λ_r = 1", train__undesirable_weight=1.0),
    "undesirable_2.0": _weighted("λ_r = 2", train__undesirable_weight=2.0),
    "squared": _weighted("squared", **_SQUARED),
    "squared_placebo": _weighted("placebo of squared", **_SQUARED, reward__placebo="within_trace"),
    "linear": _weighted("1 + 2 log ratio", **_LINEAR),
    "linear_placebo": _weighted("placebo of linear", **_LINEAR, reward__placebo="within_trace"),
    "signed": _weighted("signed", **_SIGNED),
    "signed_placebo": _weighted("placebo of signed", **_SIGNED, reward__placebo="within_trace"),
    "signed_mean_one": _weighted("signed, of mean 1", **_SIGNED, reward__normalize="mean_one"),
    "signed_centred": _weighted("signed, centred", **_SIGNED, reward__normalize="centred"),
    "matched": _weighted("matched draws", estimate__traces="matched"),
    "matched_squared": _weighted("matched draws, squared", estimate__traces="matched", **_SQUARED),
    "matched_signed": _weighted("matched draws, signed", estimate__traces="matched", **_SIGNED),
    "matched_squared_placebo": _weighted(
        "placebo of matched squared", estimate__traces="matched", **_SQUARED, reward__placebo="within_trace"
    ),
    "matched_signed_placebo": _weighted(
        "placebo of matched signed", estimate__traces="matched", **_SIGNED, reward__placebo="within_trace"
    ),
    "all_draws": _weighted("all draws", estimate__traces="all_draws"),
    "all_draws_signed": _weighted("all draws, signed", estimate__traces="all_draws", **_SIGNED),
    "per_segment": _weighted("weights per segment", reward__normalize="per_segment"),
    "by_stratum": _weighted("weights by stratum", reward__condition_on="stratum"),
    "value": _weighted("by value", estimate__estimator="value"),
    "value_squared": _weighted("by value, squared", estimate__estimator="value", **_SQUARED),
    "value_signed": _weighted("by value, signed", estimate__estimator="value", **_SIGNED),
    "hidden": _weighted("hidden labels", estimate__estimator="hidden"),
    "oracle": _weighted("oracle", estimate__estimator="oracle"),
    "oracle_squared": _weighted("oracle, squared", estimate__estimator="oracle", **_SQUARED),
    "oracle_signed": _weighted("oracle, signed", estimate__estimator="oracle", **_SIGNED),
    "positives_only": _weighted("positives only", train__positives_only=True),
    "kl_average": _weighted("z0 averaged", train__kl_every=4, train__kl_decay=0.5),
    "backbone_llama": Arm("Llama backbone", "mr_align", {"model.pocket.architecture": "llama"}),
    "backbone_deeper": Arm("backbone of 3 layers", "mr_align", {"model.pocket.num_layers": 3}),
}
"""Name → arm. ``reward.reference`` and the like hold for an arm only where its overrides say nothing else."""
