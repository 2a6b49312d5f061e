"""What enters the cache key of every artifact: the pipeline's dependency graph, stated once.

A key is the digest of: artifact name, recipe version, the core sources that compute it, the config fields that can
change it, and the content digests of its inputs. Pool names, batch sizes, time-outs and run names are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mralign_core.config import RunConfig, Section
from mralign_core.label_sets import label_set_of
from mralign_core.models.families import family_fingerprint
from mralign_core.storage import ArtifactRef, key_of, source_digest

Fields = Callable[[RunConfig], Mapping[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """How one kind of artifact comes about. Inputs of which there are several are named ``kind:which``."""

    name: str
    stage: str
    sources: tuple[str, ...]
    fields: Fields
    inputs: tuple[str, ...] = ()
    optional_inputs: tuple[str, ...] = ()
    version: int = 1

    def fingerprint(self, config: RunConfig, extra: Mapping[str, Any]) -> dict[str, Any]:
        """The config values that this artifact depends on, with the part (shard, variant) it is."""
        return {**self.fields(config), **extra}

    def key(self, config: RunConfig, inputs: Mapping[str, ArtifactRef], extra: Mapping[str, Any]) -> str:
        """The artifact's cache key.

        Raises:
            TypeError: the inputs are not the ones the recipe declares; a programming error.
        """
        kinds = {name.partition(":")[0] for name in inputs}
        unexpected = kinds - set(self.inputs) - set(self.optional_inputs)
        if unexpected or set(self.inputs) - kinds:
            raise TypeError(f"artifact {self.name!r} is made from {self.inputs}, got {tuple(inputs)}")
        return key_of(
            name=self.name,
            version=self.version,
            sources={module: source_digest(module) for module in self.sources},
            fields=self.fingerprint(config, extra),
            inputs={name: ref.sha256 for name, ref in inputs.items()},
        )


def _pick(section: Section, *names: str) -> dict[str, Any]:
    values = section.fingerprint()
    return {name: values[name] for name in names}


_SELECTION = (
    "answer_match",
    "min_segments",
    "max_segments",
    "min_reasoning_tokens",
    "max_reasoning_tokens",
    "traces_per_question",
)


def _model(config: RunConfig) -> dict[str, Any]:
    source = config.model.source
    names = {"pocket": ("pocket",), "hub": ("path", "revision"), "smollm2": ()}[source]
    return {"source": source, **_pick(config.model, *names)}


def _questions(config: RunConfig) -> dict[str, Any]:
    pocket = _pick(config.model.pocket, "world_seed", "overwrite_prob") if config.questions.asks_pocket else {}
    return {**config.questions.fingerprint(), "pocket": pocket}


def _sampling(config: RunConfig) -> dict[str, Any]:
    # Which answers count as right decides which draws are made, where not all are.
    skip = {*_SELECTION, "source", "endpoint"} - ({"answer_match"} if config.generate.draws == "sequential" else set())
    fields = {name: value for name, value in config.generate.fingerprint().items() if name not in skip}
    if config.generate.sampler == "endpoint":
        # The server has a precision of its own.
        return {**fields, "endpoint": config.generate.endpoint.fingerprint(), **_reading(config), "seed": config.seed}
    return {**fields, **_pick(config.model, "dtype"), **_reading(config), "seed": config.seed}


def _reading(config: RunConfig) -> dict[str, Any]:
    """How a completion is asked for, taken apart and compared with the gold answers."""
    return {"family": family_fingerprint(config.model), "match": config.match.fingerprint()}


def _selection(config: RunConfig) -> dict[str, Any]:
    family = {"family": family_fingerprint(config.model)}
    if config.generate.source == "sample":
        return {**_pick(config.generate, "source", "num_draws", *_SELECTION), **family}
    return {
        **_pick(config.generate, "source", "instruction", *_SELECTION),
        **family,
        "match": config.match.fingerprint(),
        "on_overlap": config.questions.on_overlap,
    }


def _annotation(config: RunConfig) -> dict[str, Any]:
    fields = config.annotate.fingerprint()
    has_cue = any(endpoint.model.startswith("cue/") for endpoint in config.annotate.endpoints.values())
    if not has_cue:
        fields = {name: value for name, value in fields.items() if not name.startswith("cue_")}
    return {**fields, **_labels(config), "seed": config.seed if has_cue else None}


def _labels(config: RunConfig) -> dict[str, Any]:
    return {"label_set": label_set_of(config).fingerprint()}


def _estimation(config: RunConfig) -> dict[str, Any]:
    fields = {name: value for name, value in config.estimate.fingerprint().items() if name != "confidence"}
    has_chance = config.estimate.num_resamples or config.estimate.permute_polarity
    return {**fields, **_labels(config), "seed": config.seed if has_chance else None}


def _rewards(config: RunConfig) -> dict[str, Any]:
    return {
        **config.reward.fingerprint(),
        **_pick(config.estimate, "labels_per_segment", "confidence"),
        **_labels(config),
        "seed": config.seed if config.reward.placebo != "none" else None,
    }


def _own_weights(config: RunConfig) -> dict[str, Any]:
    """What the weights are made of before a placebo or normalisation."""
    return {name: value for name, value in config.reward.fingerprint().items() if name not in ("placebo", "normalize")}


def _diagnosis(config: RunConfig) -> dict[str, Any]:
    return {
        "estimate": config.estimate.fingerprint(),
        "reward": _own_weights(config),
        **_labels(config),
        "seed": config.seed,
    }


def _base_model(config: RunConfig) -> dict[str, Any]:
    return {**_pick(config.model, "dtype", "cpu_threads"), **_pick(config.train, "load_in_4bit")}


def _evaluation(config: RunConfig) -> dict[str, Any]:
    skip = {"num_resamples", "confidence"}
    return {
        **{name: value for name, value in config.evaluate.fingerprint().items() if name not in skip},
        "instruction": config.generate.instruction,
        **_pick(config.model, "dtype"),
        **_reading(config),
        "seed": config.seed,
    }


def _induction(config: RunConfig) -> dict[str, Any]:
    return {**config.induce.fingerprint(), "seed": config.seed}


def _agreement(config: RunConfig) -> dict[str, Any]:
    skip = {"num_resamples", "confidence", "permute_polarity"}
    return {
        "estimate": {name: value for name, value in config.estimate.fingerprint().items() if name not in skip},
        "reward": _own_weights(config),
        "panels": {panel.name: panel.annotate.fingerprint() for panel in config.compare.panels},
        **_pick(config.compare, "num_resamples", "confidence"),
        **_labels(config),
        "seed": config.seed,
    }


def _ablation(config: RunConfig) -> dict[str, Any]:
    arms = {name: list(config.ablate.known_arms[name]) for name in config.ablate.arms}
    return {"arms": arms, **_pick(config.ablate, "confidence"), **_pick(config.model, "source")}


_SAMPLERS = tuple(f"mralign_core.generation.{name}_sampler" for name in ("transformers", "vllm", "endpoint"))
_MAKING = ("mralign_core.generation.open_sampler", "mralign_core.models.load", *_SAMPLERS)
"""How samples come about: loading finds the tokens that end them."""
_GENERATION = ("mralign_core.generation.sampling", "mralign_core.generation.outcomes", *_MAKING)
_SCORING = ("mralign_core.generation.scoring", *_MAKING)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "questions",
            "prepare",
            ("mralign_core.questions.loading",),
            _questions,
        ),
        Recipe("model", "prepare", ("mralign_core.models.locate", "mralign_core.pocket.model"), _model),
        Recipe("generations-shard", "generate", _GENERATION, _sampling, inputs=("questions", "model")),
        Recipe("generations", "generate", _GENERATION, _sampling, inputs=("questions", "model")),
        Recipe(
            "candidates",
            "generate",
            ("mralign_core.generation.select_traces", "mralign_core.generation.importing"),
            _selection,
            inputs=("questions", "model"),
            optional_inputs=("generations",),
        ),
        Recipe(
            "annotations-shard",
            "annotate",
            ("mralign_core.annotation.annotate", "mralign_core.annotation.cue"),
            _annotation,
            inputs=("candidates",),
        ),
        Recipe(
            "annotations",
            "annotate",
            ("mralign_core.annotation.annotate", "mralign_core.annotation.cue"),
            _annotation,
            inputs=("candidates",),
        ),
        Recipe(
            "transitions",
            "estimate",
            ("mralign_core.estimation",),
            _estimation,
            inputs=("candidates", "annotations"),
        ),
        Recipe(
            "diagnostics",
            "estimate",
            ("mralign_core.estimation.diagnostics", "mralign_core.reporting.diagnostic_figures"),
            _diagnosis,
            inputs=("candidates", "annotations", "transitions"),
        ),
        Recipe(
            "rewards",
            "reward",
            ("mralign_core.estimation",),
            _rewards,
            inputs=("candidates", "annotations", "transitions"),
        ),
        Recipe(
            "reference-logps",
            "train",
            ("mralign_core.training.reference",),
            lambda config: {**_base_model(config), **_pick(config.train, "max_length")},
            inputs=("model", "candidates", "annotations"),
        ),
        Recipe(
            "adapter",
            "train",
            ("mralign_core.training.fit",),
            lambda config: {**_base_model(config), "seed": config.seed},
            inputs=("model", "candidates", "annotations"),
            optional_inputs=("reference-logps", "rewards"),
        ),
        Recipe(
            "scores-shard",
            "evaluate",
            _SCORING,
            _evaluation,
            inputs=("questions", "model"),
            optional_inputs=("adapter",),
        ),
        Recipe(
            "scores", "evaluate", _SCORING, _evaluation, inputs=("questions", "model"), optional_inputs=("adapter",)
        ),
        Recipe(
            "report",
            "evaluate",
            (
                "mralign_core.estimation",
                "mralign_core.evaluation.metrics",
                "mralign_core.reporting.report",
                "mralign_core.generation.funnel",
            ),
            RunConfig.fingerprint,
            inputs=("questions", "model", "candidates", "annotations", "transitions", "rewards"),
            optional_inputs=("generations", "diagnostics", "scores", "adapter"),
        ),
        Recipe(
            "label-set",
            "induce_taxonomy",
            ("mralign_core.induction", "mralign_core.reporting.induction_figures"),
            _induction,
            inputs=("candidates",),
        ),
        Recipe(
            "agreement",
            "compare_annotators",
            ("mralign_core.comparison.agreement", "mralign_core.reporting.agreement_tables"),
            _agreement,
            inputs=("candidates", "annotations"),
        ),
        Recipe(
            "ablation",
            "ablate",
            ("mralign_core.ablation.paired", "mralign_core.reporting.ablation_figure"),
            _ablation,
            inputs=("scores",),
        ),
    )
}
