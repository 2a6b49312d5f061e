"""What a step measured, as tensors that the device may still be computing and, once read, as numbers."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SUMS = ("loss", "implicit_reward_positive", "num_positive", "implicit_reward_negative", "num_negative")
"""What each process adds up over its rows of a step."""


class StepMetrics(NamedTuple):
    """Of one optimiser step."""

    step: int
    """Steps done, this one included."""
    epoch: float
    learning_rate: float
    sums: Tensor
    """(5,) :data:`SUMS` over all processes."""
    grad_norm: Tensor
    """Scalar, before clipping."""
    kl_raw: Tensor
    """Scalar, z0 before the clamp; NaN for SFT."""


def read_metrics(steps: list[StepMetrics]) -> list[dict[str, float]]:
    """Rows of table ``training_metrics``; waits for the device, once."""
    if not steps:
        return []
    values = torch.stack([torch.cat([each.sums, each.grad_norm[None], each.kl_raw[None]]) for each in steps]).tolist()
    return [_row(each, *numbers) for each, numbers in zip(steps, values, strict=True)]


def _row(
    known: StepMetrics,
    loss: float,
    implicit_reward_positive: float,
    num_positive: float,
    implicit_reward_negative: float,
    num_negative: float,
    grad_norm: float,
    kl_raw: float,
) -> dict[str, float]:
    return {
        "step": known.step,
        "epoch": known.epoch,
        "loss": loss,
        "implicit_reward_positive": _mean(implicit_reward_positive, num_positive),
        "implicit_reward_negative": _mean(implicit_reward_negative, num_negative),
        "kl_baseline": max(kl_raw, 0.0),
        "kl_raw": kl_raw,
        "grad_norm": grad_norm,
        "learning_rate": known.learning_rate,
    }


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan
