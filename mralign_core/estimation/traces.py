"""Annotated traces as the estimator sees them: one by one as lists, or many together as columns.

Shapes: N traces, T steps, S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mralign_core.errors import DataError
from mralign_core.method import IntArray
from mralign_core.method.taxonomy import MAX_LABELS, Taxonomy
from mralign_core.method.transitions import keep_most_confident


class LabelledTrace(NamedTuple):
    """A trace as the estimator sees it: per step its states, and per segment the step it belongs to."""

    trace_id: str
    polarity: str
    steps: list[tuple[int, ...]]
    step_of_segment: list[int]
    stratum: str = ""
    question_id: str = ""
    """Empty: the only trace of its question."""


class TraceBatch(NamedTuple):
    """Whole traces as columns; steps and segments are in the order of the traces.

    Args:
        trace_ids: (N,) strings.
        is_positive: (N,) bool.
        strata: (N,) strings.
        trace_of_step: (T,) which trace of the batch each step belongs to.
        labels: (T, 2) states of each step in ascending order; 0 in the second place, or in both, where there is none.
        step_of_segment: (S,) which step of the batch each segment belongs to.
        segments: (S,) number of each segment in its trace.
        question_ids: (N,) strings; traces of one question share it.
        votes: (T, 3, 2) what annotator a, annotator b and the adjudicator said of each step, as in
            ``method.hidden_chain``; None where that was not read.
    """

    trace_ids: pa.Array
    is_positive: NDArray[np.bool_]
    strata: pa.Array
    trace_of_step: IntArray
    labels: IntArray
    step_of_segment: IntArray
    segments: IntArray
    question_ids: pa.Array
    votes: IntArray | None = None


def labelled_traces(
    candidates: pd.DataFrame,
    annotations: pd.DataFrame,
    *,
    labels_per_segment: str = "two",
    taxonomy: Taxonomy,
) -> list[LabelledTrace]:
    """Join annotations to their traces and merge segments of one step, in the order of ``candidates``.

    Segments of one step have the same labels; where only one is kept, the confidences of the first segment choose.

    Args:
        candidates: rows of ``schemas.candidates``.
        annotations: rows of ``schemas.annotations``; traces without any are left out.
        labels_per_segment: "two", or "one" to keep only the most confident label.
        taxonomy: gives the state of each label.

    Raises:
        DataError: segments of one step have different labels.
    """
    by_trace = {trace_id: rows.sort_values("segment") for trace_id, rows in annotations.groupby("trace_id")}
    traces = []
    for trace in candidates.itertuples(index=False):
        if trace.trace_id not in by_trace:
            continue
        rows = by_trace[trace.trace_id]
        step_of_segment = pd.factorize(rows["step"])[0].tolist()
        _refuse_torn_step(trace.trace_id, rows)
        steps = []
        for first in rows.drop_duplicates("step").itertuples(index=False):
            is_one = labels_per_segment == "one"
            kept = keep_most_confident(first.labels, first.confidences) if is_one else tuple(first.labels)
            steps.append(tuple(taxonomy.state(label) for label in kept))
        of_question = (getattr(trace, "stratum", ""), getattr(trace, "question_id", ""))
        traces.append(LabelledTrace(trace.trace_id, trace.polarity, steps, step_of_segment, *of_question))
    return traces


def _refuse_torn_step(trace_id: str, rows: pd.DataFrame) -> None:
    labels_of: dict[int, set[str]] = {}
    for segment, step, labels in zip(rows["segment"], rows["step"], rows["labels"], strict=True):
        if labels_of.setdefault(step, set(labels)) != set(labels):
            raise DataError(
                f"trace {trace_id!r}, segment {segment}: labels differ from those of a segment before, which belongs "
                "to the same step; run stage annotate again"
            )


def batch_of_traces(traces: Sequence[LabelledTrace]) -> TraceBatch:
    """The same traces as columns.

    Raises:
        DataError: a step has more than two labels.
    """
    for trace in traces:
        if crowded := [step for step, states in enumerate(trace.steps) if len(set(states)) > MAX_LABELS]:
            raise DataError(f"trace {trace.trace_id!r}, step {crowded[0]} has more than {MAX_LABELS} labels")
    num_steps = np.array([len(trace.steps) for trace in traces], dtype=np.int64)
    padded = [(*sorted(set(states)), 0, 0)[:MAX_LABELS] for trace in traces for states in trace.steps]
    first_step = np.cumsum(num_steps) - num_steps
    return TraceBatch(
        trace_ids=pa.array([trace.trace_id for trace in traces], pa.string()),
        is_positive=np.array([trace.polarity == "positive" for trace in traces], dtype=np.bool_),
        strata=pa.array([trace.stratum for trace in traces], pa.string()),
        trace_of_step=np.repeat(np.arange(len(traces)), num_steps),
        labels=np.array(padded, dtype=np.int64).reshape(-1, MAX_LABELS),
        step_of_segment=np.array(
            [start + step for start, trace in zip(first_step, traces, strict=True) for step in trace.step_of_segment],
            dtype=np.int64,
        ),
        segments=np.array([n for trace in traces for n in range(len(trace.step_of_segment))], dtype=np.int64),
        question_ids=pa.array([trace.question_id or trace.trace_id for trace in traces], pa.string()),
    )


def traces_of_batch(batch: TraceBatch) -> list[LabelledTrace]:
    """The traces of a batch one by one: the inverse of :func:`batch_of_traces`."""
    num_traces = len(batch.trace_ids)
    first_step = np.searchsorted(batch.trace_of_step, np.arange(num_traces + 1))
    first_segment = np.searchsorted(batch.step_of_segment, first_step)
    states = [tuple(state for state in pair if state) for pair in batch.labels.tolist()]
    ids, strata, questions = (column.to_pylist() for column in (batch.trace_ids, batch.strata, batch.question_ids))
    traces = []
    for place in range(num_traces):
        start, end = first_step[place], first_step[place + 1]
        of_segment = batch.step_of_segment[first_segment[place] : first_segment[place + 1]] - start
        polarity = "positive" if batch.is_positive[place] else "negative"
        of_question = (strata[place], questions[place])
        traces.append(LabelledTrace(ids[place], polarity, states[start:end], of_segment.tolist(), *of_question))
    return traces
