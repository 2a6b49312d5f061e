"""Kept traces with their labels and weights: a row a trace, its segments in it, read with flat memory.

Decisions:

* Token ids and weights are those that are trained on: of the end token too, where it is known. The pipeline has token
  spans of all segments, so that weights per token need no tokenizer; only the end token of a trace from a file does,
  since no model drew it.
* The three tables are read side by side, in the order of the traces, which all of them have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from mralign_core.errors import ArtifactError
from mralign_core.method.token_weights import token_weights
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.base import Table
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.storage.tables import stream_table

ROWS_OF_BATCH = 500
"""Traces in memory at a time."""
SPAN_FIELDS = ("start", "end", "token_start", "token_end")
FIELDS_OF_LABELS = tuple(name for name in ANNOTATIONS.columns if name not in ("trace_id", "segment"))
FIELDS_OF_WEIGHTS = tuple(name for name in SEGMENT_WEIGHTS.columns if name not in ("trace_id", "segment"))
STORED_FIELDS = tuple(name for name in CANDIDATES.columns if name not in ("completion_ids", "segments"))
"""Columns of the candidates that a row has as they are."""

_SEGMENT = pa.struct(
    [
        *((name, pa.int64()) for name in SPAN_FIELDS),
        *((name, ANNOTATIONS.columns[name].type) for name in FIELDS_OF_LABELS),
        *((name, SEGMENT_WEIGHTS.columns[name].type) for name in FIELDS_OF_WEIGHTS),
    ]
)
EXPORTED_ROWS = pa.schema(
    [
        *((name, CANDIDATES.columns[name].type) for name in STORED_FIELDS),
        ("question_set", pa.string()),
        ("label", pa.bool_()),
        ("completion_ids", pa.list_(pa.int64())),
        ("num_stored_ids", pa.int64()),
        ("completion_weights", pa.list_(pa.float64())),
        ("segments", pa.list_(_SEGMENT)),
    ]
)
"""A row a trace: the columns of :data:`~mralign_core.schemas.candidates.CANDIDATES`, and ``question_set``; ``label``,
whether the trace is positive; ``completion_ids`` with the end token, of which ``num_stored_ids`` are the trace's own;
``completion_weights``, one of each of ``completion_ids``, null where the trace has no weights; ``segments`` with the
columns of annotations and weights, null where there are none."""

TraceRow = dict[str, Any]


class TraceTables(NamedTuple):
    """Where the rows come from.

    Args:
        candidates: file of the traces.
        annotations: file of their labels; None where there are none yet.
        weights: file of the segments' weights; None where there are none yet.
        set_of_question: question_id → name of its question set.
        default_set: of questions that are not in it.
        end_token_id: ends completions whose own end is not known; None where no tokenizer says it.
    """

    candidates: Path
    annotations: Path | None
    weights: Path | None
    set_of_question: Mapping[str, str]
    default_set: str
    end_token_id: int | None


def read_trace_rows(tables: TraceTables) -> Iterator[TraceRow]:
    """The traces in their order, as rows of :data:`EXPORTED_ROWS`.

    Raises:
        ArtifactError: a file is damaged, or has rows of other traces or in another order.
    """
    labels = _OfTraces(tables.annotations, ANNOTATIONS)
    weights = _OfTraces(tables.weights, SEGMENT_WEIGHTS)
    for batch in stream_table(tables.candidates, CANDIDATES, list(CANDIDATES.columns), ROWS_OF_BATCH):
        for trace in batch.to_pylist():
            yield _row(trace, labels.of(trace["trace_id"]), weights.of(trace["trace_id"]), tables)
    labels.require_end()
    weights.require_end()


class _OfTraces:
    """The rows of a table that has several a trace, trace by trace."""

    def __init__(self, path: Path | None, table: Table) -> None:
        self._path = path
        self._groups = groupby(_rows(path, table), key=itemgetter("trace_id")) if path else iter(())
        self._advance()

    def _advance(self) -> None:
        trace_id, rows = next(self._groups, ("", ()))
        self._trace_id, self._of_trace = trace_id, {row["segment"]: row for row in rows}

    def of(self, trace_id: str) -> dict[int, dict[str, Any]]:
        """Segment → row; nothing of a trace that has none."""
        if self._trace_id != trace_id:
            return {}
        found = self._of_trace
        self._advance()
        return found

    def require_end(self) -> None:
        if self._trace_id:
            raise ArtifactError(
                f"{self._path} has rows of trace {self._trace_id!r} that the candidates have not, or in another order: "
                "name candidates, annotations and weights of one run"
            )


def _rows(path: Path, table: Table) -> Iterator[dict[str, Any]]:
    for batch in stream_table(path, table, list(table.columns), ROWS_OF_BATCH):
        yield from batch.to_pylist()


def _row(
    trace: dict[str, Any],
    labels: Mapping[int, Mapping[str, Any]],
    weights: Mapping[int, Mapping[str, Any]],
    tables: TraceTables,
) -> TraceRow:
    segments = [
        {
            **{name: span[name] for name in SPAN_FIELDS},
            **{name: labels.get(number, {}).get(name) for name in FIELDS_OF_LABELS},
            **{name: weights.get(number, {}).get(name) for name in FIELDS_OF_WEIGHTS},
        }
        for number, span in enumerate(trace["segments"])
    ]
    ids = _ids_to_train_on(trace, tables.end_token_id)
    return {
        **{name: trace[name] for name in STORED_FIELDS},
        "question_set": tables.set_of_question.get(trace["question_id"], tables.default_set),
        "label": trace["polarity"] == "positive",
        "completion_ids": ids,
        "num_stored_ids": len(trace["completion_ids"]),
        "completion_weights": _weights_of_tokens(segments, len(ids)),
        "segments": segments,
    }


def _ids_to_train_on(trace: Mapping[str, Any], end_token_id: int | None) -> list[int]:
    """The completion's ids with the end token, as :func:`~mralign_core.training.examples.build_examples` has them."""
    ids, drawn = list(trace["completion_ids"]), trace["end_token_id"]
    end = end_token_id if drawn is None else drawn
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _weights_of_tokens(segments: Sequence[Mapping[str, Any]], num_tokens: int) -> list[float] | None:
    weights = [segment["weight"] for segment in segments]
    if None in weights:
        return None
    spans = [(segment["token_start"], segment["token_end"]) for segment in segments]
    return [float(weight) for weight in token_weights(num_tokens, spans, weights)]


def stored_trace(row: TraceRow) -> dict[str, Any]:
    """A row as the candidates have it; the other way round than :func:`read_trace_rows`."""
    spans = [{name: segment[name] for name in SPAN_FIELDS} for segment in row["segments"]]
    ids = row["completion_ids"][: row["num_stored_ids"]]
    trace = {**{name: row[name] for name in STORED_FIELDS}, "completion_ids": ids, "segments": spans}
    return {name: trace[name] for name in CANDIDATES.columns}


def stored_labels(row: TraceRow) -> list[dict[str, Any]]:
    """The labels of a row as the annotations have them; none where the trace has no labels."""
    return [
        {"trace_id": row["trace_id"], "segment": number, **{name: segment[name] for name in FIELDS_OF_LABELS}}
        for number, segment in enumerate(row["segments"])
        if segment["rule"] is not None
    ]


def is_labelled(row: TraceRow) -> bool:
    """Whether annotators labelled the trace: only such traces are trained on."""
    return any(segment["rule"] is not None for segment in row["segments"])
