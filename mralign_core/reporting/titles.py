"""What tables, figures and model cards call variants, metrics and matrices."""

from __future__ import annotations

from collections.abc import Sequence

VARIANT_TITLES = {
    "off": "think off",
    "on": "think on",
    "self_refine": "Self-Refine",
    "on_retrieval": "think on + retrieval",
    "sft": "SFT",
    "kto": "KTO",
    "mr_align": "MR-ALIGN",
    "mr_align_retrieval": "MR-ALIGN + retrieval",
}
METRIC_TITLES = {"acc": "Acc", "mis": "Mis", "em_thought": "EM_t", "em_answer": "EM_a"}
METRIC_TITLES |= {"truthful": "truthful", "informative": "informative", "truthful_informative": "both"}
METRIC_TITLES |= {"f1_at_k": "F1@K", "supported_share": "supported"}
ACCURACY = "accuracy"
"""What EM_a is called in a set that has no other metric."""
METRIC_DIRECTIONS = {"acc": "higher is better", "mis": "lower is better", "em_answer": "higher is better"}
METRIC_DIRECTIONS |= dict.fromkeys(("truthful", "informative", "f1_at_k", "supported_share"), "higher is better")
MATRIX_TITLES = {"plus": "P⁺", "minus": "P⁻", "all": "P"}
UNDEFINED = "–"
"""Stands where a number is not defined."""


def variant_title(variant: str) -> str:
    """A variant as people call it."""
    return VARIANT_TITLES.get(variant, variant)


def metric_title(metric: str, metrics: Sequence[str]) -> str:
    """A metric as people call it, among those that its set has."""
    return ACCURACY if tuple(metrics) == ("em_answer",) else METRIC_TITLES[metric]
