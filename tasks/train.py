"""Reference log-probabilities, then one LoRA adapter per variant, all on the same traces."""

from __future__ import annotations

import contextlib
from typing import Any

import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.models.locate import limit_threads, locate_model
from mralign_core.schemas.reference_logps import REFERENCE_LOGPS
from mralign_core.schemas.training_metrics import TRAINING_METRICS
from mralign_core.storage.tables import write_table
from tasks.engine.graph import Input, Part
from tasks.engine.progress import progress
from tasks.engine.run import Built, Making
from tasks.engine.task import artifact
from tasks.fields import pick


def trains_against_reference(_: RunConfig, part: Part) -> bool:
    """Whether a variant is trained against the reference; SFT is not."""
    return bool(part["variant"] != "sft")


def _base_model(config: RunConfig) -> dict[str, Any]:
    return {**pick(config.model, "dtype", "cpu_threads"), **pick(config.train, "load_in_4bit")}


TRACES = (Input("model"), Input("candidates"), Input("annotations"))


@artifact(
    "reference-logps",
    stage="train",
    inputs=TRACES,
    fields=lambda config: {**_base_model(config), **pick(config.train, "max_length")},
    sources=("mralign_core.training.reference",),
    is_remembered=False,
    parts=lambda config: (
        ({},) if any(trains_against_reference(config, {"variant": each}) for each in config.train.variants) else ()
    ),
)
def reference_logps(making: Making) -> Built:
    """Log-probabilities of the traces and their KL pairs under the model as it is, once for all that trains on them."""
    from mralign_core.processes.launch import launch_reference
    from mralign_core.training.job import ReferenceJob
    from mralign_core.training.reference import compute_reference

    job = ReferenceJob(**_common(making))
    compute = launch_reference if making.config.train.accelerate_config else compute_reference
    with progress("reference log-probabilities", "train-reference") as report:
        table = compute(job, report)
    write_table(making.directory, "reference.parquet", table, REFERENCE_LOGPS)
    return Built(REFERENCE_LOGPS.name)


@artifact(
    "adapter",
    stage="train",
    run_name="train {variant}",
    part=("variant",),
    parts=lambda config: [{"variant": variant} for variant in config.train.variants],
    inputs=(
        *TRACES,
        Input("reference-logps", when=trains_against_reference),
        Input("weights", when=lambda _, part: part["variant"] == "mr_align"),
    ),
    fields=lambda config: {**_base_model(config), "seed": config.seed},
    details=lambda config, part: {"settings": config.train.settings_of(part["variant"])},
    sources=("mralign_core.training.fit",),
    is_main=lambda _: True,
)
def train_adapter(making: Making) -> Built:
    """Train one adapter: supervised, KTO, or MR-ALIGN."""
    from mralign_core.processes.launch import launch_adapter
    from mralign_core.training.checkpoints import StoredCheckpoints
    from mralign_core.training.curves import open_curves
    from mralign_core.training.fit import Watch
    from mralign_core.training.fit import train_adapter as fit_adapter
    from mralign_core.training.job import TrainingJob

    config, key, variant = making.config, making.work.key, making.part["variant"]
    common = _common(making)
    job = TrainingJob(
        **common,
        variant=variant,
        seed=config.seed,
        segment_weights=_table(making, "weights", "weights.parquet"),
        reference=_table(making, "reference-logps", "reference.parquet"),
        directory=making.directory,
        facts={"candidates": making["candidates"].rows, "annotated": len(common["candidates"])},
        storage=config.storage,
        key=key,
    )
    label = f"{variant}-{key[:8]}"  # arms of an ablation share the run and the variant
    with (
        progress(f"training {variant}", f"train-{variant.replace('_', '-')}") as report,
        contextlib.closing(open_curves(config.train, config.name, label, key=key)) as curves,
    ):
        watch = Watch(curves, lambda step, steps, row: report(step, steps, f"loss {row['loss']:.3f}"))
        result = (launch_adapter if config.train.accelerate_config else fit_adapter)(job, watch)
    write_table(making.directory, "metrics.parquet", result.metrics, TRAINING_METRICS)
    return Built(counts=result.counts, once_published=StoredCheckpoints(making.store, key).clear)


def _common(making: Making) -> dict[str, Any]:
    """What the jobs of the reference and of the adapters share."""
    from mralign_core.training.examples import with_labels

    limit_threads(making.config.model)
    location = locate_model(making.store.open_directory(making["model"]))
    candidates = making.table("candidates", "candidates.parquet")
    return {
        "model_path": location.path,
        "revision": location.revision,
        "model": making.config.model,
        "train": making.config.train,
        "candidates": with_labels(candidates, making.table("annotations", "annotations.parquet")),
    }


def _table(making: Making, name: str, file_name: str) -> pd.DataFrame | None:
    return making.table(name, file_name) if making.get(name) else None
