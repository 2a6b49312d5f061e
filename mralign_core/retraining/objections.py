"""Why a model must not be promoted whatever its scores: training data, labels, or an evaluation that is no whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from mralign_core.config.retrain import GateConfig
from mralign_core.questions.overlap import question_keys
from mralign_core.storage import LEFT_OUT, TO_ASK_AGAIN
from mralign_core.versions.record import question_digests

MOST_NAMED = 3
"""Questions that a sentence names."""
MOST_REFUSED = 0.02
"""Share of the answers that judges may refuse for good; they are compared on none of these."""
MIN_NEW_TRACES = 5
"""Fewer say nothing about an annotator."""


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
    to_ask = sum(int(each.get(TO_ASK_AGAIN, 0)) for each in counts)
    refused = sum(int(each.get(LEFT_OUT, 0)) for each in counts) - to_ask
    found = []
    if len(missing):
        first = ", ".join(map(str, missing.index[:MOST_NAMED]))
        found.append(f"its evaluation is incomplete: {len(missing)} question(s) lack answers, first {first}")
    if to_ask:
        found.append(f"its evaluation is incomplete: servers or judges failed on {to_ask} answer(s), to be asked again")
    if refused > MOST_REFUSED * max(len(scores), 1):
        found.append(f"judges refuse {refused} of its {len(scores)} answers: name another judge in judge.endpoints")
    return found


def label_objections(
    asked: Sequence[str],
    labels: pd.DataFrame,
    gate: GateConfig,
    known: Collection[str] = (),
    earlier: Iterable[Collection[str]] = (),
) -> list[str]:
    """Signs that an annotator failed: on all traces, on those that are new, or on those that one retraining brought.

    Each would hide in the larger: a bad week in a year of good labels, and where a champion stays for long, in all that
    came since.

    Args:
        asked: ids of the traces that were to be labelled.
        labels: ``trace_id`` and ``rule`` of each labelled segment.
        gate: what is allowed.
        known: ids of traces that the champion's labels have too.
        earlier: of each retraining since the champion, ids of the traces that its labels have.
    """
    everything = set(asked)
    new = everything - set(known)
    parts = [("its", "new ", new), *(("one retraining's", "new ", part) for part in _brought(new, earlier))]
    found = _failures_of_annotators(len(everything), labels, gate, "its", "")
    for whose, which, traces in parts:
        if not found and MIN_NEW_TRACES <= len(traces) < len(everything):
            found = _failures_of_annotators(len(traces), labels[labels["trace_id"].isin(traces)], gate, whose, which)
    return found


def _brought(new: set[str], earlier: Iterable[Collection[str]]) -> Iterator[set[str]]:
    """What each retraining brought, and this one at last; what an annotator failed on comes again."""
    left = set(new)
    for traces in sorted(map(set, earlier), key=len):
        yield left & traces
        left -= traces
    yield left


def _failures_of_annotators(
    num_traces: int, labels: pd.DataFrame, gate: GateConfig, whose: str, which: str
) -> list[str]:
    if labels.empty:
        return [f"no segment of {whose} {num_traces} {which}traces was labelled: see the annotators' failures"]
    rules = labels["rule"].value_counts()
    unlabelled, agreed, total = (int(rules.get("unlabelled", 0)), int(rules.get("agree", 0)), len(labels))
    found = []
    left_out = 1 - labels["trace_id"].nunique() / num_traces
    for share, what in ((left_out, "traces"), (unlabelled / total, "segments")):
        if share > gate.max_unlabelled:
            found.append(
                f"{100 * share:.0f} % of {whose} {which}{what} have no labels, more than the "
                f"{100 * gate.max_unlabelled:.0f} % of retrain.gate.max_unlabelled: an annotator failed"
            )
    share = agreed / max(total - unlabelled, 1)
    if share < gate.min_agreement:
        found.append(
            f"the annotators agreed on {100 * share:.0f} % of {whose} {which}segments, less than the "
            f"{100 * gate.min_agreement:.0f} % of retrain.gate.min_agreement: one of them labels at random, or "
            "otherwise than before"
        )
    return found
