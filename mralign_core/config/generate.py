"""Section ``generate``: sampling, and the selection of training traces."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mralign_core.addresses import LocalPath
from mralign_core.config.base import OPERATIONAL, Section
from mralign_core.config.endpoint import EndpointConfig
from mralign_core.config.sampling import (
    OWN_SERVER,
    refuse_equal_draws,
    refuse_options_of_servers,
    refuse_vllm_in_threads,
)


class GenerateConfig(Section):
    """Sampling in both thinking modes, and the selection of training traces (§3.1.1, App. D.2)."""

    source: Literal["sample", "traces"] = "sample"
    """`sample` draws from the model; `traces` imports existing reasoning traces from traces_path."""
    traces_path: LocalPath = Field("", json_schema_extra=OPERATIONAL)
    """JSONL file of traces (id, question, gold, thinking, answer, optional polarity), or a folder that
    `mralign export-data` wrote; used with source `traces`."""
    sampler: Literal["transformers", "vllm", "endpoint"] = "transformers"
    """What samples: transformers or vLLM (see docs/samplers.md) in this process, or a server behind `endpoint`."""
    num_draws: int = Field(3, ge=1, le=64)
    """Independent draws per question and thinking mode (the paper's N)."""
    draws: Literal["sequential", "exhaustive"] = "sequential"
    """`sequential` stops a question at the first draw that rules it out, for the same training traces from a fraction
    of the thinking; `exhaustive` makes every draw, whose statistics are unbiased."""
    temperature: float = Field(0.2, ge=0, le=5)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling mass."""
    max_new_tokens: int = Field(2048, ge=1, le=131_072)
    """Longest completion, in tokens; longer ones end with finish_reason `length`."""
    instruction: str = (
        "Think about the question first, inside <think></think>, then give the final answer, and only that, "
        "inside <answer></answer>. Keep the answer factual and free of disputable claims."
    )
    """Text put before `Question: …` in the prompt; empty sends the bare question."""
    answer_match: Literal["exact", "contains"] = "exact"
    """When an answer counts as right for selection: equal to a gold answer, or containing one."""
    cut_off: Literal["wrong", "left_out"] = "wrong"
    """What a draw counts as that max_new_tokens cut off before it gave an answer: `wrong`, or `left_out`, neither right
    nor wrong, so that its question is not selected. The evaluation counts it as wrong."""
    min_segments: int = Field(4, ge=1)
    """Fewest thinking segments of a kept trace (inclusive)."""
    max_segments: int = Field(15, ge=1)
    """Most thinking segments of a kept trace (inclusive)."""
    min_reasoning_tokens: int = Field(450, ge=0)
    """Fewest thinking tokens of a kept trace (inclusive)."""
    max_reasoning_tokens: int = Field(1000, ge=1)
    """Most thinking tokens of a kept trace (inclusive)."""
    traces_per_question: Literal["first", "all_distinct"] = "first"
    """Keep the first think-on draw that passes the filter, or every distinct one."""
    batch_size: int = Field(16, ge=1, le=4096, json_schema_extra=OPERATIONAL)
    """Rows decoded together; does not change any text. Sampler `transformers` only."""
    shard_size: int = Field(256, ge=1, json_schema_extra=OPERATIONAL)
    """Questions in one shard (one task run, one unit of restart)."""
    where: Literal["inline", "threads", "deployment"] = Field("inline", json_schema_extra=OPERATIONAL)
    """Shards run one after another in this process, in `num_workers` threads of it (one GPU each, or for an endpoint),
    or in `num_workers` child runs of deployment `share-generate-shards` on the GPU work pool."""
    num_workers: int = Field(1, ge=1, le=1024, json_schema_extra=OPERATIONAL)
    """Threads, or child runs on the pool, that share the shards."""
    endpoint: EndpointConfig = OWN_SERVER
    """The server that samples; used with sampler `endpoint`. The tokenizer still comes from the section `model`."""
    concurrency: int = Field(64, ge=1, le=4096, json_schema_extra=OPERATIONAL)
    """Requests in flight at once; used with sampler `endpoint`."""
    budget_usd: float | None = Field(None, ge=0, json_schema_extra=OPERATIONAL)
    """Most dollars to spend on sampling these questions, over all runs; used with sampler `endpoint`."""
    ask_again: Literal["auto", "never"] = Field("auto", json_schema_extra=OPERATIONAL)
    """Of the draws that an earlier run has: `auto` asks those again that the server failed on, `never` none; used with
    sampler `endpoint`."""

    @model_validator(mode="after")
    def _bounds_and_source(self) -> GenerateConfig:
        if self.min_segments > self.max_segments:
            raise ValueError(
                f"generate.min_segments {self.min_segments} is above generate.max_segments {self.max_segments}"
            )
        if self.min_reasoning_tokens > self.max_reasoning_tokens:
            raise ValueError("generate.min_reasoning_tokens is above generate.max_reasoning_tokens")
        if (self.source == "traces") != bool(self.traces_path):
            raise ValueError("generate.traces_path is needed with generate.source 'traces', and only there")
        return self

    @model_validator(mode="after")
    def _sampler_options_have_effect(self) -> GenerateConfig:
        refuse_options_of_servers(self, "generate", ("endpoint", "concurrency", "budget_usd", "ask_again"))
        if self.sampler == "endpoint" and self.endpoint.use_batch_api and self.draws == "sequential":
            raise ValueError(
                "generate.endpoint.use_batch_api needs generate.draws 'exhaustive': one draw after another would each "
                "wait for a batch of its own"
            )
        refuse_vllm_in_threads(self, "generate")
        refuse_equal_draws(self, "generate")
        return self
