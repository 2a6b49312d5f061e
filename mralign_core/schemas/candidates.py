"""The traces that are annotated and aligned on."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import IDS, NATURAL, STRING, TEXT, TEXTS, one_of

POLARITIES = ("positive", "negative")

_SEGMENTS = pa.list_(
    pa.struct(
        [
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("token_start", pa.int64()),
            ("token_end", pa.int64()),
        ]
    )
)


def _segments_are_ordered(row: Any) -> bool:
    """Character and token spans don't overlap, don't go back, and stay inside the completion."""
    spans = [(s["start"], s["end"], s["token_start"], s["token_end"]) for s in row.segments]
    inside = all(0 <= a < b <= len(row.completion) and 0 <= c <= d <= len(row.completion_ids) for a, b, c, d in spans)
    return bool(spans) and inside and all(x[1] <= y[0] and x[3] <= y[2] for x, y in pairwise(spans))


CANDIDATES = Table(
    name="candidates",
    row_id="trace_id",
    columns={
        "trace_id": Column(pa.string(), [TEXT], unique=True),
        "question_id": Column(pa.string(), [TEXT]),
        "question": Column(pa.string(), [TEXT]),
        "answers": Column(pa.list_(pa.string()), [TEXTS]),
        "stratum": Column(pa.string(), [STRING]),
        "polarity": Column(pa.string(), [one_of(POLARITIES)]),
        "draw": Column(pa.int64(), [NATURAL]),
        "prompt": Column(pa.string(), [STRING]),
        "completion": Column(pa.string(), [TEXT]),
        "prompt_ids": Column(pa.list_(pa.int64()), [IDS]),
        "completion_ids": Column(pa.list_(pa.int64()), [IDS]),
        "end_token_id": Column(pa.int64(), [NATURAL], nullable=True),
        "answer": Column(pa.string(), [STRING]),
        "segments": Column(_SEGMENTS),
        "reasoning_tokens": Column(pa.int64(), [NATURAL]),
    },
    row_checks=[("segments must be ordered spans inside the completion", _segments_are_ordered)],
    version=2,
)
"""A row a kept trace. ``segments``: character span (start, end) of each segment's own text in ``completion``, without
delimiter or tag, and the half-open token span (token_start, token_end) in ``completion_ids`` that carries its weight
(with the think tag for the first segment, and with the delimiter behind it). ``end_token_id`` is the end token that the
model drew behind the completion; null where that is not known."""
