"""Stream annotated traces from their Parquet files as columns, in memory that does not grow with the files.

What :func:`~.traces.labelled_traces` does row by row is done here on whole columns: labels become states, segments of
one step become one step, and each trace gets its polarity, stratum and question. Both files have the traces in one
order, and the rows of a trace are together; this is checked, as are the labels, since the tables' own row checks are
too slow here. Segments of one step have the same labels; where only one label is kept, the confidences of the first
segment choose.

Shapes: R rows of table ``annotations`` (one a segment), N traces, T steps, A annotators.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mralign_core.errors import DataError
from mralign_core.estimation.traces import TraceBatch
from mralign_core.method import IntArray
from mralign_core.method.hidden_chain import NOT_ASKED
from mralign_core.method.taxonomy import MAX_LABELS, Taxonomy
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES, POLARITIES
from mralign_core.storage.tables import stream_table

ROWS_AT_ONCE = 1 << 18
VOTES = ("labels_a", "labels_b")
SEGMENTS_PER_TRACE = 10
"""About so many; it only decides how far to read ahead in the candidates."""


def read_trace_batches(
    candidates: Path,
    annotations: Path,
    *,
    labels_per_segment: str = "two",
    taxonomy: Taxonomy,
    with_votes: bool = False,
    batch_rows: int = ROWS_AT_ONCE,
) -> Iterator[TraceBatch]:
    """Join annotations to their traces and merge segments of one step, in the order of both files.

    Args:
        candidates: file of table ``candidates``; traces without annotations are passed over.
        annotations: file of table ``annotations``.
        labels_per_segment: "two", or "one" to keep only the most confident label.
        taxonomy: gives the state of each label.
        with_votes: also read what each annotator said, whatever ``labels_per_segment`` is.
        batch_rows: annotation rows read at a time; a batch holds the traces that end in them.

    Raises:
        ArtifactError: a file is no such table.
        DataError: a row has a label that is not in the taxonomy, too many labels, a segment or step out of order, or
            belongs to a trace that is split, out of order or not among the candidates.
    """
    cursor = _CandidateCursor(candidates, 1 + batch_rows // SEGMENTS_PER_TRACE)
    for rows in _whole_traces(_label_rows(annotations, labels_per_segment, taxonomy, with_votes, batch_rows)):
        starts = _starts(rows.trace_ids)
        trace_of_row = np.cumsum(starts) - 1
        step_of_row = np.cumsum(_step_starts(rows, starts)) - 1
        first_of_step = np.flatnonzero(np.diff(step_of_row, prepend=-1))
        first_of_trace = np.flatnonzero(starts)
        trace_ids = rows.trace_ids.take(pa.array(first_of_trace))
        is_positive, strata, question_ids = cursor.take(trace_ids, rows.first_row + first_of_trace)
        yield TraceBatch(
            trace_ids=trace_ids,
            is_positive=is_positive,
            strata=strata,
            trace_of_step=trace_of_row[first_of_step],
            labels=rows.kept[first_of_step],
            step_of_segment=step_of_row,
            segments=rows.segments,
            question_ids=question_ids,
            votes=rows.votes[first_of_step] if with_votes else None,
        )


class _LabelRows(NamedTuple):
    """Rows of table ``annotations`` with states for labels; ``first_row`` is the number of the first one.

    ``labels`` are all that a segment has, ``kept`` those that it keeps: all, or the most confident one; ``votes`` is
    what each annotator said of it, of no annotator where that is not read.
    """

    first_row: int
    trace_ids: pa.Array
    segments: IntArray
    steps: IntArray
    labels: IntArray
    kept: IntArray
    votes: IntArray

    def part(self, start: int, end: int) -> _LabelRows:
        columns = (column[start:end] for column in self[1:])
        return _LabelRows(self.first_row + start, *columns)

    def followed_by(self, others: _LabelRows) -> _LabelRows:
        return _LabelRows(
            self.first_row,
            pa.concat_arrays([self.trace_ids, others.trace_ids]),
            *(np.concatenate(pair) for pair in zip(self[2:], others[2:], strict=True)),
        )


def _label_rows(
    path: Path, labels_per_segment: str, taxonomy: Taxonomy, with_votes: bool, batch_rows: int
) -> Iterator[_LabelRows]:
    columns = ["trace_id", "segment", "step", "labels", *(["confidences"] if labels_per_segment == "one" else [])]
    columns += ["rule", *VOTES] if with_votes else []
    first_row = 0
    for batch in stream_table(path, ANNOTATIONS, columns, batch_rows):
        for name in columns:
            _refuse_first(_nulls(batch.column(name)), first_row, f"{name} is empty")
        labels, kept = _labels(batch, first_row, taxonomy)
        yield _LabelRows(
            first_row,
            batch.column("trace_id"),
            batch.column("segment").to_numpy(),
            batch.column("step").to_numpy(),
            labels,
            kept,
            _votes(batch, labels, first_row, taxonomy) if with_votes else np.zeros((len(labels), 0, MAX_LABELS), int),
        )
        first_row += batch.num_rows


def _whole_traces(pieces: Iterable[_LabelRows]) -> Iterator[_LabelRows]:
    """The same rows, cut where a trace ends."""
    rest: _LabelRows | None = None
    for piece in pieces:
        rows = piece if rest is None else rest.followed_by(piece)
        last_start = int(np.flatnonzero(_starts(rows.trace_ids))[-1]) if len(rows.segments) else 0
        if last_start:
            yield rows.part(0, last_start)
        rest = rows.part(last_start, len(rows.segments))
    if rest is not None and len(rest.segments):
        yield rest


def _starts(trace_ids: pa.Array) -> NDArray[np.bool_]:
    """Whether each row is the first of its trace, (R,)."""
    starts = np.ones(len(trace_ids), dtype=np.bool_)
    starts[1:] = pc.not_equal(trace_ids[1:], trace_ids[:-1]).to_numpy(zero_copy_only=False)
    return starts


class _States(NamedTuple):
    """A column of label lists as states, 0 where there is none.

    Args:
        listed: (R, 2) in the order of the lists.
        ascending: (R, 2) in ascending order.
        places: (R, 2) where in the flat column each stands.
        sizes: (R,) lengths of the lists.
    """

    listed: IntArray
    ascending: IntArray
    places: IntArray
    sizes: IntArray


def _labels(batch: pa.RecordBatch, first_row: int, taxonomy: Taxonomy) -> tuple[IntArray, IntArray]:
    """States of each row's labels, ascending, 0 where there is none, and of those it keeps; twice (R, 2)."""
    states = _states(batch, "labels", first_row, taxonomy)
    if "confidences" in batch.schema.names:
        return states.ascending, _keep_most_confident(states, batch.column("confidences"), first_row)
    return states.ascending, states.ascending


def _votes(batch: pa.RecordBatch, labels: IntArray, first_row: int, taxonomy: Taxonomy) -> IntArray:
    """What annotator a, annotator b and the adjudicator said of each row, (R, 3, 2), as in ``method.hidden_chain``.

    The adjudicator was asked where the rule says so; where it found no label, the rule is "unlabelled" although the
    two annotators differ. Where a distilled annotator decided alone, b was not asked either.
    """
    a, b = (_states(batch, name, first_row, taxonomy).ascending for name in VOTES)
    rule = batch.column("rule")
    by_rule, unlabelled, alone = (
        pc.equal(rule, name).to_numpy(zero_copy_only=False) for name in ("adjudicate", "unlabelled", "distilled")
    )
    b = np.where(alone[:, None], [NOT_ASKED, 0], b)
    was_asked = by_rule | (unlabelled & (a != b).any(axis=1))
    return np.stack([a, b, np.where(was_asked[:, None], labels, [NOT_ASKED, 0])], axis=1)


def _states(batch: pa.RecordBatch, name: str, first_row: int, taxonomy: Taxonomy) -> _States:
    column = batch.column(name)
    sizes = pc.list_value_length(column).to_numpy()
    _refuse_first(sizes > MAX_LABELS, first_row, f"{name} has more than {MAX_LABELS} entries")
    state_of_code, code = _codes(column.flatten(), taxonomy)
    flat = np.append(state_of_code[code], 0)  # the 0 at the end stands for "no label"
    starts = np.cumsum(sizes) - sizes
    none = len(flat) - 1
    places = np.stack([np.where(sizes > place, starts + place, none) for place in range(MAX_LABELS)], axis=1)
    states = flat[places]
    unknown = (states < 0).any(axis=1)
    if unknown.any():
        row = int(unknown.argmax())
        raise DataError(
            f"table 'annotations', row {first_row + row}: {name} {column[row].as_py()} are not all in the taxonomy; "
            f"it has {', '.join(taxonomy.labels)}. Use the label set that the traces were annotated with"
        )
    twice = (sizes == MAX_LABELS) & (states[:, 0] == states[:, 1])
    _refuse_first(twice, first_row, f"{name} holds one label twice")
    low, high = np.minimum(*states.T), np.maximum(*states.T)
    ascending = np.where((sizes == MAX_LABELS)[:, None], np.stack([low, high], axis=1), states)
    return _States(states, ascending, places, sizes)


def _codes(labels: pa.Array, taxonomy: Taxonomy) -> tuple[IntArray, IntArray]:
    """State of each dictionary entry, -1 for an unknown label, and the entry of each label."""
    encoded = labels.dictionary_encode()
    states = {label: taxonomy.state(label) for label in taxonomy.labels}
    state_of_code = np.array([*(states.get(label, -1) for label in encoded.dictionary.to_pylist()), -1])
    return state_of_code, pc.fill_null(encoded.indices, len(state_of_code) - 1).to_numpy()


def _keep_most_confident(states: _States, confidences: pa.Array, first_row: int) -> IntArray:
    """As :func:`~mralign_core.method.transitions.keep_most_confident`, for all rows at once: the first of equals."""
    odd = pc.list_value_length(confidences).to_numpy() != states.sizes
    _refuse_first(odd, first_row, "there is not one confidence for each label")
    flat = np.append(confidences.flatten().to_numpy(zero_copy_only=False), -np.inf)[states.places]
    _refuse_first(np.isnan(flat).any(axis=1), first_row, "a confidence is not a number")
    kept = np.where(flat[:, 1] > flat[:, 0], states.listed[:, 1], states.listed[:, 0])
    return np.stack([kept, np.zeros_like(kept)], axis=1)


def _step_starts(rows: _LabelRows, starts: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each row is the first of its step, (R,)."""
    goes_on = ~starts[1:]
    risen = np.diff(rows.segments) > 0
    step_change = np.diff(rows.steps)
    same_labels = (rows.labels[1:] == rows.labels[:-1]).all(axis=1)
    second = rows.first_row + 1
    _refuse_first(goes_on & ~risen, second, "segment does not rise within its trace")
    _refuse_first(goes_on & (step_change < 0), second, "step falls within its trace")
    torn = goes_on & (step_change == 0) & ~same_labels
    _refuse_first(torn, second, "labels differ from those of the row before, which belongs to the same step")
    new_step = np.ones(len(starts), dtype=np.bool_)
    new_step[1:] = ~goes_on | (step_change != 0)
    return new_step


def _nulls(column: pa.Array) -> NDArray[np.bool_]:
    nulls: NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _refuse_first(is_bad: NDArray[np.bool_], first_row: int, problem: str, table: str = "annotations") -> None:
    if is_bad.any():
        raise DataError(
            f"table {table!r}, row {first_row + int(is_bad.argmax())}: {problem}; run the stage that made it again"
        )


class _CandidateCursor:
    """Polarity, stratum and question of traces that are asked for in the order of the file."""

    def __init__(self, path: Path, batch_rows: int) -> None:
        columns = ["trace_id", "polarity", "stratum", "question_id"]
        self._batches = stream_table(path, CANDIDATES, columns, batch_rows)
        self._num_read = 0
        self._ahead = pa.Table.from_batches([], pa.schema([(name, pa.string()) for name in columns]))

    def take(self, trace_ids: pa.Array, rows: IntArray) -> tuple[NDArray[np.bool_], pa.Array, pa.Array]:
        """Whether each trace is positive, its stratum, and the id of its question.

        Args:
            trace_ids: (N,) the traces asked for.
            rows: (N,) annotation row in which each begins, for the message.

        Raises:
            DataError: a trace is not among the candidates that follow the one asked for last.
        """
        places = pc.index_in(trace_ids, value_set=self._ahead["trace_id"])
        while places.null_count and (batch := next(self._batches, None)) is not None:
            self._append(batch)
            places = pc.index_in(trace_ids, value_set=self._ahead["trace_id"])
        wrong = _nulls(places)
        found = pc.fill_null(places, 0).to_numpy()
        wrong[1:] |= np.diff(found) <= 0
        if wrong.any():
            first = int(wrong.argmax())
            raise DataError(
                f"table 'annotations', row {rows[first]}: trace {trace_ids[first].as_py()!r} is not among the "
                "candidates that are left: its rows are not together, the traces are in another order than in table "
                "'candidates', or it is not one of them; run stage annotate again"
            )
        taken = self._ahead.take(pa.array(found)).combine_chunks()
        self._ahead = self._ahead.slice(int(found[-1]) + 1)
        is_positive = pc.equal(taken["polarity"], "positive").to_numpy()
        return is_positive, *(pc.cast(taken[name].combine_chunks(), pa.string()) for name in ("stratum", "question_id"))

    def _append(self, batch: pa.RecordBatch) -> None:
        for name in batch.schema.names:
            _refuse_first(_nulls(batch.column(name)), self._num_read, f"{name} is empty", "candidates")
        odd = pc.invert(pc.is_in(batch.column("polarity"), value_set=pa.array(POLARITIES)))
        problem = f"polarity must be one of {', '.join(POLARITIES)}"
        _refuse_first(odd.to_numpy(zero_copy_only=False), self._num_read, problem, "candidates")
        self._num_read += batch.num_rows
        self._ahead = pa.concat_tables([self._ahead, pa.Table.from_batches([batch])])
