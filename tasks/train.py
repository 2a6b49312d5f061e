"""Reference log-probabilities, then one LoRA adapter per variant, all on the same traces."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from mralign_core.config import RunConfig, Variant
from mralign_core.models.locate import ModelLocation, limit_threads, locate_model, model_name
from mralign_core.processes.launch import launch_adapter, launch_reference
from mralign_core.schemas.reference_logps import REFERENCE_LOGPS
from mralign_core.schemas.training_metrics import TRAINING_METRICS
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.training.checkpoints import StoredCheckpoints
from mralign_core.training.curves import open_curves
from mralign_core.training.fit import TrainingResult, Watch, train_adapter
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
        location = _model(config, store, model)
        compute = launch_reference if config.train.accelerate_config else compute_reference
        with progress("reference log-probabilities", "train-reference") as report:
            table = compute(
                location.path,
                _annotated(store, candidates, annotations),
                section=config.train,
                model_section=config.model,
                on_progress=report,
                revision=location.revision,
            )
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
        location = _model(config, store, model)
        traces = _annotated(store, candidates, annotations)
        label = f"{variant}-{work.key[:8]}"  # arms of an ablation share the run and the variant
        with (
            progress(f"training {variant}", f"train-{variant.replace('_', '-')}") as report,
            contextlib.closing(open_curves(config.train, config.name, label, key=work.key)) as curves,
        ):
            watch = Watch(
                StoredCheckpoints(store, work.key),
                curves,
                lambda step, steps, row: report(step, steps, f"loss {row['loss']:.3f}"),
            )
            result = _trainer(work, watch)(
                location.path,
                traces,
                table(store, "rewards", "rewards.parquet"),
                variant=variant,
                section=config.train,
                model_section=config.model,
                seed=config.seed,
                directory=directory,
                card={"candidates": candidates.rows, "annotated": len(traces)},
                reference=table(store, "reference-logps", "reference.parquet"),
                revision=location.revision,
            )
        store.write_table(directory, "metrics.parquet", result.metrics, TRAINING_METRICS)
        return Built(counts=result.counts)

    produced = work.produce(build)
    if not produced.was_cached:
        StoredCheckpoints(ArtifactStore(config.storage), work.key).clear()
    return produced


def _trainer(work: Work, watch: Watch) -> Callable[..., TrainingResult]:
    """Train in this process, or in those of ``train.accelerate_config``, which keep their checkpoints themselves."""
    if not work.config.train.accelerate_config:
        return functools.partial(train_adapter, watch=watch)
    return functools.partial(launch_adapter, storage=work.config.storage, key=work.key, on_progress=watch.report)


def _model(config: RunConfig, store: ArtifactStore, model: ArtifactRef) -> ModelLocation:
    limit_threads(config.model)
    return locate_model(store.open_directory(model), model_name(config.model))


def _annotated(store: ArtifactStore, candidates: ArtifactRef, annotations: ArtifactRef) -> pd.DataFrame:
    """The candidates that have labels; an annotator may have failed on some."""
    traces = store.read_table(candidates, "candidates.parquet")
    labelled = store.read_table(annotations, "annotations.parquet")["trace_id"].unique()
    return traces[traces["trace_id"].isin(labelled)]
