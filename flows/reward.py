"""Stage 4: a weight for every thinking segment."""

from __future__ import annotations

from prefect import flow

from flows.form import RewardForm
from mralign_core.storage import ArtifactRef
from tasks.engine.last_run import inputs_of, remember
from tasks.engine.naming import name_run
from tasks.engine.task import as_arguments
from tasks.publish import show_weights
from tasks.reward import weigh_segments


@flow(name="reward", flow_run_name=name_run)
def reward(
    config: RewardForm,
    candidates: ArtifactRef | None = None,
    annotations: ArtifactRef | None = None,
    transitions: ArtifactRef | None = None,
    thinking_draws: ArtifactRef | None = None,
    draw_annotations: ArtifactRef | None = None,
) -> ArtifactRef:
    """Weigh every segment of every annotated trace.

    Args:
        config: a preset, and what differs from it.
        candidates: artifact of the kept traces; the last run's when empty.
        annotations: artifact of their labels; the last run's when empty.
        transitions: artifact of P⁺, P⁻ and P; the last run's when empty.
        thinking_draws: artifact of the draws that these were estimated from, if they were; the last run's when empty.
        draw_annotations: artifact of their labels; the last run's when empty.
    """
    given = {"candidates": candidates, "annotations": annotations, "transitions": transitions}
    if config.estimate.uses_draws:
        given |= {"thinking-draws": thinking_draws, "draw-annotations": draw_annotations}
    inputs = inputs_of(config, given)
    weights = weigh_segments(config, **as_arguments(inputs))
    remember(config, inputs, weights=weights)
    show_weights(config, weights)
    return weights
