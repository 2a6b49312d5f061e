"""The labels that one person gave, whole: what a run reads where a config names that person as an annotator."""

from __future__ import annotations

import pyarrow as pa

from mralign_core.schemas.annotations import LABELS
from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import NATURAL, TEXT

HUMAN_LABELS_STAGE = "human-labels"
"""The artifact that holds them."""
HUMAN_LABELS = Table(
    name="human_labels",
    row_id="trace_id",
    columns={
        "item": Column(pa.string(), [TEXT], unique=True),
        "trace_id": Column(pa.string(), [TEXT]),
        "segment": Column(pa.int64(), [NATURAL]),
        "labels": Column(pa.list_(pa.string()), [LABELS]),
    },
)
"""A row a segment that the person rated; no labels where none fits. ``item`` is the segment's id in sheets, which
depends on its text: of a trace that was made anew with another text there are no labels. Only ``item`` is unique: runs
with other models or seeds have the same trace ids, so that a person rates one ``trace_id, segment`` with several
texts."""
