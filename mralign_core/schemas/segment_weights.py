"""The weights of the segments."""

from __future__ import annotations

import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import NATURAL, TEXT

SEGMENT_WEIGHTS = Table(
    name="segment_weights",
    row_id="trace_id",
    columns={
        "trace_id": Column(pa.string(), [TEXT]),
        "segment": Column(pa.int64(), [NATURAL]),
        "weight": Column(pa.float64(), [("must be finite", lambda value: -float("inf") < value < float("inf"))]),
        "ratio": Column(pa.float64(), [("must be positive", lambda value: value > 0)]),
        "clipped": Column(pa.bool_()),
        "support": Column(pa.float64(), [("must be at least 0", lambda value: value >= 0)]),
        "weight_low": Column(pa.float64(), nullable=True),
        "weight_high": Column(pa.float64(), nullable=True),
    },
    unique_together=("trace_id", "segment"),
    version=3,
)
"""A row a segment: the weight its tokens carry (Eq. 10), which may be below 0 in some forms and normalisations, the
ratio before shrinkage and clipping, whether the clip moved it, the soft counts behind the ratio's numerator, and the
weight's bootstrap interval (null without bootstrap)."""
