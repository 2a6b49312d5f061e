"""How well a distilled annotator says what its teacher said, on traces that it did not learn from.

A segment may have two labels. A label counts as found where it is among those of both. The annotator always gives one:
where the teacher found none, it is wrong. Segments of which the teacher said nothing are for the caller to leave out.

Shapes: T segments, S labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.distillation.annotator import confidences_of, vote_of
from mralign_core.distillation.calibration import calibration_error
from mralign_core.method import FloatArray
from mralign_core.schemas.annotations import MOST_CONFIDENT

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Of segments that go on to other annotators."""


class LabelScore(NamedTuple):
    """One label: segments that the teacher gave it, and how well the annotator finds them (NaN: not defined)."""

    label: str
    segments: int
    precision: float
    recall: float
    f1: float


class DistillationScores(NamedTuple):
    """All of them.

    Args:
        labels: those that the teacher gave at least once, in canonical order.
        macro_f1: the mean of their F1.
        accuracy: share of segments whose surest label is among the teacher's, of all that the teacher was asked about.
        calibration_error: of the surest label's confidence, expected, in [0, 1].
        segments: that the teacher was asked about.
        unlabelled: of these, to which the teacher gave no label; the annotator gives one, wrongly.
    """

    labels: list[LabelScore]
    macro_f1: float
    accuracy: float
    calibration_error: float
    segments: int
    unlabelled: int


class Escalated(NamedTuple):
    """What becomes of the labels if the least sure segments are labelled by the teacher.

    Args:
        share: of the segments, that go on.
        below: confidence, from 0 to 10, below which they do.
        traces: share of the traces that have such a segment.
        macro_f1: of all labels together, those of the teacher being right by definition.
        macro_f1_rest: of the annotator's labels alone, of segments that don't go on.
        accuracy_rest: share of these whose surest label is among the teacher's.
    """

    share: float
    below: float
    traces: float
    macro_f1: float
    macro_f1_rest: float
    accuracy_rest: float


def score_annotator(probs: FloatArray, given: NDArray[np.bool_], labels: Sequence[str]) -> DistillationScores:
    """Score what an annotator says of segments that it did not learn from.

    Args:
        probs: (T, S) its confidences, from 0 to 1.
        given: (T, S) the teacher's labels.
        labels: the label set.
    """
    said = said_labels(probs, labels)
    scores = [
        LabelScore(label, int(given[:, place].sum()), *_precision_recall_f1(said[:, place], given[:, place]))
        for place, label in enumerate(labels)
        if given[:, place].any()
    ]
    best = probs.argmax(axis=1)
    is_right = given[np.arange(len(given)), best]
    error = calibration_error(probs.max(axis=1), is_right)
    unlabelled = int((~given.any(axis=1)).sum())
    mean_f1 = _mean(each.f1 for each in scores)
    return DistillationScores(scores, mean_f1, float(is_right.mean()), error, len(given), unlabelled)


def escalation_curve(
    probs: FloatArray,
    given: NDArray[np.bool_],
    labels: Sequence[str],
    trace_of_segment: NDArray[np.int64],
    escalate: Literal["segments", "traces"] = "segments",
) -> list[Escalated]:
    """What sending on the least sure segments buys, for each of ``SHARES`` that confidences tell apart.

    Args:
        probs: (T, S) confidences of an annotator that did not learn from these segments.
        given: (T, S) the teacher's labels.
        labels: the label set.
        trace_of_segment: (T,) number of the trace of each.
        escalate: what goes on, as in ``annotate.escalate``.
    """
    said, sure = said_labels(probs, labels), confidences_of(probs.max(axis=1))
    _, of_trace = np.unique(trace_of_segment, return_inverse=True)
    means = np.bincount(of_trace, weights=sure) / np.bincount(of_trace)
    values = means if escalate == "traces" else sure
    rows: list[Escalated] = []
    for below in dict.fromkeys(_threshold(values, share) for share in SHARES):
        goes_on = (values < below)[of_trace] if escalate == "traces" else values < below
        stays = ~goes_on
        right = given[stays][np.arange(int(stays.sum())), probs[stays].argmax(axis=1)]
        rows.append(
            Escalated(
                float(goes_on.mean()),
                below,
                len(np.unique(of_trace[goes_on])) / len(means),
                macro_f1(np.where(goes_on[:, None], given, said), given),
                macro_f1(said[stays], given[stays]),
                float(right.mean()) if stays.any() else float("nan"),
            )
        )
    return rows


def _threshold(values: FloatArray, share: float) -> float:
    """The confidence below which about so many of the values lie."""
    going = round(share * len(values))
    return 0.0 if not going else float(MOST_CONFIDENT) if going == len(values) else float(np.sort(values)[going])


def said_labels(probs: FloatArray, labels: Sequence[str]) -> NDArray[np.bool_]:
    """(T, S) the labels that an annotator with these confidences gives."""
    place = {label: number for number, label in enumerate(labels)}
    said = np.zeros(probs.shape, dtype=bool)
    for row, each in enumerate(probs):
        said[row, [place[label] for label in vote_of(each, labels).labels]] = True
    return said


def macro_f1(said: NDArray[np.bool_], given: NDArray[np.bool_]) -> float:
    """Mean F1 of the labels that are given at least once; NaN where none is.

    >>> said, given = np.array([[True, False], [False, True]]), np.array([[True, False], [True, False]])
    >>> round(macro_f1(said, given), 3)
    0.667
    """
    places = np.flatnonzero(given.any(axis=0))
    return _mean(_precision_recall_f1(said[:, place], given[:, place])[2] for place in places)


def _precision_recall_f1(said: NDArray[np.bool_], given: NDArray[np.bool_]) -> tuple[float, float, float]:
    both = int((said & given).sum())
    precision = both / said.sum() if said.any() else float("nan")
    return precision, both / given.sum(), 2 * both / (said.sum() + given.sum())


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else float("nan")
