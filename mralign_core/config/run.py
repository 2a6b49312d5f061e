"""The whole run configuration, and how it is read from YAML."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, ValidationError, model_validator

from mralign_core.config.ablate import AblateConfig
from mralign_core.config.annotate import HUMAN_PREFIX, LOCAL_PREFIX, AnnotateConfig
from mralign_core.config.base import OPERATIONAL, Section, refuse_ignored
from mralign_core.config.compare import CompareConfig
from mralign_core.config.distil import DistilConfig
from mralign_core.config.endpoint import EndpointConfig
from mralign_core.config.estimate import EstimateConfig
from mralign_core.config.evaluate import EvaluateConfig
from mralign_core.config.generate import GenerateConfig
from mralign_core.config.induce import InduceConfig
from mralign_core.config.judge import JudgeConfig
from mralign_core.config.match import MatchConfig
from mralign_core.config.model import ModelConfig
from mralign_core.config.questions import QuestionsConfig
from mralign_core.config.retrain import RetrainConfig
from mralign_core.config.reward import RewardConfig
from mralign_core.config.sampling import VllmConfig
from mralign_core.config.storage import StorageConfig
from mralign_core.config.train import TrainConfig
from mralign_core.errors import ConfigError
from mralign_core.yaml_files import parse_yaml, read_yaml


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
    judge: JudgeConfig = JudgeConfig()
    vllm: VllmConfig = VllmConfig()
    # No artifact of the pipeline depends on these; `agreement`, `label-set`, `distillation`, `ablation` and `promotion`
    # name the fields they depend on.
    compare: CompareConfig = Field(CompareConfig(), json_schema_extra=OPERATIONAL)
    induce: InduceConfig = Field(InduceConfig(), json_schema_extra=OPERATIONAL)
    distil: DistilConfig = Field(DistilConfig(), json_schema_extra=OPERATIONAL)
    ablate: AblateConfig = Field(AblateConfig(), json_schema_extra=OPERATIONAL)
    retrain: RetrainConfig = Field(RetrainConfig(), json_schema_extra=OPERATIONAL)

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        if self.questions.asks_pocket and self.model.source != "pocket":
            raise ValueError("question set 'pocket' needs model.source 'pocket': no other model knows that world")
        searched = {"evaluate.retrieval": self.evaluate.retrieval.corpus, "judge.evidence": self.judge.evidence.corpus}
        for field, corpus in searched.items():
            if corpus == "pocket" and self.model.source != "pocket":
                raise ValueError(
                    f"{field}.corpus 'pocket' has the facts of the pocket world, and needs model.source 'pocket'; a "
                    "folder of that name is ./pocket"
                )
        if self.estimate.estimator == "oracle" and (self.model.source != "pocket" or self.annotate.label_set):
            raise ValueError(
                "estimate.estimator 'oracle' takes the matrices of the pocket grammar, so it needs model.source "
                "'pocket' and the paper's labels (no annotate.label_set). Use another, which estimates them"
            )
        if self.estimate.estimator == "oracle":
            refuse_ignored(self.reward, "reward", ("leave_own_question_out",), "when estimate.estimator is 'oracle'")
        if self.estimate.estimator == "hidden" and self.reward.leave_own_question_out:
            raise ValueError(
                "reward.leave_own_question_out takes a question's transitions between label sets out of the matrices, "
                "and estimate.estimator 'hidden' makes them of votes: switch it off, or use another estimator"
            )
        if self.generate.source == "sample" and not self.questions.train:
            raise ValueError("questions.train is needed: what to align on, such as nq_open or a file's path")
        if self.annotate.source == "traces" and self.generate.source != "traces":
            raise ValueError(
                "annotate.source 'traces' takes labels from the export in generate.traces_path, and generate.source is "
                "'sample': set it to 'traces' (--from-traces), or remove annotate.source"
            )
        if not self.questions.eval:
            refuse_ignored(self.judge, "judge", ("endpoints",), "when questions.eval names no set")
            refuse_ignored(self.evaluate, "evaluate", ("people_sheet",), "when questions.eval names no set")
        if self.model.source != "pocket":
            why = f"when model.source is {self.model.source!r}, whose only world it is"
            refuse_ignored(self.ablate, "ablate", ("num_worlds", "first_world", "max_refused_worlds"), why)
        return self

    @model_validator(mode="after")
    def _people_are_asked_what_they_can_say(self) -> RunConfig:
        for field, endpoint in self._endpoints_of_models.items():
            if endpoint.model.startswith(LOCAL_PREFIX):
                raise ValueError(
                    f"{field}: {endpoint.model} is a distilled annotator, which can be annotate.annotator_a only: "
                    "name a model"
                )
            if endpoint.model.startswith(HUMAN_PREFIX):
                raise ValueError(
                    f"{field}: {endpoint.model} is a person, who can be an annotator only (annotate.annotator_a, "
                    "annotate.annotator_b): name a model"
                )
        people = [each.model for each in self.annotate.endpoints.values() if each.model.startswith(HUMAN_PREFIX)]
        if people and self.estimate.uses_draws:
            raise ValueError(
                f"estimate.traces {self.estimate.traces!r} has the annotators label draws that are no candidates, and "
                f"{people[0]} can have rated candidates only (mralign rate): use estimate.traces 'selected', or name a "
                "model in place of the person"
            )
        wanted = self.evaluate.label_thinking
        if people and wanted in ("aligned", "all"):
            raise ValueError(
                f"evaluate.label_thinking {wanted!r} has the annotators label what variants think on held-out "
                f"questions, and {people[0]} has labelled none of that: set it to 'none', or name a model in place of "
                "the person"
            )
        return self

    @property
    def _endpoints_of_models(self) -> dict[str, EndpointConfig]:
        """Field → the endpoint of everything that is asked but the annotators."""
        return {
            "generate.endpoint": self.generate.endpoint,
            "evaluate.endpoint": self.evaluate.endpoint,
            "induce.labeller": self.induce.labeller,
            "induce.namer": self.induce.namer,
            "induce.embedding": self.induce.embedding,
            **{f"judge.endpoints.{number}": each for number, each in enumerate(self.judge.endpoints)},
        }

    @model_validator(mode="after")
    def _servers_are_there(self) -> RunConfig:
        starts = self.vllm.starts_for(self.generate) or self.vllm.starts_for(self.evaluate)
        if "vllm" not in (self.generate.sampler, self.evaluate.sampler) and not starts:
            why = "when neither generate.sampler nor evaluate.sampler is 'vllm', or an 'endpoint' that a stage starts"
            refuse_ignored(self, "", ("vllm",), f"{why} (hosted_vllm/NAME without api_base)")
        if not starts:
            of_server = ("environment", "start_timeout_s", "log_folder")
            refuse_ignored(self.vllm, "vllm", of_server, "where no stage starts a server: docs/samplers.md says when")
        if self.evaluate.sampler == "endpoint":
            if self.vllm.starts_for(self.evaluate):
                refuse_ignored(
                    self.evaluate, "evaluate", ("adapters", "adapters_dir"), "where the stage starts the server"
                )
            elif not self.evaluate.endpoint.api_base:
                raise ValueError(
                    "evaluate.endpoint needs an api_base, as no provider serves adapters of yours: name your server; "
                    "or set vllm.environment and a hosted_vllm/ model, and the stage starts one"
                )
        return self

    @model_validator(mode="after")
    def _draws_are_there(self) -> RunConfig:
        if not self.estimate.uses_draws:
            return self
        wanted = f"estimate.traces {self.estimate.traces!r}"
        if self.generate.source == "traces":
            raise ValueError(
                f"{wanted} takes the think-on draws of each question, and generate.source 'traces' has none: use "
                "estimate.traces 'selected'"
            )
        if self.generate.draws == "sequential":
            raise ValueError(
                f"{wanted} takes the think-on draws of every question, and generate.draws 'sequential' makes only "
                "those that can still matter to the selection, a biased sample: set generate.draws to 'exhaustive'"
            )
        if self.estimate.traces == "matched" and self.generate.num_draws == 1:
            raise ValueError(
                f"{wanted} compares draws of one question, and generate.num_draws is 1: set it to 2 or more, or use "
                "estimate.traces 'all_draws'"
            )
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


def _describe(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
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
