"""Section ``evaluate``: the answers to held-out questions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mralign_core.addresses import LocalPath
from mralign_core.config.base import OPERATIONAL, Section, refuse_ignored
from mralign_core.config.endpoint import EndpointConfig
from mralign_core.config.sampling import (
    OWN_SERVER,
    refuse_equal_draws,
    refuse_options_of_servers,
    refuse_vllm_in_threads,
)
from mralign_core.config.variants import RetrievalConfig, SelfRefineConfig


class EvaluateConfig(Section):
    """Exact match of thinking and answer on held-out questions (§4, App. A.2; decoding of Table 15)."""

    sampler: Literal["transformers", "vllm", "endpoint"] = "transformers"
    """What samples: transformers or vLLM in this process, or a server behind `endpoint` (see docs/samplers.md). Only
    `transformers` shares its random numbers between the variants, which steadies differences."""
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
    """Coverage of the intervals; 1 − the level of the tests."""
    people_sheet: LocalPath = Field("", json_schema_extra=OPERATIONAL)
    """A sheet of `mralign judge-sheet` that people filled in: the report then has their agreement with the judges and
    corrected rates; empty for none."""
    label_thinking: Literal["when_free", "aligned", "all", "none"] = Field("when_free", json_schema_extra=OPERATIONAL)
    """Whether the annotators of `annotate` label the thinking of held-out answers too, so that the report tells which
    moves training changed (Fig. 4): `aligned` that of think-on and MR-ALIGN, `all` that of every trained variant
    too, `when_free` as `aligned` where all annotators are offline, else `none`. Paid from what is left of
    `annotate.budget_usd`."""
    margin: float = Field(0.02, gt=0, lt=0.5)
    """The smallest difference that matters, as a share: .02 is 2 points. One shown to be smaller is equivalent."""
    batch_size: int = Field(16, ge=1, le=4096, json_schema_extra=OPERATIONAL)
    """Rows decoded together; does not change any text. Sampler `transformers` only."""
    shard_size: int = Field(512, ge=1, json_schema_extra=OPERATIONAL)
    """Questions in one shard (one task run, one unit of restart)."""
    where: Literal["inline", "threads", "deployment"] = Field("inline", json_schema_extra=OPERATIONAL)
    """Shards run one after another in this process, in `num_workers` threads of it (one GPU each), or in `num_workers`
    child runs of deployment `share-score-shards` on the GPU work pool."""
    num_workers: int = Field(1, ge=1, le=1024, json_schema_extra=OPERATIONAL)
    """Threads, or child runs on the pool, that share the shards."""
    endpoint: EndpointConfig = OWN_SERVER
    """The server that samples, by the name under which it serves the base model; used with sampler `endpoint`."""
    concurrency: int = Field(64, ge=1, le=4096, json_schema_extra=OPERATIONAL)
    """Requests in flight at once; used with sampler `endpoint`."""
    budget_usd: float | None = Field(None, ge=0, json_schema_extra=OPERATIONAL)
    """Most dollars to spend on answers to these questions, over all runs; used with sampler `endpoint`."""
    adapters: Literal["load", "listed"] = Field("load", json_schema_extra=OPERATIONAL)
    """How the server of sampler `endpoint` comes to the adapters: `load` tells it by vLLM's API, `listed` finds them
    served already; the error that one is not says under which name to serve it."""
    adapters_dir: LocalPath = Field("", json_schema_extra=OPERATIONAL)
    """Folder that the server sees under the same path, into which adapters are copied for it; empty where it sees the
    store itself. Used with sampler `endpoint`."""
    ignored_adapters: Literal["refuse", "warn"] = Field("refuse", json_schema_extra=OPERATIONAL)
    """What to do where a server answers with an adapter exactly as without: refuse it, or warn, for one that was
    trained so little that no answer changes. Used with sampler `endpoint`."""

    @model_validator(mode="after")
    def _sampler_options_have_effect(self) -> EvaluateConfig:
        of_server = ("endpoint", "concurrency", "budget_usd", "adapters", "adapters_dir", "ignored_adapters")
        refuse_options_of_servers(self, "evaluate", of_server)
        if self.sampler == "endpoint":
            refuse_ignored(self.endpoint, "evaluate.endpoint", ("use_batch_api",), "as no batch API serves adapters")
        refuse_vllm_in_threads(self, "evaluate")
        refuse_equal_draws(self, "evaluate")
        return self
