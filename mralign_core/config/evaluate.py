"""Section ``evaluate``: the answers to held-out questions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mralign_core.config.base import OPERATIONAL, Section
from mralign_core.config.sampling import refuse_equal_draws, refuse_vllm_in_threads
from mralign_core.config.variants import RetrievalConfig, SelfRefineConfig


class EvaluateConfig(Section):
    """Exact match of thinking and answer on held-out questions (§4, App. A.2; decoding of Table 15)."""

    sampler: Literal["transformers", "vllm"] = "transformers"
    """What samples. Only `transformers` shares its random numbers between the variants, which steadies differences."""
    num_draws: int = Field(1, ge=1, le=64)
    """Draws per question; random numbers are shared between the variants."""
    temperature: float = Field(0.6, ge=0, le=5)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus sampling mass."""
    top_k: int = Field(20, ge=0)
    """Sample among so many most probable tokens; 0 among all."""
    max_new_tokens: int = Field(8192, ge=1, le=131_072)
    """Longest completion, in tokens."""
    retrieval: RetrievalConfig = RetrievalConfig()
    self_refine: SelfRefineConfig = SelfRefineConfig()
    num_resamples: int = Field(2000, ge=100, le=100_000)
    """Bootstrap resamples of questions behind each interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""
    batch_size: int = Field(16, ge=1, le=4096, json_schema_extra=OPERATIONAL)
    """Rows decoded together; does not change any text. Sampler `transformers` only."""
    shard_size: int = Field(512, ge=1, json_schema_extra=OPERATIONAL)
    """Questions in one shard (one task run, one unit of restart)."""
    where: Literal["inline", "threads", "deployment"] = Field("inline", json_schema_extra=OPERATIONAL)
    """Shards run one after another in this process, in `num_workers` threads of it (one GPU each), or in `num_workers`
    child runs of deployment `score-shards` on the GPU work pool."""
    num_workers: int = Field(1, ge=1, le=1024, json_schema_extra=OPERATIONAL)
    """Threads, or child runs on the pool, that share the shards."""

    @model_validator(mode="after")
    def _sampler_options_have_effect(self) -> EvaluateConfig:
        refuse_vllm_in_threads(self, "evaluate")
        refuse_equal_draws(self, "evaluate")
        return self
