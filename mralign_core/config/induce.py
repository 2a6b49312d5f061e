"""Section ``induce``: a label set from traces."""

from __future__ import annotations

from pydantic import Field, model_validator

from mralign_core.addresses import LocalPath
from mralign_core.config.base import OPERATIONAL, Section, refuse_ignored
from mralign_core.config.endpoint import AskAgain, EndpointConfig


class InduceConfig(Section):
    """Taxonomy induction: a label set from traces, in a language model's own words (App. B.1)."""

    labeller: EndpointConfig = EndpointConfig(model="openai/gpt-5")
    """Gives open-vocabulary labels; `lexical/phrases` is an offline stand-in."""
    namer: EndpointConfig = EndpointConfig(model="openai/gpt-5")
    """Names the clusters; `lexical/phrases` is an offline stand-in."""
    num_traces: int = Field(2000, ge=1, le=1_000_000)
    """Most traces to label, drawn at random from the candidates."""
    min_frequency: int = Field(5, ge=1, le=1_000_000)
    """Open labels given less often than this are set aside."""
    embedder: LocalPath = Field("ngrams", min_length=1)
    """`ngrams` (lexical, offline), `endpoint` (the model in `embedding`), or a sentence-transformers model's path or
    name, such as the paper's `BAAI/bge-m3` (needs the extra `embeddings`)."""
    embedding: EndpointConfig = EndpointConfig(model="openai/text-embedding-3-small")
    """Embeddings endpoint; used when embedder is `endpoint`."""
    embedding_batch_size: int = Field(64, ge=1, le=2048, json_schema_extra=OPERATIONAL)
    """Labels in one request to the embeddings endpoint."""
    min_samples: int = Field(5, ge=2, le=1000)
    """OPTICS: labels in a neighbourhood that make it dense, and fewest labels of a cluster."""
    xi: float = Field(0.05, gt=0, lt=1)
    """OPTICS: relative drop in reachability that bounds a cluster."""
    budget_usd: float | None = Field(None, ge=0, json_schema_extra=OPERATIONAL)
    """Most dollars to spend on this label set, over all runs; it stops before the call that could cross it."""
    concurrency: int = Field(8, ge=1, le=1024, json_schema_extra=OPERATIONAL)
    """Requests in flight at once."""
    ask_again: AskAgain = Field("auto", json_schema_extra=OPERATIONAL)
    """What is asked again of what an earlier run left out, as in `annotate.ask_again`."""

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> InduceConfig:
        if self.embedder != "endpoint":
            refuse_ignored(self, "induce", ("embedding",), f"when induce.embedder is {self.embedder!r}")
        if self.embedding.use_batch_api:
            raise ValueError("induce.embedding.use_batch_api: batches are for chat models only; remove it")
        return self
