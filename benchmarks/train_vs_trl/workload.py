"""The work that all contenders do: a Qwen3 model with random weights, random rows, a batch, a number of epochs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

END_TOKEN_ID, PAD_TOKEN_ID, FIRST_WORD_ID = 0, 1, 2
SEED = 0
ALPHA_PER_RANK = 2
"""LoRA's alpha over its rank, in every contender's adapter; all linear modules have one."""
UNDESIRABLE_WEIGHT = 1.5
WARMUP_RATIO = 0.1


@dataclasses.dataclass(frozen=True)
class Workload:
    """Shape of the model, of the rows and of the job; bounds of lengths are inclusive."""

    layers: int = 6
    width: int = 256
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    intermediate: int = 768
    vocabulary: int = 2048
    lora_r: int = 8
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    prompt_tokens: tuple[int, int] = (40, 90)
    completion_tokens: tuple[int, int] = (225, 450)
    rows: int = 24
    epochs: int = 3
    batch: int = 4
    accumulation: int = 1
    learning_rate: float = 1e-4
    cpu_time: bool = False
    timed_s: float = 0.3
    """Seconds for which each rate of the machine is measured."""

    def __post_init__(self) -> None:
        if self.rows % self.rows_per_step:
            raise ValueError(
                f"rows {self.rows}: take a multiple of batch × accumulation = {self.rows_per_step}, so that an epoch "
                "is a whole number of steps for every contender"
            )
        if self.epochs < 2:
            raise ValueError(f"epochs {self.epochs}: take at least 2, because the first one is the warm-up")

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimiser step."""
        return self.batch * self.accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return self.rows // self.rows_per_step

    @property
    def is_half(self) -> bool:
        """Whether weights have 16 bits."""
        return self.dtype in ("bfloat16", "float16")

    @property
    def longest_row(self) -> int:
        """Most tokens a row can have."""
        return self.prompt_tokens[1] + self.completion_tokens[1]

    @classmethod
    def from_json(cls, text: str) -> Workload:
        """Read what :meth:`to_json` wrote."""
        fields: Any = {name: tuple(each) if isinstance(each, list) else each for name, each in json.loads(text).items()}
        return cls(**fields)

    def to_json(self) -> str:
        """One line that :meth:`from_json` reads."""
        return json.dumps(dataclasses.asdict(self))


QWEN3_8B = Workload(
    layers=36,
    width=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=12_288,
    vocabulary=151_936,
    lora_r=32,
    dtype="bfloat16",
    device="cuda",
    prompt_tokens=(80, 160),
    completion_tokens=(470, 1030),
    rows=64,
    epochs=2,
    batch=2,
    accumulation=8,
    learning_rate=5e-6,
)
"""Qwen3-8B's shape on the paper's rows: 450–1000 tokens of thinking and an answer, micro-batches of 2, 8 of them."""

QUICK = Workload(rows=8, epochs=2, prompt_tokens=(20, 40), completion_tokens=(100, 200))
"""Shows that it works; its ratios mean little."""
AGREEMENT = Workload(
    layers=2,
    width=64,
    heads=4,
    head_dim=16,
    kv_heads=2,
    intermediate=128,
    rows=2,
    batch=2,
    epochs=8,
    learning_rate=2e-3,
)
"""One batch of two rows: whatever shuffles or pairs them comes to the same."""


class Row(NamedTuple):
    """A trace as token ids; the completion ends in the end token."""

    prompt_ids: list[int]
    completion_ids: list[int]
    is_positive: bool


def build_rows(workload: Workload) -> list[Row]:
    """Random rows, every other one positive; the same for the same workload."""
    rng = np.random.default_rng(SEED)

    def tokens(bounds: tuple[int, int]) -> list[int]:
        number = int(rng.integers(bounds[0], bounds[1], endpoint=True))
        return [int(token) for token in rng.integers(FIRST_WORD_ID, workload.vocabulary, number)]

    return [
        Row(tokens(workload.prompt_tokens), [*tokens(workload.completion_tokens)[:-1], END_TOKEN_ID], number % 2 == 0)
        for number in range(workload.rows)
    ]


def num_tokens(rows: Sequence[Row]) -> int:
    """Tokens of prompts and completions, without padding and without mismatched pairs."""
    return sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows)


def build_model(workload: Workload) -> PreTrainedModel:
    """A model with random weights, the same for the same workload, made where it will stand."""
    config = Qwen3Config(
        vocab_size=workload.vocabulary,
        hidden_size=workload.width,
        intermediate_size=workload.intermediate,
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.heads,
        num_key_value_heads=workload.kv_heads,
        head_dim=workload.head_dim,
        tie_word_embeddings=False,
        eos_token_id=END_TOKEN_ID,
        pad_token_id=PAD_TOKEN_ID,
    )
    torch.manual_seed(SEED)
    with torch.device(workload.device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, workload.dtype))
