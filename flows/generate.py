"""Stage 1: sample in both thinking modes, keep the traces that tell right thinking from wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prefect import flow

from flows.fan_out import run_shards
from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tasks.engine.last_run import inputs_of, remember
from tasks.engine.pool import generate_on_pool
from tasks.generate import collect_generations, generation_shards, sample_shard, select_candidates, warn_of_imbalance
from tasks.publish import show_draws, show_yield
from tasks.sampling import release_samplers


class Generated(NamedTuple):
    """The kept traces, and the draws they were selected from (None where traces were imported)."""

    candidates: ArtifactRef
    generations: ArtifactRef | None


@flow(name="generate")
def generate(config: RunConfig, questions: ArtifactRef | None = None, model: ArtifactRef | None = None) -> Generated:
    """Sample every training question in shards, and select the candidates.

    Args:
        config: the run config.
        questions: artifact of the questions; the last run's when empty.
        model: artifact of the model; the last run's when empty.
    """
    inputs = inputs_of(config, {"questions": questions, "model": model})
    questions, model = inputs["questions"], inputs["model"]
    generations = None
    if config.generate.source == "sample":
        if config.generate.where == "deployment":
            generate_on_pool(config, questions, model)
        bounds = generation_shards(config, questions, model)
        shards = _sample(_after_pool(config), questions, model, bounds)
        generations = collect_generations(config, questions, model, shards)
        remember(config, inputs, generations=generations)
        show_draws(config, generations)
    candidates = select_candidates(config, questions, model, generations)
    remember(config, inputs, candidates=candidates)
    warn_of_imbalance(config, candidates)
    show_yield(config, candidates)
    return Generated(candidates, generations)


@flow(name="generate-shards")
def generate_shards(
    config: RunConfig, questions: ArtifactRef, model: ArtifactRef, shards: list[tuple[int, int]]
) -> list[ArtifactRef]:
    """Sample some shards; a pipeline with generate.where 'deployment' starts these runs.

    Args:
        config: the run config.
        questions: artifact of the questions.
        model: artifact of the model.
        shards: first question of each shard, and the one after its last.
    """
    return _sample(config, questions, model, shards)


def _after_pool(config: RunConfig) -> RunConfig:
    """The config with which this process takes the shards: those of a pool that has just asked are not asked again."""
    if config.generate.where != "deployment" or config.generate.sampler != "endpoint":
        return config
    return config.model_copy(update={"generate": config.generate.model_copy(update={"ask_again": "never"})})


def _sample(
    config: RunConfig, questions: ArtifactRef, model: ArtifactRef, shards: Sequence[tuple[int, int]]
) -> list[ArtifactRef]:
    inputs = {"config": config, "questions": questions, "model": model, "of": sum(end - start for start, end in shards)}
    with release_samplers():
        return run_shards(
            sample_shard, [{**inputs, "start": start, "end": end} for start, end in shards], config.generate
        )
