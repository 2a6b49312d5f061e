"""Stage 1: sample in both thinking modes, keep the traces that tell right thinking from wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prefect import flow

from flows.fan_out import missing_shards, run_shards
from flows.form import GenerateForm
from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tasks.engine.last_run import inputs_of, remember
from tasks.engine.naming import name_run
from tasks.engine.pool import make_on_pool
from tasks.engine.session import session
from tasks.engine.shards import Range, ranges_of, rows_of
from tasks.generate import (
    collect_generations,
    sample_shard,
    select_candidates,
    select_thinking_draws,
    warn_of_imbalance,
)
from tasks.publish import show_draws, show_yield, show_yield_of_draws


class Generated(NamedTuple):
    """The kept traces, the draws they were selected from (None where traces were imported), and those of the draws that
    matrices are estimated from (None where that is the kept traces).
    """

    candidates: ArtifactRef
    generations: ArtifactRef | None
    thinking_draws: ArtifactRef | None


@flow(name="generate", flow_run_name=name_run)
def generate(
    config: GenerateForm,
    questions: ArtifactRef | None = None,
    model: ArtifactRef | None = None,
    evaluation_questions: ArtifactRef | None = None,
) -> Generated:
    """Sample every training question in shards, and select the candidates.

    Args:
        config: a preset, and what differs from it.
        questions: artifact of the questions; the last run's when empty.
        model: artifact of the model; the last run's when empty.
        evaluation_questions: artifact of the held-out questions, which no imported trace may be of; the last run's when
            empty.
    """
    given = {"questions": questions, "model": model, "evaluation-questions": evaluation_questions}
    inputs = inputs_of(config, given)
    questions, model, held_out = (inputs[name] for name in given)
    generations = None
    if config.generate.source == "sample":
        with session():
            if config.generate.where == "deployment":
                _sample_on_pool(config, questions, model)
            wanted = collect_generations.work(_after_pool(config), questions, model)
            _sample(_after_pool(config), questions, model, missing_shards(wanted))
            generations = collect_generations(config, questions, model)
        remember(config, inputs, generations=generations)
        show_draws(config, generations)
    candidates = select_candidates(config, questions, model, generations, held_out)
    remember(config, inputs, candidates=candidates)
    warn_of_imbalance(config, candidates)
    show_yield(config, candidates)
    thinking_draws = None
    if config.estimate.uses_draws:
        thinking_draws = select_thinking_draws(config, questions, model, generations)
        remember(config, inputs, **{"thinking-draws": thinking_draws})
        show_yield_of_draws(config, thinking_draws)
    return Generated(candidates, generations, thinking_draws)


@flow(name="generate-shards", flow_run_name=name_run)
def generate_shards(
    config: GenerateForm,
    questions: ArtifactRef,
    model: ArtifactRef,
    shards: list[list[Range]],
) -> list[ArtifactRef]:
    """Sample some shards; a pipeline with generate.where 'deployment' starts these runs.

    Args:
        config: a preset, and what differs from it.
        questions: artifact of the questions.
        model: artifact of the model.
        shards: the questions of each shard, as ranges of their numbers.
    """
    with session():
        return _sample(config, questions, model, list(map(rows_of, shards)))


def _sample_on_pool(config: RunConfig, questions: ArtifactRef, model: ArtifactRef) -> None:
    """Sample on the pool what is not sampled yet, in ``generate.num_workers`` child runs."""
    missing = missing_shards(collect_generations.work(config, questions, model))
    make_on_pool(
        "generate-shards/share-generate-shards",
        [sample_shard.work(config, questions, model, rows) for rows in missing],
        lambda share: {"questions": questions, "model": model, "shards": [ranges_of(work.rows) for work in share]},
        config=config,
        section="generate",
    )


def _after_pool(config: RunConfig) -> RunConfig:
    """The config with which this process takes the shards: those of a pool that has just asked are not asked again."""
    if config.generate.where != "deployment" or config.generate.sampler != "endpoint":
        return config
    return config.model_copy(update={"generate": config.generate.model_copy(update={"ask_again": "never"})})


def _sample(
    config: RunConfig, questions: ArtifactRef, model: ArtifactRef, shards: Sequence[Sequence[int]]
) -> list[ArtifactRef]:
    inputs = {"config": config, "questions": questions, "model": model, "of": sum(map(len, shards))}
    return run_shards(sample_shard, [{**inputs, "rows": list(rows)} for rows in shards], config.generate)
