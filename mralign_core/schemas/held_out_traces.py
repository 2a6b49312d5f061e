"""The thinking of held-out answers, to be labelled."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import NATURAL, STRING, TEXT, TEXTS

_SEGMENTS = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64())]))


def _segments_are_in_the_text(row: Any) -> bool:
    return all(0 <= segment["start"] < segment["end"] <= len(row.completion) for segment in row.segments)


HELD_OUT_TRACES = Table(
    name="held_out_traces",
    row_id="trace_id",
    columns={
        "trace_id": Column(pa.string(), [TEXT], unique=True),
        "variant": Column(pa.string(), [TEXT]),
        "question_id": Column(pa.string(), [TEXT]),
        "stratum": Column(pa.string(), [STRING]),
        "draw": Column(pa.int64(), [NATURAL]),
        "question": Column(pa.string(), [TEXT]),
        "answers": Column(pa.list_(pa.string()), [TEXTS]),
        "completion": Column(pa.string(), [TEXT]),
        "answer": Column(pa.string(), [STRING]),
        "is_right": Column(pa.bool_()),
        "segments": Column(_SEGMENTS),
    },
    row_checks=[("segments must be spans inside the completion", _segments_are_in_the_text)],
)
"""A row a held-out answer with closed thinking, of the variants whose thinking is compared. ``completion`` is the
thinking alone; ``segments`` are characters of it. ``is_right`` is EM_a."""
