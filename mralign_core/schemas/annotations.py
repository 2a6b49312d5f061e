"""The annotators' replies, and the labels that were made of them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import NATURAL, STRING, TEXT, one_of

RULES = ("agree", "merge", "adjudicate", "unlabelled", "distilled")
MOST_CONFIDENT = 10


def _are_confidences(value: Any) -> bool:
    return all(isinstance(item, (int, float)) and 0 <= item <= MOST_CONFIDENT for item in value)


LABELS = ("must be at most two distinct labels", lambda value: len(value) == len(set(value)) <= 2)
CONFIDENCES = (f"must be numbers from 0 to {MOST_CONFIDENT}", _are_confidences)

RAW_ANNOTATIONS = Table(
    name="raw_annotations",
    row_id="trace_id",
    columns={
        "trace_id": Column(pa.string(), [TEXT]),
        "role": Column(pa.string(), [one_of(("annotator_a", "annotator_b", "adjudicator"))]),
        "model": Column(pa.string(), [TEXT]),
        "attempt": Column(pa.int64(), [NATURAL]),
        "request_digest": Column(pa.string(), [TEXT]),
        "prompt_digest": Column(pa.string(), [TEXT]),
        "reply": Column(pa.string(), [STRING]),
        "problem": Column(pa.string(), [STRING]),
        "prompt_tokens": Column(pa.int64(), [NATURAL]),
        "completion_tokens": Column(pa.int64(), [NATURAL]),
        "cost_usd": Column(pa.float64()),
    },
    version=2,
)
"""A row an LLM reply. ``problem`` is "" for a reply that was used, else why it was not; ``attempt`` is 0, or 1 for the
reply to the repair turn; replies about several traces that were given up come before those of the first of them. The
store keeps each reply whole under its ``request_digest``, with its latency, or names the whole that it is a part of."""

ANNOTATIONS = Table(
    name="annotations",
    row_id="trace_id",
    columns={
        "trace_id": Column(pa.string(), [TEXT]),
        "segment": Column(pa.int64(), [NATURAL]),
        "step": Column(pa.int64(), [NATURAL]),
        "labels": Column(pa.list_(pa.string()), [LABELS]),
        "confidences": Column(pa.list_(pa.float64()), [CONFIDENCES]),
        "rule": Column(pa.string(), [one_of(RULES)]),
        "labels_a": Column(pa.list_(pa.string()), [LABELS]),
        "confidences_a": Column(pa.list_(pa.float64()), [CONFIDENCES]),
        "labels_b": Column(pa.list_(pa.string()), [LABELS]),
        "confidences_b": Column(pa.list_(pa.float64()), [CONFIDENCES]),
    },
    row_checks=[("labels and confidences must pair up", lambda row: len(row.labels) == len(row.confidences))],
    unique_together=("trace_id", "segment"),
)
"""A row a segment. Segments with the same ``step`` were merged by the annotators and count as one state. By rule
"distilled" a distilled annotator A decided alone, and annotator B was not asked: ``labels_b`` says nothing."""
