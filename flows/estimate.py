"""Stage 3: how traces move between meta-reasoning states when they end right, wrong, and overall."""

from __future__ import annotations

from prefect import flow

from flows.form import EstimateForm
from mralign_core.storage import ArtifactRef
from tasks.engine.last_run import inputs_of, remember
from tasks.engine.naming import name_run
from tasks.engine.task import as_arguments
from tasks.estimate import diagnose_transitions, draw_diagnostics, estimate_transitions
from tasks.publish import show_diagnostics, show_transitions


@flow(name="estimate", flow_run_name=name_run)
def estimate(
    config: EstimateForm,
    candidates: ArtifactRef | None = None,
    annotations: ArtifactRef | None = None,
    thinking_draws: ArtifactRef | None = None,
    draw_annotations: ArtifactRef | None = None,
) -> tuple[ArtifactRef, ArtifactRef]:
    """Estimate P⁺, P⁻ and P, and tell how sure they and their weights are.

    Args:
        config: a preset, and what differs from it.
        candidates: artifact of the kept traces; the last run's when empty.
        annotations: artifact of their labels; the last run's when empty.
        thinking_draws: artifact of the draws to estimate from in their place; the last run's when empty.
        draw_annotations: artifact of their labels; the last run's when empty.

    Returns:
        The matrices and the diagnostics.
    """
    given = {"candidates": candidates, "annotations": annotations}
    if config.estimate.uses_draws:
        given = {"thinking-draws": thinking_draws, "draw-annotations": draw_annotations}
    inputs = inputs_of(config, given)
    traces = as_arguments(inputs)
    transitions = estimate_transitions(config, **traces)
    diagnostics = diagnose_transitions(config, **traces, transitions=transitions)
    figures = draw_diagnostics(config, transitions, diagnostics)
    remember(config, inputs, transitions=transitions, diagnostics=diagnostics, **{"diagnostic-figures": figures})
    show_transitions(config, transitions)
    show_diagnostics(config, diagnostics, figures)
    return transitions, diagnostics
