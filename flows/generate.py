"""Stage 1: sample in both thinking modes, keep the traces that tell right thinking from wrong."""

from __future__ import annotations

from prefect import flow

from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tasks.generate import collect_generations, generation_shards, sample_shard, select_candidates
from tasks.publishing import show_yield
from tasks.runs import last_run, remember


@flow(name="generate")
def generate(config: RunConfig, questions: ArtifactRef | None = None, model: ArtifactRef | None = None) -> ArtifactRef:
    """Sample every training question in shards, and select the candidates.

    Args:
        config: the run config.
        questions: artifact of the questions; the last run's when empty.
        model: artifact of the model; the last run's when empty.
    """
    questions = questions or last_run(config, "questions")
    model = model or last_run(config, "model")
    generations = None
    if bounds := generation_shards(config, questions):
        shards = [sample_shard(config, questions, model, start, end) for start, end in bounds]
        generations = collect_generations(config, questions, model, shards)
        remember(config, generations=generations)
    candidates = select_candidates(config, questions, model, generations)
    remember(config, candidates=candidates)
    show_yield(config, candidates)
    return candidates
