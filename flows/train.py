"""Stage 5: one LoRA adapter per variant."""

from __future__ import annotations

from prefect import flow

from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tasks.engine.last_run import inputs_of, remember
from tasks.engine.pool import train_on_pool
from tasks.publish import show_training
from tasks.train import needs_reference, reference_logps, train_variant


@flow(name="train")
def train(
    config: RunConfig,
    model: ArtifactRef | None = None,
    candidates: ArtifactRef | None = None,
    annotations: ArtifactRef | None = None,
    rewards: ArtifactRef | None = None,
) -> dict[str, ArtifactRef]:
    """Compute the reference once, then train every variant on the same traces, here or on the GPU pool.

    Args:
        config: the run config.
        model: artifact of the model; the last run's when empty.
        candidates: artifact of the kept traces; the last run's when empty.
        annotations: artifact of their labels; the last run's when empty.
        rewards: artifact of the segment weights; the last run's when empty.
    """
    given = {"model": model, "candidates": candidates, "annotations": annotations, "rewards": rewards}
    inputs = inputs_of(config, given)
    if config.train.where == "deployment":
        train_on_pool(config, inputs)
    traces = {name: inputs[name] for name in ("model", "candidates", "annotations")}
    reference = reference_logps(config, **traces) if needs_reference(config.train.variants) else None
    adapters: dict[str, ArtifactRef] = {
        variant: train_variant(config, variant, **inputs, reference=reference) for variant in config.train.variants
    }
    remember(config, inputs, **{f"adapter:{variant}": ref for variant, ref in adapters.items()})
    show_training(config, adapters)
    return adapters
