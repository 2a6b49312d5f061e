"""The shapes of models and jobs, on a card and in the stand-in."""

from __future__ import annotations

import dataclasses

import torch

from benchmarks.gpu.findings import Findings, Setting
from benchmarks.train_vs_trl.workload import QWEN3_8B, Workload

TINY = Workload(
    layers=2,
    width=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate=128,
    vocabulary=1024,
    lora_r=4,
    dtype="bfloat16",
    prompt_tokens=(4, 8),
    completion_tokens=(16, 32),
    rows=4,
    epochs=2,
    batch=2,
    learning_rate=2e-3,
    timed_s=0.01,
)
"""The stand-in's: what matters is that every line of a part runs."""
SHORT = Workload(
    layers=4,
    width=256,
    heads=8,
    kv_heads=4,
    head_dim=64,
    intermediate=768,
    vocabulary=2048,
    lora_r=8,
    dtype="float32",
    prompt_tokens=(20, 40),
    completion_tokens=(40, 100),
    rows=8,
    epochs=4,
    batch=8,
    learning_rate=1e-3,
)
"""Small enough for the CPU to compute the same beside a card."""
LAYERS = (36, 24, 16, 8, 4, 2)
WEIGHTS_SHARE = 0.5
"""Of the free memory that the weights may take: the rest is for activations, the adapter and TRL's logits."""


def small(setting: Setting, **changes: object) -> Workload:
    """A job that the CPU can do beside the card."""
    shape = dataclasses.replace(TINY, dtype="float32", epochs=4, batch=TINY.rows) if setting.is_stand_in else SHORT
    return dataclasses.replace(shape, **{"device": setting.device, **changes})  # type: ignore[arg-type]


def large(setting: Setting, findings: Findings, **changes: object) -> Workload:
    """A job in the shape of Qwen3-8B, with as many of its layers as the card has room for; noted where not all."""
    if setting.is_stand_in:
        return TINY
    free, _ = torch.cuda.mem_get_info()
    wanted = dataclasses.replace(QWEN3_8B, **changes)  # type: ignore[arg-type]
    room = next((each for each in LAYERS if weight_bytes(each) <= WEIGHTS_SHARE * free), LAYERS[-1])
    if room >= wanted.layers:
        return wanted
    findings.note(f"{free / 1e9:.0f} GB are free: {room} of {wanted.layers} layers in Qwen3-8B's shape were taken")
    return dataclasses.replace(wanted, layers=room)


def weight_bytes(layers: int) -> int:
    """Bytes of the frozen weights of so many layers of Qwen3-8B in bfloat16, embeddings and head included.

    Example:
        >>> round(weight_bytes(36) / 1e9, 1)
        16.4
    """
    shape = QWEN3_8B
    attention = 2 * shape.width * shape.head_dim * (shape.heads + shape.kv_heads)
    layer = attention + 3 * shape.width * shape.intermediate
    return 2 * (layers * layer + 2 * shape.vocabulary * shape.width)
