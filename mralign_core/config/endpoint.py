"""How a language model is reached, in any section that asks one, and what sections share that ask in shards."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from mralign_core.addresses import Url
from mralign_core.config.base import OPERATIONAL, Section, refuse_ignored

AskAgain = Literal["auto", "failed", "never"]


class EndpointConfig(Section):
    """A language model and how to reach it. Where only the model matters, its name alone will do."""

    model: str = Field(min_length=1)
    """litellm name, such as `openai/gpt-4o`; `cue/a`, `cue/b` and `cue/adjudicator` are offline cue annotators;
    `human/NAME`, as an annotator, is a person, and `local/NAME`, as annotator A, a distilled annotator."""
    api_base: Url = ""
    """Base URL of an OpenAI-compatible server; empty uses the provider's own."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature; null leaves it to the endpoint."""
    max_output_tokens: int = Field(8192, ge=16, le=1_000_000)
    """Longest reply, hidden reasoning included; bounds what one request can cost."""
    response_format: Literal["auto", "json_schema", "json_object", "text"] = "auto"
    """How a reply in JSON is asked for: with its schema, as JSON, or in words alone. `auto` sends the schema to models
    that are known to keep to one, and to a server at api_base that says so of itself."""
    requests_per_minute: int = Field(0, ge=0, json_schema_extra=OPERATIONAL)
    """Most requests a minute, evenly spaced; 0 sets no limit."""
    tokens_per_minute: int = Field(0, ge=0, json_schema_extra=OPERATIONAL)
    """Most tokens a minute, prompts and replies together; 0 sets no limit."""
    timeout_s: float = Field(120.0, gt=0, le=3600, json_schema_extra=OPERATIONAL)
    """Seconds to wait for one reply."""
    max_attempts: int = Field(5, ge=1, le=20, json_schema_extra=OPERATIONAL)
    """Attempts for one request, on errors that can pass only."""
    stop_after_failures: int = Field(5, ge=1, le=1000, json_schema_extra=OPERATIONAL)
    """Stop when the first so many requests all fail in one way, or four times as many in a row later on."""
    max_retry_after_s: float = Field(60.0, gt=0, le=3600, json_schema_extra=OPERATIONAL)
    """Longest pause between attempts; an endpoint that asks for a longer one is asked again after this."""
    input_usd_per_million: float | None = Field(None, ge=0, json_schema_extra=OPERATIONAL)
    """Price of a million prompt tokens; null takes litellm's. Use 0 for a server of your own."""
    output_usd_per_million: float | None = Field(None, ge=0, json_schema_extra=OPERATIONAL)
    """Price of a million reply tokens; null takes litellm's. Use 0 for a server of your own."""
    use_batch_api: bool = Field(False, json_schema_extra=OPERATIONAL)
    """Send requests through the provider's batch API: about half the price, replies within a day. A batch holds the
    requests of all shards under way: give a large annotate.shard_size."""
    batch_window_s: float = Field(5.0, gt=0, le=3600, json_schema_extra=OPERATIONAL)
    """Batch API: submit what has gathered once no request has come for so many seconds."""
    batch_max_requests: int = Field(50_000, ge=1, le=50_000, json_schema_extra=OPERATIONAL)
    """Batch API: most requests in one batch."""
    batch_poll_s: float = Field(30.0, gt=0, le=3600, json_schema_extra=OPERATIONAL)
    """Batch API: seconds between looks at how far a batch is."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _both_prices_or_none(self) -> EndpointConfig:
        if (self.input_usd_per_million is None) != (self.output_usd_per_million is None):
            raise ValueError("give both input_usd_per_million and output_usd_per_million, or neither")
        return self

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> EndpointConfig:
        limits = ("requests_per_minute", "tokens_per_minute")
        batching = ("batch_window_s", "batch_max_requests", "batch_poll_s")
        ignored = limits if self.use_batch_api else batching
        refuse_ignored(self, "", ignored, f"when use_batch_api is {str(self.use_batch_api).lower()}")
        return self


class AskingSection(Section):
    """What a section has that asks models about many things, shard by shard, from one account."""

    budget_usd: float | None = Field(None, ge=0, json_schema_extra=OPERATIONAL)
    """Most dollars to spend on this, over all runs; it stops before the call that could cross it."""
    concurrency: int = Field(8, ge=1, le=1024, json_schema_extra=OPERATIONAL)
    """Requests in flight at once."""
    shard_size: int = Field(128, ge=1, json_schema_extra=OPERATIONAL)
    """Traces, or questions with their answers, in one shard (one task run)."""
    ask_again: AskAgain = Field("auto", json_schema_extra=OPERATIONAL)
    """Of what an earlier run left out: `auto` asks again where the model or its server failed, `failed` where it
    refused too, `never` nowhere."""
