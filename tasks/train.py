"""Reference log-probabilities, then one LoRA adapter per variant, all on the same traces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from mralign_core.config import RunConfig, Variant
from mralign_core.models.locate import limit_threads, locate_model, model_name
from mralign_core.processes.launch import launch_adapter, launch_reference
from mralign_core.schemas import REFERENCE_LOGPS, TRAINING_METRICS
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.training.checkpoints import StoredCheckpoints
from mralign_core.training.curves import open_curves
from mralign_core.training.fit import Watch, train_adapter
from mralign_core.training.job import ReferenceJob, TrainingJob
from mralign_core.training.reference import compute_reference
from tasks.engine.progress import progress
from tasks.engine.run import Built, Produced, Work, stage_task


def reference_work(config: RunConfig, model: ArtifactRef, candidates: ArtifactRef, annotations: ArtifactRef) -> Work:
    """The reference log-probabilities of the annotated traces, which all variants, seeds and ablations share."""
    return Work("reference-logps", config, {"model": model, "candidates": candidates, "annotations": annotations})


def needs_reference(variants: Iterable[Variant]) -> bool:
    """Whether one of them is trained against the reference; SFT is not."""
    return any(variant != "sft" for variant in variants)


def adapter_work(
    config: RunConfig,
    variant: Variant,
    model: ArtifactRef,
    candidates: ArtifactRef,
    annotations: ArtifactRef,
    reference: ArtifactRef | None = None,
    rewards: ArtifactRef | None = None,
) -> Work:
    """The adapter of a variant. All train on the annotated traces; only MR-ALIGN depends on the weights."""
    inputs = {"model": model, "candidates": candidates, "annotations": annotations}
    if variant != "sft" and reference:
        inputs["reference-logps"] = reference
    if variant == "mr_align" and rewards:
        inputs["rewards"] = rewards
    return Work("adapter", config, inputs, {"variant": variant, "settings": config.train.settings_of(variant)})


@stage_task("reference-logps")
def reference_logps(
    config: RunConfig, model: ArtifactRef, candidates: ArtifactRef, annotations: ArtifactRef
) -> Produced:
    """Log-probabilities of the traces and their KL pairs under the model as it is, once for all that trains on them."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        compute = launch_reference if config.train.accelerate_config else compute_reference
        job = ReferenceJob(**_common(config, store, model, candidates, annotations))
        with progress("reference log-probabilities", "train-reference") as report:
            table = compute(job, report)
        store.write_table(directory, "reference.parquet", table, REFERENCE_LOGPS)
        return Built(REFERENCE_LOGPS.name)

    return reference_work(config, model, candidates, annotations).produce(build)


@stage_task("train-adapter", "train {variant}")
def train_variant(
    config: RunConfig,
    variant: Variant,
    model: ArtifactRef,
    candidates: ArtifactRef,
    annotations: ArtifactRef,
    reference: ArtifactRef | None,
    rewards: ArtifactRef,
) -> Produced:
    """Train one adapter: supervised, KTO, or MR-ALIGN."""
    work = adapter_work(config, variant, model, candidates, annotations, reference, rewards)

    def table(store: ArtifactStore, name: str, file: str) -> pd.DataFrame | None:
        return store.read_table(work.inputs[name], file) if name in work.inputs else None

    def build(store: ArtifactStore, directory: Path) -> Built:
        train = launch_adapter if config.train.accelerate_config else train_adapter
        common = _common(config, store, model, candidates, annotations)
        job = TrainingJob(
            **common,
            variant=variant,
            seed=config.seed,
            rewards=table(store, "rewards", "rewards.parquet"),
            reference=table(store, "reference-logps", "reference.parquet"),
            directory=directory,
            facts={"candidates": candidates.rows, "annotated": len(common["candidates"])},
            storage=config.storage,
            key=work.key,
        )
        label = f"{variant}-{work.key[:8]}"  # arms of an ablation share the run and the variant
        with (
            progress(f"training {variant}", f"train-{variant.replace('_', '-')}") as report,
            contextlib.closing(open_curves(config.train, config.name, label, key=work.key)) as curves,
        ):
            watch = Watch(curves, lambda step, steps, row: report(step, steps, f"loss {row['loss']:.3f}"))
            result = train(job, watch)
        store.write_table(directory, "metrics.parquet", result.metrics, TRAINING_METRICS)
        return Built(counts=result.counts)

    produced = work.produce(build)
    if not produced.was_cached:
        StoredCheckpoints(ArtifactStore(config.storage), work.key).clear()
    return produced


def _common(
    config: RunConfig, store: ArtifactStore, model: ArtifactRef, candidates: ArtifactRef, annotations: ArtifactRef
) -> dict[str, Any]:
    """What the jobs of the reference and of the adapters share."""
    limit_threads(config.model)
    location = locate_model(store.open_directory(model), model_name(config.model))
    return {
        "model_path": location.path,
        "revision": location.revision,
        "model": config.model,
        "train": config.train,
        "candidates": _annotated(store, candidates, annotations),
    }


def _annotated(store: ArtifactStore, candidates: ArtifactRef, annotations: ArtifactRef) -> pd.DataFrame:
    """The candidates that have labels; an annotator may have failed on some."""
    traces = store.read_table(candidates, "candidates.parquet")
    labelled = store.read_table(annotations, "annotations.parquet")["trace_id"].unique()
    return traces[traces["trace_id"].isin(labelled)]
