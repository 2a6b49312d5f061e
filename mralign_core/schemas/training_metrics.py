"""How training went, step by step."""

from __future__ import annotations

import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import NATURAL

TRAINING_METRICS = Table(
    name="training_metrics",
    row_id="step",
    columns={
        "step": Column(pa.int64(), [NATURAL], unique=True),
        "epoch": Column(pa.float64()),
        "loss": Column(pa.float64()),
        "implicit_reward_positive": Column(pa.float64(), nullable=True),
        "implicit_reward_negative": Column(pa.float64(), nullable=True),
        "kl_baseline": Column(pa.float64(), nullable=True),
        "kl_raw": Column(pa.float64(), nullable=True),
        "grad_norm": Column(pa.float64()),
        "learning_rate": Column(pa.float64()),
    },
    version=2,
)
"""A row an optimiser step; implicit rewards and KL are null for SFT, or where the batch had none of the class."""
