"""Stage 3: how traces move between meta-reasoning states when they end right, wrong, and overall."""

from __future__ import annotations

from prefect import flow

from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tasks.diagnose import diagnose_matrices
from tasks.engine.last_run import inputs_of, remember
from tasks.estimate import estimate_matrices
from tasks.publish import show_diagnostics, show_transitions


@flow(name="estimate")
def estimate(
    config: RunConfig, candidates: ArtifactRef | None = None, annotations: ArtifactRef | None = None
) -> tuple[ArtifactRef, ArtifactRef]:
    """Estimate P⁺, P⁻ and P, and tell how sure they and their weights are.

    Args:
        config: the run config.
        candidates: artifact of the kept traces; the last run's when empty.
        annotations: artifact of their labels; the last run's when empty.

    Returns:
        The matrices and the diagnostics.
    """
    inputs = inputs_of(config, {"candidates": candidates, "annotations": annotations})
    transitions = estimate_matrices(config, **inputs)
    diagnostics = diagnose_matrices(config, **inputs, transitions=transitions)
    remember(config, inputs, transitions=transitions, diagnostics=diagnostics)
    show_transitions(config, transitions)
    show_diagnostics(config, diagnostics)
    return transitions, diagnostics
