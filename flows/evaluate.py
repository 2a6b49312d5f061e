"""Stage 6: measure every variant on held-out questions, and write the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect import flow

from flows.fan_out import run_shards
from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tasks.engine.last_run import inputs_of, remember
from tasks.engine.pool import evaluate_on_pool
from tasks.evaluate import (
    BASELINES,
    collect_scores,
    evaluation_shards,
    score_shard,
    shards_to_score,
    write_report,
)
from tasks.publish import show_results
from tasks.sampling import release_samplers

INPUTS = ("questions", "model", "generations", "candidates", "annotations", "transitions", "diagnostics", "rewards")


@flow(name="evaluate")
def evaluate(
    config: RunConfig,
    artifacts: dict[str, ArtifactRef | None] | None = None,
    adapters: dict[str, ArtifactRef] | None = None,
) -> ArtifactRef:
    """Score think-off, think-on and every adapter on common random numbers.

    Args:
        config: the run config.
        artifacts: questions, model, generations (none where traces were imported), candidates, annotations,
            transitions, diagnostics (may be left out) and rewards, by name; the last run's when empty.
        adapters: variant → adapter; the last run's when empty.
    """
    names = [name for name in INPUTS if name != "generations" or config.generate.source == "sample"]
    wanted = {
        **({name: ref for name, ref in artifacts.items() if ref} if artifacts else dict.fromkeys(names)),
        **{f"adapter:{variant}": (adapters or {}).get(variant) for variant in adapters or config.train.variants},
    }
    inputs = inputs_of(config, wanted)
    built_on = dict(inputs)
    adapters = {name.partition(":")[2]: inputs.pop(name) for name in wanted if name.startswith("adapter:")}
    questions, model = inputs["questions"], inputs["model"]
    scores = score_variants(config, questions, model, adapters)
    report = write_report(config, inputs, adapters, scores)
    remember(config, built_on, report=report)
    show_results(config, report)
    return report


def score_variants(
    config: RunConfig, questions: ArtifactRef, model: ArtifactRef, adapters: Mapping[str, ArtifactRef]
) -> dict[str, ArtifactRef]:
    """Think-off, think-on and each adapter → its scores; none where there is no held-out question."""
    if config.evaluate.where == "deployment":
        evaluate_on_pool(config, questions, model, adapters)
    made = _score(config, questions, model, adapters, shards_to_score(config, questions, model, adapters))
    return {
        variant: collect_scores(config, variant, questions, model, adapters.get(variant), made.get(variant, []))
        for variant in ((*BASELINES, *adapters) if evaluation_shards(config, questions) else ())
    }


@flow(name="score-shards")
def score_shards(
    config: RunConfig,
    questions: ArtifactRef,
    model: ArtifactRef,
    adapters: dict[str, ArtifactRef],
    shards: list[tuple[str, int, int]],
) -> dict[str, list[ArtifactRef]]:
    """Score some shards; a pipeline with evaluate.where 'deployment' starts these runs.

    Args:
        config: the run config.
        questions: artifact of the questions.
        model: artifact of the model.
        adapters: variant → adapter.
        shards: variant of each shard, its first question, and the one after its last.
    """
    return _score(config, questions, model, adapters, shards)


def _score(
    config: RunConfig,
    questions: ArtifactRef,
    model: ArtifactRef,
    adapters: Mapping[str, ArtifactRef],
    shards: Sequence[tuple[str, int, int]],
) -> dict[str, list[ArtifactRef]]:
    """Variant → its shards."""
    inputs = {"config": config, "questions": questions, "model": model}
    calls = [
        {**inputs, "variant": variant, "adapter": adapters.get(variant), "start": start, "end": end}
        for variant, start, end in shards
    ]
    with release_samplers():
        made = run_shards(score_shard, calls, config.evaluate)
    return {
        name: [ref for (variant, *_), ref in zip(shards, made, strict=True) if variant == name]
        for name in dict.fromkeys(variant for variant, *_ in shards)
    }
