"""One LoRA adapter per variant, all on the same traces."""

from __future__ import annotations

from pathlib import Path

from mralign_core.config import RunConfig, Variant
from mralign_core.models import limit_threads, locate_model, model_name
from mralign_core.schemas import TRAINING_METRICS
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.training.fit import train_adapter
from tasks.caching import Built, Produced, Work, stage_task
from tasks.progress import progress


def adapter_work(
    config: RunConfig,
    variant: Variant,
    model: ArtifactRef,
    candidates: ArtifactRef,
    annotations: ArtifactRef,
    rewards: ArtifactRef | None = None,
) -> Work:
    """The adapter of a variant. All train on the annotated traces; only MR-ALIGN depends on the weights."""
    inputs = {"model": model, "candidates": candidates, "annotations": annotations}
    if variant == "mr_align" and rewards:
        inputs["rewards"] = rewards
    return Work("adapter", config, inputs, {"variant": variant})


@stage_task("train-adapter", "train {variant}")
def train_variant(
    config: RunConfig,
    variant: Variant,
    model: ArtifactRef,
    candidates: ArtifactRef,
    annotations: ArtifactRef,
    rewards: ArtifactRef,
) -> Produced:
    """Train one adapter: supervised, KTO, or MR-ALIGN."""
    work = adapter_work(config, variant, model, candidates, annotations, rewards)

    def build(store: ArtifactStore, directory: Path) -> Built:
        limit_threads(config.model)
        location = locate_model(store.open_directory(model), model_name(config.model))
        traces = store.read_table(candidates, "candidates.parquet")
        annotated = store.read_table(annotations, "annotations.parquet")["trace_id"].unique()
        with progress(f"training {variant}", f"train-{variant.replace('_', '-')}") as report:
            result = train_adapter(
                location.path,
                traces[traces["trace_id"].isin(annotated)],
                store.read_table(rewards, "rewards.parquet") if "rewards" in work.inputs else None,
                variant=variant,
                section=config.train,
                model_section=config.model,
                seed=config.seed,
                directory=directory,
                card={"candidates": len(traces), "annotated": len(annotated)},
                on_progress=lambda step, steps, row: report(step, steps, f"loss {row['loss']:.3f}"),
                revision=location.revision,
            )
        store.write_table(directory, "metrics.parquet", result.metrics, TRAINING_METRICS)
        return Built(counts=result.counts)

    return work.produce(build)
