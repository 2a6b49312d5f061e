"""Log-probabilities under the model without adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import TEXT


def _are_logps(values: Any) -> bool:
    return bool(np.isfinite(np.asarray(values, dtype=float)).all())


LOGPS = ("must be a non-empty list of finite log-probabilities", lambda value: len(value) > 0 and _are_logps(value))

REFERENCE_LOGPS = Table(
    name="reference_logps",
    row_id="trace_id",
    columns={
        "trace_id": Column(pa.string(), [TEXT], unique=True),
        "partner_trace_id": Column(pa.string(), [TEXT]),
        "logps": Column(pa.list_(pa.float32()), [LOGPS]),
        "kl_logp": Column(pa.float64(), [("must be a finite log-probability", lambda value: _are_logps([value]))]),
    },
    row_checks=[("a trace can't be its own partner", lambda row: row.trace_id != row.partner_trace_id)],
)
"""A row a trace to train on, under the model without adapter: the log-probability of each completion token, and, summed
over its tokens, of the partner's completion behind this trace's prompt (the KL pair)."""
