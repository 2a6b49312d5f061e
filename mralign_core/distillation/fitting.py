"""Learn from labels that were paid for, or that people gave, and measure what was learned on traces that were not seen.

Every figure comes from cross-fitting: traces are split into folds, those of one question together; a chain that is
fitted without a fold says what it thinks of it. These votes choose the penalty, calibrate the confidences, and are
scored. What is published is fitted on all traces, so that the figures are of annotators that had a fold less to learn
from.

Shapes: T segments of all traces, S labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.distillation.annotator import AboutAnnotator, DistilledAnnotator, vote_of
from mralign_core.distillation.calibration import fit_calibration
from mralign_core.distillation.features import (
    Encoder,
    VectorScale,
    fit_scale,
    segment_features,
    vectors_of,
)
from mralign_core.distillation.label_chain import LabelChain, fit_label_chain
from mralign_core.errors import DataError
from mralign_core.method import FloatArray
from mralign_core.method.consolidation import LabelVote

PENALTIES = (0.3, 1.0, 3.0)
_NUM_FOLDS = 5
SAME_COSINE, SAME_READING = 0.999, 0.99
FEWEST_QUESTIONS = _NUM_FOLDS
"""One is held out in each fold."""
_PROBE = ("Wait, maybe that is not right.", "I recall that it was in 1969.")
"""Texts whose vectors tell one encoder from another."""


class LabelledTraces(NamedTuple):
    """Traces to learn from.

    Args:
        texts: the segments of each trace.
        labels: of each segment: one or two, none where the teacher found none, and None where it said nothing.
        questions: of each trace; those of one question are never on both sides of a split.
    """

    texts: Sequence[Sequence[str]]
    labels: Sequence[Sequence[Sequence[str] | None]]
    questions: Sequence[str]

    @property
    def trace_of_segment(self) -> NDArray[np.int64]:
        """(T,) number of the trace of each segment."""
        return np.repeat(np.arange(len(self.texts)), [len(each) for each in self.texts])


class Distilled(NamedTuple):
    """An annotator, and what chains that had not seen them say of the traces that it learned from.

    Args:
        annotator: fitted on all traces.
        held_out: (T, S) calibrated confidence of each label of each segment, from 0 to 1.
        given: (T, S) the labels.
        is_rated: (T,) whether the teacher said anything of a segment, if only that it has no label.
        penalty: that was chosen.
        log_likelihoods: penalty → mean log-probability of a label that was given, in nats, on held-out folds.
    """

    annotator: DistilledAnnotator
    held_out: FloatArray
    given: NDArray[np.bool_]
    is_rated: NDArray[np.bool_]
    penalty: float
    log_likelihoods: dict[float, float]

    @property
    def votes(self) -> list[LabelVote]:
        """What an annotator that had not seen them says of the segments."""
        return [vote_of(probs, self.annotator.about.labels) for probs in self.held_out]


def distil(
    traces: LabelledTraces,
    labels: Sequence[str],
    *,
    encode: Encoder | None = None,
    encoder: str = "",
    reads_traces: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Distilled:
    """Fit an annotator.

    Args:
        traces: to learn from.
        labels: the closed label set, in canonical order.
        encode: gives vectors of segments.
        encoder: the name of what gives them.
        reads_traces: whether that is a language model, which reads whole traces.
        on_progress: called with (done, total) fits.

    Raises:
        DataError: the traces are of too few questions, or hold one label only.
    """
    given = given_labels(traces, labels)
    is_rated = np.array([segment is not None for trace in traces.labels for segment in trace], dtype=bool)
    _check(traces, given)
    vectors = vectors_of(traces.texts, encode) if encode else None
    scale = fit_scale(vectors) if vectors is not None and reads_traces else None
    features = segment_features(traces.texts, vectors, scale)
    folds = _folds(traces.questions)
    fits = Fits(features, traces.trace_of_segment, given)
    report = _counted(on_progress, len(PENALTIES) * len(folds) + 1)
    by_penalty = {penalty: fits.cross_fitted(folds, penalty, report) for penalty in PENALTIES}
    likelihoods = {penalty: fits.log_likelihood(marginals) for penalty, marginals in by_penalty.items()}
    best = max(PENALTIES, key=lambda penalty: likelihoods[penalty])
    calibration = fit_calibration(by_penalty[best][is_rated], given[is_rated])
    chain = fits.fitted(np.ones(len(given), dtype=bool), best)
    report()
    probe = probe_of(encode) if encode else ()
    about = AboutAnnotator(
        labels=tuple(labels), calibration=calibration, encoder=encoder, encoder_probe=probe, encoder_scale=scale
    )
    annotator = DistilledAnnotator(about, chain, encode)
    return Distilled(annotator, calibration.apply(by_penalty[best]), given, is_rated, best, likelihoods)


class Fits(NamedTuple):
    """What chains are fitted on: of each segment its features, the number of its trace, and its labels."""

    features: Any
    trace_of_segment: NDArray[np.int64]
    given: NDArray[np.bool_]

    def cross_fitted(
        self, folds: Sequence[NDArray[np.int64]], penalty: float, report: Callable[[], None]
    ) -> FloatArray:
        """(T, S) marginals of each fold by a chain that is fitted on the others."""
        marginals = np.empty(self.given.shape)
        for fold in folds:
            rows = np.isin(self.trace_of_segment, fold)
            marginals[rows] = self.fitted(~rows, penalty).marginals(self.features[rows], self._lengths(rows))
            report()
        return marginals

    def fitted(self, rows: NDArray[np.bool_], penalty: float) -> LabelChain:
        """The chain of some segments, whole traces of them."""
        return fit_label_chain(self.features[rows], self._lengths(rows), self.given[rows], penalty)

    def log_likelihood(self, marginals: FloatArray) -> float:
        """Mean log-probability of a label that was given, in nats."""
        return float(np.log(np.maximum(marginals[self.given], 1e-12)).mean())

    def _lengths(self, rows: NDArray[np.bool_]) -> list[int]:
        """Segments of each trace that has some of the rows."""
        return np.unique(self.trace_of_segment[rows], return_counts=True)[1].tolist()


def probe_of(encode: Encoder) -> tuple[tuple[float, ...], ...]:
    """Vectors of two texts, by which one encoder is told from another."""
    return tuple(tuple(round(float(value), 5) for value in vector) for vector in encode(_PROBE))


def is_same_encoder(encode: Encoder, probe: Sequence[Sequence[float]], scale: VectorScale | None = None) -> bool:
    """Whether an encoder gives the vectors of a probe, but for what another machine makes of the last digits.

    A language model's vectors are compared on their scale, since a few large dimensions are alike in all of them, and
    less strictly, since it may run in half precision.
    """
    found, known = encode(_PROBE), np.array(probe)
    if found.shape != known.shape:
        return False
    if scale is None:
        return bool(((found * known).sum(axis=1) > SAME_COSINE).all())
    found, known = scale.apply(found), scale.apply(known)
    return bool(((found * known).sum(axis=1) > SAME_READING).all())


def given_labels(traces: LabelledTraces, labels: Sequence[str]) -> NDArray[np.bool_]:
    """(T, S) the labels of each segment.

    Raises:
        DataError: one is not in the label set.
    """
    place = {label: number for number, label in enumerate(labels)}
    rows = [set(segment or ()) for trace in traces.labels for segment in trace]
    if foreign := sorted(set().union(*rows) - set(place)):
        raise DataError(
            f"the labelled traces have label {foreign[0]!r:.60}, which is not in the label set "
            f"({', '.join(labels)}): use the label set that they were labelled with (annotate.label_set)"
        )
    given = np.zeros((len(rows), len(labels)), dtype=bool)
    for row, segment in enumerate(rows):
        given[row, [place[label] for label in segment]] = True
    return given


def _check(traces: LabelledTraces, given: NDArray[np.bool_]) -> None:
    num_questions = len(set(traces.questions))
    if num_questions < FEWEST_QUESTIONS:
        raise DataError(
            f"these are labelled traces of {num_questions} questions, and an annotator is distilled from those of "
            f"{FEWEST_QUESTIONS} or more, of which every fifth is held out: label more, or name an annotator that "
            "learned elsewhere"
        )
    if given.any(axis=0).sum() < 2:
        raise DataError("the labelled traces hold fewer than two labels: there is nothing to tell apart")


def _folds(questions: Sequence[str]) -> list[NDArray[np.int64]]:
    """Numbers of the traces in each fold, those of one question together."""
    from sklearn.model_selection import GroupKFold

    numbers = np.arange(len(questions))
    return [held_out for _, held_out in GroupKFold(_NUM_FOLDS).split(numbers, groups=np.array(questions))]


def _counted(on_progress: Callable[[int, int], None] | None, total: int) -> Callable[[], None]:
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        if on_progress:
            on_progress(done, total)

    return report
