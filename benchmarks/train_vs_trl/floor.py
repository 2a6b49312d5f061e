"""What an optimiser step must compute and move, and how fast this machine multiplies and copies.

The floor in operations: the policy forward on the rows, the backward pass to their activations (the base is frozen: no
gradient of its weights), the policy forward on the KL pairs; and the gradient of the adapter's weights. In half
precision the adapter goes all these ways beside its map; else each pass adds both up first.
The head on completion tokens only. Attention to the tokens before only. The reference was computed before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.train_vs_trl.workload import Row, Workload, num_tokens

FORWARD, BACKWARD, KL_FORWARD = 2, 2, 2
"""Operations a weight and token."""
WEIGHT_GRADIENT = 2
"""The same for the gradient of a weight that is trained."""
PASSES = 3
"""Through a layer, for each forward batch: forward, forward of the KL pairs, backward."""
PARTS = ("projections", "attention", "MLP", "head", "LoRA")
"""Where the floor's operations are."""


class LayerShape(NamedTuple):
    """Weights of the linear maps, as (inputs, outputs)."""

    projections: list[tuple[int, int]]
    mlp: list[tuple[int, int]]

    @classmethod
    def of(cls, workload: Workload) -> LayerShape:
        """The maps of one layer of the workload's model."""
        width, inner = workload.width, workload.intermediate
        query, key = workload.heads * workload.head_dim, workload.kv_heads * workload.head_dim
        return cls(
            [(width, query), (width, key), (width, key), (query, width)],
            [(width, inner), (width, inner), (inner, width)],
        )

    @property
    def all_maps(self) -> list[tuple[int, int]]:
        """Of a layer."""
        return self.projections + self.mlp


def operations(workload: Workload, rows: Sequence[Row]) -> dict[str, float]:
    """Additions and multiplications of a mean optimiser step, by part.

    KL pairs are taken to be as long as the rows: an epoch's pairs have the same prompts and completions.

    Example:
        >>> tiny = Workload(layers=1, width=2, heads=1, kv_heads=1, head_dim=2, intermediate=4, vocabulary=10, lora_r=1,
        ...                 rows=4, batch=4)
        >>> operations(tiny, [Row([1], [2, 0], True)] * 4)["projections"] == 6 * 16 * 12  # per weight, weights, tokens
        True
    """
    shape = LayerShape.of(workload)
    tokens = workload.layers * num_tokens(rows)
    completion = sum(len(row.completion_ids) for row in rows)
    squares = sum((len(row.prompt_ids) + len(row.completion_ids)) ** 2 for row in rows)
    frozen = FORWARD + BACKWARD + KL_FORWARD
    scores = (
        workload.layers * workload.heads * workload.head_dim * squares
    )  # and as many for the values; half is masked
    totals = {
        "projections": frozen * tokens * _num_weights(shape.projections),
        "attention": (FORWARD + 2 * BACKWARD + KL_FORWARD) * scores,
        "MLP": frozen * tokens * _num_weights(shape.mlp),
        "head": frozen * completion * workload.width * workload.vocabulary,
        "LoRA": _adapter_operations(workload, rows),
    }
    steps = len(rows) / workload.rows_per_step
    return {part: total / steps for part, total in totals.items()}


def _adapter_operations(workload: Workload, rows: Sequence[Row]) -> float:
    """The gradients of A and B, and the adapter's part of the other ways: beside its map, or added up with it."""
    tokens, steps = num_tokens(rows), len(rows) / workload.rows_per_step
    passes = PASSES * math.ceil(tokens / steps / (workload.batch * workload.longest_row)) * steps
    gradients = beside = (BACKWARD + WEIGHT_GRADIENT) * tokens * workload.lora_r
    total = 0.0
    for each in LayerShape.of(workload).all_maps:
        added_up = math.inf if workload.is_half else passes * adding_up(workload, [each])
        total += gradients * sum(each) + min(beside * sum(each), added_up)
    return workload.layers * total


def adding_up(workload: Workload, maps: Sequence[tuple[int, int]]) -> float:
    """Operations of making W + s B A once, of each of some maps."""
    return 2 * workload.lora_r * _num_weights(maps)


def moved_bytes(workload: Workload, rows: Sequence[Row]) -> float:
    """Bytes that a mean optimiser step must move: weights once a pass, kept activations written once and read once."""
    size = torch.finfo(getattr(torch, workload.dtype)).bits // 8
    shape = LayerShape.of(workload)
    weights = workload.layers * _num_weights(shape.all_maps) + workload.width * workload.vocabulary
    passes = PASSES * workload.accumulation
    steps = len(rows) / workload.rows_per_step
    kept = workload.layers * num_tokens(rows) / steps * _kept_per_token(workload)
    return float(size * (passes * weights + 2 * kept))


def _kept_per_token(workload: Workload) -> int:
    """Numbers that a layer keeps for the backward pass: inputs of norms, maps and attention, and the gate."""
    query, key = workload.heads * workload.head_dim, workload.kv_heads * workload.head_dim
    norms = 4 * workload.width + query + key
    return norms + 2 * (query + key) + 2 * workload.intermediate


def _num_weights(maps: Sequence[tuple[int, int]]) -> int:
    return sum(inputs * outputs for inputs, outputs in maps)


class Rates(NamedTuple):
    """Operations a second at the shapes used and at best, and bytes a second of a copy."""

    by_part: dict[str, float]
    best: float
    copied_bytes: float


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Causal attention of query, key and value, (1, heads, tokens, size) each."""
scaled_dot_product: Attend = partial(functional.scaled_dot_product_attention, is_causal=True, enable_gqa=True)


def measure_rates(workload: Workload, attend: Attend = scaled_dot_product) -> Rates:
    """Time this machine on matrices as the training step has them, and on large ones.

    Args:
        workload: shapes, device and precision.
        attend: the attention that is timed.
    """
    tokens = workload.batch * workload.longest_row
    shape = LayerShape.of(workload)
    maps = {
        "projections": shape.projections,
        "MLP": shape.mlp,
        "head": [(workload.width, workload.vocabulary)],
    }
    by_part = {part: _linear_rate(workload, tokens, each) for part, each in maps.items()}
    by_part["LoRA"] = _adapter_rate(workload, tokens, shape.all_maps)
    by_part["attention"] = _attention_rate(workload, attend)
    side = 8192 if workload.device == "cuda" else 1024
    return Rates(by_part, _linear_rate(workload, side, [(side, side)]), _copy_rate(workload))


def _linear_rate(workload: Workload, tokens: int, maps: Sequence[tuple[int, int]]) -> float:
    """Of the forward pass and of the backward pass to the inputs, over all maps."""
    options = {"device": workload.device, "dtype": getattr(torch, workload.dtype)}
    tensors = [
        (
            torch.randn(tokens, inputs, **options),
            torch.randn(tokens, outputs, **options),
            torch.randn(outputs, inputs, **options),
        )
        for inputs, outputs in maps
    ]

    def both_ways() -> None:
        for inputs, gradient, weight in tensors:
            functional.linear(inputs, weight)
            gradient @ weight

    return (FORWARD + BACKWARD) * tokens * _num_weights(maps) / _seconds(both_ways, workload)


def _adapter_rate(workload: Workload, tokens: int, maps: Sequence[tuple[int, int]]) -> float:
    """Of what the gradients of A and B need, over all maps, the narrow side first."""
    options = {"device": workload.device, "dtype": getattr(torch, workload.dtype)}
    sides = [torch.randn(tokens, size, **options) for size in sum(maps, ())]
    low = torch.randn(workload.lora_r, tokens, **options)
    narrow = [torch.randn(workload.lora_r, side.shape[1], **options) for side in sides]

    def both_ways() -> None:
        for side, weight in zip(sides, narrow, strict=True):
            weight @ side.t()
            low @ side

    return 4 * tokens * workload.lora_r * sum(map(sum, maps)) / _seconds(both_ways, workload)


def _attention_rate(workload: Workload, attend: Attend) -> float:
    """Of the forward pass, causal, on the longest row."""
    options = {"device": workload.device, "dtype": getattr(torch, workload.dtype)}
    length, size = workload.longest_row, workload.head_dim
    query = torch.randn(1, workload.heads, length, size, **options)
    key, value = (torch.randn(1, workload.kv_heads, length, size, **options) for _ in range(2))

    seconds = _seconds(lambda: attend(query, key, value), workload)
    return FORWARD * workload.heads * size * length**2 / seconds


def _copy_rate(workload: Workload) -> float:
    source = torch.empty(2**30 if workload.device == "cuda" else 2**27, dtype=torch.uint8, device=workload.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _seconds(lambda: target.copy_(source), workload)


def _seconds(call: Callable[[], object], workload: Workload) -> float:
    """The fastest of repeated calls, after one to warm up."""
    best = float("inf")
    _timed(call, workload.device)
    until = time.perf_counter() + workload.timed_s
    while time.perf_counter() < until:
        best = min(best, _timed(call, workload.device))
    return best


def _timed(call: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
