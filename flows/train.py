"""Stage 5: one LoRA adapter per variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import flow

from flows.form import TrainForm
from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine.last_run import inputs_of, remember
from tasks.engine.naming import name_run
from tasks.engine.pool import make_on_pool
from tasks.engine.task import as_arguments
from tasks.publish import show_health, show_training
from tasks.train import policy_logps, reference_logps, traces_to_train_on, train_adapter


@flow(name="train", flow_run_name=name_run)
def train(
    config: TrainForm,
    model: ArtifactRef | None = None,
    candidates: ArtifactRef | None = None,
    annotations: ArtifactRef | None = None,
    weights: ArtifactRef | None = None,
) -> dict[str, ArtifactRef]:
    """Compute the reference once, then train every variant on the same traces, here or on the GPU pool, and where it is
    asked for see what each made of the traces.

    Args:
        config: a preset, and what differs from it.
        model: artifact of the model; the last run's when empty.
        candidates: artifact of the kept traces; the last run's when empty.
        annotations: artifact of their labels; the last run's when empty.
        weights: artifact of the segment weights; the last run's when empty.
    """
    given = {"model": model, "candidates": candidates, "annotations": annotations, "weights": weights}
    inputs = inputs_of(config, given)
    adapters = train_variants(config, inputs)
    after = look_at_traces(config, inputs, adapters)
    made = {"adapter": adapters, "policy-logps": after}
    named = {f"{name}:{variant}": ref for name, refs in made.items() for variant, ref in refs.items()}
    remember(config, inputs, **named)
    show_training(config, adapters)
    show_health(config, named)
    return adapters


def train_variants(config: RunConfig, inputs: Mapping[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    """Variant of ``train.variants`` → its adapter, trained here or on the GPU pool."""
    traces = _traces(config, inputs)
    if config.train.where == "deployment":
        _train_on_pool(config, inputs, traces)
    needs_reference = reference_logps.artifact.parts(config)
    reference = reference_logps(config, **traces) if needs_reference else None
    call: dict[str, Any] = {**inputs, **traces, "reference_logps": reference}
    return {variant: train_adapter(config, **call, variant=variant) for variant in config.train.variants}


def look_at_traces(
    config: RunConfig, inputs: Mapping[str, ArtifactRef], adapters: Mapping[str, ArtifactRef]
) -> dict[str, ArtifactRef]:
    """Variant → the log-probabilities of the traces under its adapter; nothing unless ``train.trace_logps``."""
    if not config.train.trace_logps:
        return {}
    traces = _traces(config, inputs)
    reference = reference_logps.work(config, **traces).find(ArtifactStore(config.storage))
    call: dict[str, Any] = {**inputs, **traces, "reference_logps": reference}
    calls = {variant: {**call, "adapter": adapter, "variant": variant} for variant, adapter in adapters.items()}
    if config.train.where == "deployment":  # made there already, unless the adapters are of an earlier run
        works = [policy_logps.work(config, **each) for each in calls.values()]
        make_on_pool("train/stage-train", works, lambda _: inputs, config=config, section="train")
    return {variant: policy_logps(config, **each) for variant, each in calls.items()}


def _traces(config: RunConfig, inputs: Mapping[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    """The model and what it is trained on, as arguments of the tasks."""
    traces = {name: inputs[name] for name in ("model", "candidates", "annotations")}
    return as_arguments({**traces, **traces_to_train_on(config, inputs)})


def _train_on_pool(config: RunConfig, inputs: Mapping[str, ArtifactRef], traces: Mapping[str, ArtifactRef]) -> None:
    """Train on the pool what is not trained yet, in one child run, which needs the reference first."""
    works, reference = [], None
    if reference_logps.artifact.parts(config):
        works.append(reference_logps.work(config, **traces))
        reference = works[0].find(ArtifactStore(config.storage))
    if reference or not works:
        call: dict[str, Any] = {**inputs, **traces, "reference_logps": reference}
        works += [train_adapter.work(config, **call, variant=variant) for variant in config.train.variants]
    make_on_pool("train/stage-train", works, lambda _: inputs, config=config, section="train")
