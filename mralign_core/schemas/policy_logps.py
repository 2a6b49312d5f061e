"""Log-probabilities of the training traces after training, beside those before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import NATURAL, NOT_NEGATIVE, TEXT
from mralign_core.schemas.reference_logps import LOGPS

_SEGMENTS = pa.list_(
    pa.struct(
        [
            ("num_tokens", pa.int64()),
            ("reference_logp", pa.float64()),
            ("policy_logp", pa.float64()),
            ("kl", pa.float64()),
        ]
    )
)
FINITE = ("must be a finite number", lambda value: bool(np.isfinite(value)))


def _sums_are_of_the_tokens(row: Any) -> bool:
    return len(row.logps) == row.num_tokens and bool(np.isclose(np.sum(row.logps), row.policy_logp, rtol=1e-4))


POLICY_LOGPS = Table(
    name="policy_logps",
    row_id="trace_id",
    columns={
        "trace_id": Column(pa.string(), [TEXT], unique=True),
        "num_tokens": Column(pa.int64(), [NATURAL]),
        "reference_logp": Column(pa.float64(), [FINITE]),
        "policy_logp": Column(pa.float64(), [FINITE]),
        "implicit_reward": Column(pa.float64(), [FINITE]),
        "kl": Column(pa.float64(), [NOT_NEGATIVE, FINITE]),
        "segments": Column(_SEGMENTS),
        "logps": Column(pa.list_(pa.float32()), [LOGPS]),
    },
    row_checks=[("logps must be one a token and add up to policy_logp", _sums_are_of_the_tokens)],
)
"""A row a trace that was short enough to train on, under one trained adapter. All sums are over completion tokens, with
the end token, in nats: log-probabilities under the model as it was and under the adapter; ``implicit_reward``, Eq. 9
with the variant's weights; ``kl``, an estimate of KL(reference ‖ policy) (:mod:`mralign_core.training.policy_logps`).
``segments`` has the same sums of each segment, unweighted; tags, answer and end token are in none. ``logps`` are the
adapter's, token by token."""
