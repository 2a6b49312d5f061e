"""Examples for the report, chosen by fixed rules so that nobody can pick the flattering ones."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.evaluation.metrics import answer_metrics
from mralign_core.method.segment_weights import WeightForm, neutral_weight
from mralign_core.method.traces import split_segments

Pieces = list[tuple[str, bool]]
"""Text in pieces, each with whether it is a gold answer."""


class WeightedSegment(NamedTuple):
    """One segment of a training trace, with what it does and the weight its tokens carry."""

    text: Pieces
    labels: tuple[str, ...]
    rule: str
    weight: float | None
    tone: float
    """How far the weight is from that of a move that tells nothing: its logarithm, or its difference in the forms
    that allow a sign."""
    clipped: bool


class WeightedTrace(NamedTuple):
    """One training trace."""

    why: str
    trace_id: str
    question: str
    golds: tuple[str, ...]
    polarity: str
    answer: Pieces
    segments: list[WeightedSegment]


class EvaluatedAnswer(NamedTuple):
    """One answer of the evaluation."""

    segments: list[Pieces]
    answer: Pieces
    em_thought: bool
    em_answer: bool
    outcome: str


class BeforeAfter(NamedTuple):
    """The same question and draw before and after training; the first ``num_shared`` segments are equal."""

    why: str
    question: str
    golds: tuple[str, ...]
    draw: int
    before: EvaluatedAnswer
    after: EvaluatedAnswer
    num_shared: int


def weighted_traces(
    candidates: pd.DataFrame, annotations: pd.DataFrame, segment_weights: pd.DataFrame | None, form: WeightForm
) -> list[WeightedTrace]:
    """Up to three training traces: the widest spread of weights in each polarity, and the median one.

    Args:
        candidates: rows of ``schemas.candidates``.
        annotations: rows of ``schemas.annotations``.
        segment_weights: rows of ``schemas.segment_weights``; without them the first trace of each polarity is taken.
        form: of the weights, for their colours.
    """
    traces = candidates[candidates["trace_id"].isin(set(annotations["trace_id"]))].sort_values("trace_id")
    if segment_weights is None or segment_weights.empty:
        first = traces.drop_duplicates("polarity")
        return [
            _weighted_trace("the first of its polarity", row, annotations, None, form) for _, row in first.iterrows()
        ]
    weights = segment_weights["weight"].astype(float).groupby(segment_weights["trace_id"])
    traces = traces.assign(spread=traces["trace_id"].map(weights.max() - weights.min()).fillna(0.0))
    traces = traces.sort_values(["spread", "trace_id"], ignore_index=True)
    widest = [members.index[-1] for _, members in traces.groupby("polarity", sort=True)][::-1]
    reasons = dict.fromkeys(widest, "the widest spread of weights among {} traces")
    reasons.setdefault(len(traces) // 2, "the median spread of weights of all traces")
    chosen = [(why, traces.iloc[place]) for place, why in reasons.items() if place < len(traces)]
    return [
        _weighted_trace(why.format(row["polarity"]), row, annotations, segment_weights, form) for why, row in chosen
    ]


def before_and_after(
    scores: pd.DataFrame, questions: pd.DataFrame | None, variant: str, baseline: str = "on"
) -> list[BeforeAfter]:
    """The first answer that training repaired, the first that it broke, and the first still inconsistent.

    Args:
        scores: rows of ``schemas.scores``.
        questions: rows of ``schemas.questions``; without them the question's id stands for its text.
        variant: the trained variant.
        baseline: what it is compared with.
    """
    keys = ["question_id", "draw"]
    marks = answer_metrics(scores).set_index(keys)
    before, after = (marks[marks["variant"] == name] for name in (baseline, variant))
    paired = before[["acc", "mis"]].join(after[["acc", "mis"]], how="inner", rsuffix="_after").dropna()
    kinds = {
        "repaired: not both right before, both right after": (paired["acc"] == 0) & (paired["acc_after"] == 1),
        "broken: both right before, not after": (paired["acc"] == 1) & (paired["acc_after"] == 0),
        "still inconsistent": (paired["mis"] == 1) & (paired["mis_after"] == 1),
    }
    texts = {} if questions is None else {row["question_id"]: row for _, row in questions.iterrows()}
    rows = scores.set_index(["variant", *keys])
    found = []
    for kind, members in kinds.items():
        if members.any():
            cell = paired.index[members.to_numpy(bool)][0]
            why = f"{kind} ({int(members.sum()):,} of {len(paired):,} answers)"
            pair = (rows.loc[(baseline, *cell)], rows.loc[(variant, *cell)])
            found.append(_before_after(why, cell, texts.get(cell[0]), *pair))
    return found


def mark_golds(text: str, golds: Sequence[str]) -> Pieces:
    """Split a text at the gold answers in it, case aside.

    >>> mark_golds("It is Oslo.", ["oslo"])
    [('It is ', False), ('Oslo', True), ('.', False)]
    """
    stripped = sorted({gold.strip() for gold in golds if gold.strip()}, key=lambda gold: (-len(gold), gold))
    if not stripped or not text:
        return [(text, False)] if text else []
    pattern = rf"(?<!\w)({'|'.join(re.escape(gold) for gold in stripped)})(?!\w)"
    pieces = re.split(pattern, text, flags=re.IGNORECASE)
    return [(piece, place % 2 == 1) for place, piece in enumerate(pieces) if piece]


def _weighted_trace(
    why: str, trace: pd.Series, annotations: pd.DataFrame, segment_weights: pd.DataFrame | None, form: WeightForm
) -> WeightedTrace:
    labelled = annotations[annotations["trace_id"] == trace["trace_id"]].set_index("segment")
    weighted = (
        None
        if segment_weights is None
        else segment_weights[segment_weights["trace_id"] == trace["trace_id"]].set_index("segment")
    )
    golds = tuple(map(str, trace["answers"]))
    segments = []
    for place, span in enumerate(trace["segments"]):
        label = labelled.loc[place] if place in labelled.index else None
        reward = weighted.loc[place] if weighted is not None and place in weighted.index else None
        segments.append(
            WeightedSegment(
                text=mark_golds(trace["completion"][span["start"] : span["end"]], golds),
                labels=() if label is None else tuple(label["labels"]),
                rule="unlabelled" if label is None else str(label["rule"]),
                weight=None if reward is None else float(reward["weight"]),
                tone=0.0 if reward is None else _tone(float(reward["weight"]), form),
                clipped=reward is not None and bool(reward["clipped"]),
            )
        )
    answer = mark_golds(str(trace["answer"]), golds)
    about = (str(trace["trace_id"]), str(trace["question"]), golds, str(trace["polarity"]))
    return WeightedTrace(why, *about, answer, segments)


def _tone(weight: float, form: WeightForm) -> float:
    if form in ("ratio", "power"):
        return math.log(weight) if weight > 0 else -math.inf
    return weight - neutral_weight(form)


def _before_after(
    why: str, cell: tuple[str, int], question: pd.Series | None, before: pd.Series, after: pd.Series
) -> BeforeAfter:
    golds = () if question is None else tuple(map(str, question["answers"]))
    text = cell[0] if question is None else str(question["question"])
    replies = [_reply(row, golds) for row in (before, after)]
    pairs = zip(replies[0].segments, replies[1].segments, strict=False)
    differs = [ours != theirs for ours, theirs in pairs]
    num_shared = differs.index(True) if True in differs else len(differs)
    return BeforeAfter(why, text, golds, int(cell[1]), replies[0], replies[1], num_shared)


def _reply(row: pd.Series, golds: Sequence[str]) -> EvaluatedAnswer:
    thinking, answer = _text(row["thinking"]), _text(row["answer"])
    segments = [mark_golds(thinking[span.start : span.end], golds) for span in split_segments(thinking)]
    em_thought = row["em_thought"] is not None and not pd.isna(row["em_thought"]) and bool(row["em_thought"])
    return EvaluatedAnswer(segments, mark_golds(answer, golds), em_thought, bool(row["em_answer"]), str(row["outcome"]))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
