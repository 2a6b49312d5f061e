"""Why a model must not be promoted whatever its scores: training data, labels, or an evaluation that is no whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from mralign_core.config.retrain import GateConfig
from mralign_core.questions.overlap import question_keys
from mralign_core.schemas.annotations import RULES
from mralign_core.storage import LEFT_OUT
from mralign_core.versions.record import question_digests

MOST_NAMED = 3
"""Questions that a sentence names."""


def training_objections(trained_on: Collection[str], evaluation: pd.DataFrame) -> list[str]:
    """Questions that the model was trained on and that evaluate it.

    Args:
        trained_on: their digests, of :func:`~mralign_core.versions.record.question_digests`.
        evaluation: the held-out rows of ``schemas.questions``.
    """
    known = set(trained_on)
    both = [
        question_id
        for question_id, keys in zip(evaluation["question_id"], question_keys(evaluation), strict=True)
        if known.intersection(question_digests(keys))
    ]
    if not both:
        return []
    first = ", ".join(both[:MOST_NAMED])
    return [
        f"it was trained on {len(both)} question(s) that evaluate it, first {first}: take them out of questions.eval "
        "(questions.on_overlap: drop takes them out of training)"
    ]


def scoring_objections(
    scores: pd.DataFrame, evaluation: pd.DataFrame, num_draws: int, counts: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Answers or verdicts that are missing.

    Args:
        scores: rows of ``schemas.scores`` of the model.
        evaluation: the held-out rows.
        num_draws: answers to each.
        counts: of the manifests of its scores and judgements.
    """
    given = scores.groupby("question_id").size().reindex(evaluation["question_id"], fill_value=0)
    missing = given[given < num_draws]
    failed = sum(int(each.get(LEFT_OUT, 0)) for each in counts)
    found = []
    if len(missing):
        first = ", ".join(map(str, missing.index[:MOST_NAMED]))
        found.append(
            f"its evaluation is incomplete: {len(missing)} question(s) lack answers, first {first}; run it again"
        )
    if failed:
        found.append(
            f"its evaluation is incomplete: servers or judges failed on {failed} answer(s); run it again, which asks "
            "for those only"
        )
    return found


def label_objections(counts: Mapping[str, Any], num_traces: int, gate: GateConfig) -> list[str]:
    """Signs that an annotator failed.

    Args:
        counts: of the manifest of the annotations: segments by rule, and traces left out.
        num_traces: that were to be labelled.
        gate: what is allowed.
    """
    segments = {rule: int(counts.get(rule, 0)) for rule in RULES}
    total = sum(segments.values())
    if not total:
        return ["no segment was labelled, so its weights rest on nothing: see the annotators' failures"]
    found = []
    left_out = int(counts.get(LEFT_OUT, 0)) / max(num_traces, 1)
    for share, what in ((left_out, "traces"), (segments["unlabelled"] / total, "segments")):
        if share > gate.max_unlabelled:
            found.append(
                f"{100 * share:.0f} % of its {what} have no labels, more than the {100 * gate.max_unlabelled:.0f} % of "
                "retrain.gate.max_unlabelled: an annotator failed"
            )
    agreed = segments["agree"] / max(total - segments["unlabelled"], 1)
    if agreed < gate.min_agreement:
        found.append(
            f"the annotators agreed on {100 * agreed:.0f} % of the segments, less than the "
            f"{100 * gate.min_agreement:.0f} % of retrain.gate.min_agreement: one of them labels at random, or another "
            "than before"
        )
    return found
