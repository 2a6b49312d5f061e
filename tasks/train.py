"""Reference log-probabilities, then one LoRA adapter per variant, all on the same traces."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.errors import ArtifactError, NothingNewError
from mralign_core.models.locate import limit_threads, locate_model
from mralign_core.retraining.training_traces import SAME_QUESTION, ChosenTraces, choose_traces, questions_of
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.policy_logps import POLICY_LOGPS
from mralign_core.schemas.reference_logps import REFERENCE_LOGPS
from mralign_core.schemas.training_metrics import TRAINING_METRICS
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.quarantine import write_rows
from mralign_core.storage.tables import write_table
from mralign_core.versions.aliases import version_key, version_name
from mralign_core.versions.version import TRAINING_TRACES, candidates_behind, read_version
from tasks.engine.graph import Input, OtherWay, Part
from tasks.engine.progress import progress
from tasks.engine.run import Built, Making
from tasks.engine.task import artifact
from tasks.fields import pick
from tasks.generate import FUNNEL
from tasks.live_curves import live_curves


def trains_against_reference(_: RunConfig, part: Part) -> bool:
    """Whether a variant is trained against the reference; SFT is not."""
    return bool(part["variant"] != "sft")


def _needs_reference(config: RunConfig) -> bool:
    of_variants = (trains_against_reference(config, {"variant": each}) for each in config.train.variants)
    return config.train.trace_logps or any(of_variants)


def trains_on_all(config: RunConfig, _: Part) -> bool:
    """Whether all traces are trained on; else those are chosen whose questions some version did not know."""
    return not config.retrain.beyond


def _chooses(config: RunConfig, part: Part) -> bool:
    return not trains_on_all(config, part)


def _base_model(config: RunConfig) -> dict[str, Any]:
    return {**pick(config.model, "dtype", "cpu_threads"), **pick(config.train, "load_in_4bit")}


def trains_on_several_machines(config: RunConfig) -> bool:
    """Whether the processes of ``train.accelerate_config`` are on several machines, this one among them.

    Raises:
        ConfigError: see :func:`~mralign_core.processes.launch.read_accelerate_config`.
    """
    if not config.train.accelerate_config:
        return False
    from mralign_core.processes.launch import read_accelerate_config

    return read_accelerate_config(config.train.accelerate_config).num_machines > 1


TRACES = (Input("model"), Input("candidates", when=trains_on_all), Input("annotations"))
CHOSEN = Input(TRAINING_TRACES, when=_chooses, stands_for="candidates")


def _choice(config: RunConfig) -> dict[str, Any]:
    replays = config.retrain.train_on == "replay"
    return {**pick(config.retrain, "train_on", "replay_share", "beyond"), "seed": config.seed if replays else None}


@artifact(
    TRAINING_TRACES,
    stage="train",
    inputs=(Input("candidates"),),
    parts=lambda config: ({},) if config.retrain.beyond else (),
    fields=_choice,
    sources=("mralign_core.retraining.training_traces",),
    is_remembered=False,
)
def choose_training_traces(making: Making) -> Built:
    """Choose the traces to train on: those of new questions, and of some others again."""
    directory, chosen = making.directory, chosen_traces(making.config, making["candidates"])
    write_rows(directory, "candidates.parquet", chosen.traces, CANDIDATES)
    funnel = chosen.with_choice(pd.DataFrame(making.store.read_json(making["candidates"], FUNNEL)))
    funnel.to_json(directory / FUNNEL, orient="records", indent=1)
    return Built(CANDIDATES.name, {"questions new": chosen.num_new, "questions again": chosen.num_again})


def chosen_traces(config: RunConfig, candidates: ArtifactRef) -> ChosenTraces:
    """The traces that are trained on, of all that a run has, where ``retrain.beyond`` names a version.

    Raises:
        NothingNewError: too few are new.
        ArtifactError: the version is gone, or its traces.
    """
    store, section = ArtifactStore(config.storage), config.retrain
    version = read_version(store, version_key(section.beyond))
    if version is None:
        raise ArtifactError(
            f"retrain.beyond names {version_name(section.beyond)}, which is damaged or gone in {store.root_uri}: run "
            "its pipeline again, name another, or set retrain.train_on to 'all'"
        )
    at_hand = candidates_behind(store, version.traces)
    known = store.read_columns(at_hand, "candidates.parquet", CANDIDATES, list(SAME_QUESTION))
    traces = store.read_table(candidates, "candidates.parquet")
    share = section.replay_share if section.train_on == "replay" else 0.0
    try:
        return choose_traces(traces, set(questions_of(known)), share, seed=config.seed)
    except NothingNewError as error:
        raise NothingNewError(f"against {version.name}, {error}") from None


def traces_to_train_on(config: RunConfig, inputs: Mapping[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    """Name → the traces that training reads: all, or those chosen of them.

    Args:
        config: the run config.
        inputs: what the run has made; ``candidates`` among it.

    Raises:
        NothingNewError: some are to be chosen, and too few are new.
    """
    candidates = inputs["candidates"]
    if trains_on_all(config, {}):
        return {"candidates": candidates}
    return {TRAINING_TRACES: choose_training_traces(config, candidates)}


@artifact(
    "reference-logps",
    stage="train",
    inputs=(*TRACES, CHOSEN),
    fields=lambda config: {**_base_model(config), **pick(config.train, "max_length")},
    sources=("mralign_core.training.reference",),
    is_remembered=False,
    is_shared=trains_on_several_machines,
    parts=lambda config: ({},) if _needs_reference(config) else (),
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


def trains_by_trl(config: RunConfig) -> bool:
    """Whether TRL's trainers train in place of our own loop."""
    return config.train.engine == "trl"


def train_adapter_by_trl(making: Making) -> Built:
    """Train one adapter by TRL's trainers.

    What it shares with :func:`train_adapter` is written twice: a change there would change the key of every adapter.
    """
    from mralign_core.training.curves import open_curves
    from mralign_core.training.fit import Watch
    from mralign_core.training.job import TrainingJob
    from mralign_core.training.trl_engine import TrlCheckpoints, train_by_trl

    config, key, variant = making.config, making.work.key, making.part["variant"]
    common = _common(making)
    job = TrainingJob(
        **common,
        variant=variant,
        seed=config.seed,
        segment_weights=making.table_if_read("weights", "weights.parquet"),
        reference=making.table_if_read("reference-logps", "reference.parquet"),
        directory=making.directory,
        facts={"candidates": making["candidates"].rows, "annotated": len(common["candidates"])},
        storage=config.storage,
        key=key,
    )
    with (
        progress(f"training {variant} by TRL", f"train-{variant.replace('_', '-')}") as report,
        contextlib.closing(open_curves(config.train, config.name, f"{variant}-{key[:8]}", key=key)) as curves,
        live_curves(variant) as live,
    ):

        def on_progress(step: int, steps: int, row: dict[str, float]) -> None:
            live.add({"step": step, **row})
            report(step, steps, f"loss {row['loss']:.3f}")

        result = train_by_trl(job, Watch(curves, on_progress))
    write_table(making.directory, "metrics.parquet", result.metrics, TRAINING_METRICS)
    return Built(counts=result.counts, once_published=TrlCheckpoints(making.store, key).clear)


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
        CHOSEN,
    ),
    fields=lambda config: {**_base_model(config), "seed": config.seed},
    details=lambda config, part: {"settings": config.train.settings_of(part["variant"])},
    sources=("mralign_core.training.fit",),
    is_main=lambda _: True,
    is_shared=trains_on_several_machines,
    other_way=OtherWay(trains_by_trl, train_adapter_by_trl, ("mralign_core.training.trl_engine",)),
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
        segment_weights=making.table_if_read("weights", "weights.parquet"),
        reference=making.table_if_read("reference-logps", "reference.parquet"),
        directory=making.directory,
        facts={"candidates": making["candidates"].rows, "annotated": len(common["candidates"])},
        storage=config.storage,
        key=key,
    )
    label = f"{variant}-{key[:8]}"  # arms of an ablation share the run and the variant
    with (
        progress(f"training {variant}", f"train-{variant.replace('_', '-')}") as report,
        contextlib.closing(open_curves(config.train, config.name, label, key=key)) as curves,
        live_curves(variant) as live,
    ):

        def on_progress(step: int, steps: int, row: dict[str, float]) -> None:
            live.add({"step": step, **row})
            report(step, steps, f"loss {row['loss']:.3f}")

        watch = Watch(curves, on_progress)
        result = (launch_adapter if config.train.accelerate_config else fit_adapter)(job, watch)
    write_table(making.directory, "metrics.parquet", result.metrics, TRAINING_METRICS)
    return Built(counts=result.counts, once_published=StoredCheckpoints(making.store, key).clear)


@artifact(
    "policy-logps",
    stage="train",
    run_name="traces after training {variant}",
    part=("variant",),
    parts=lambda config: [{"variant": each} for each in config.train.variants if config.train.trace_logps],
    inputs=(
        *TRACES,
        CHOSEN,
        Input("reference-logps"),
        Input("weights", when=lambda _, part: part["variant"] == "mr_align"),
        Input("adapter", own_part="variant"),
    ),
    fields=lambda config: {**_base_model(config), **pick(config.train, "max_length")},
    sources=("mralign_core.training.policy_logps",),
    is_shared=trains_on_several_machines,
)
def policy_logps(making: Making) -> Built:
    """Log-probabilities of the training traces under a trained adapter, beside those before."""
    from mralign_core.processes.launch import launch_policy_logps
    from mralign_core.training.policy_logps import PolicyJob, compute_policy_logps

    job = PolicyJob(
        **_common(making),
        adapter=making.store.open_directory(making["adapter"]),
        segment_weights=making.table_if_read("weights", "weights.parquet"),
        reference=making.table("reference-logps", "reference.parquet"),
    )
    variant = making.part["variant"]
    compute = launch_policy_logps if making.config.train.accelerate_config else compute_policy_logps
    with progress(f"traces after training {variant}", f"traces-{variant.replace('_', '-')}") as report:
        table = compute(job, report)
    write_table(making.directory, "policy.parquet", table, POLICY_LOGPS)
    return Built(POLICY_LOGPS.name)


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
