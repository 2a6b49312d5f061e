"""P⁺, P⁻ and P from the labels."""

from __future__ import annotations

from pathlib import Path

from mralign_core.config import RunConfig
from mralign_core.estimation import estimate_transitions, labelled_traces
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.caching import Built, Produced, Work, stage_task


def transitions_work(config: RunConfig, candidates: ArtifactRef, annotations: ArtifactRef) -> Work:
    """The transition matrices of a set of annotated traces."""
    return Work("transitions", config, {"candidates": candidates, "annotations": annotations})


@stage_task("estimate-transitions")
def estimate_matrices(config: RunConfig, candidates: ArtifactRef, annotations: ArtifactRef) -> Produced:
    """Estimate the three transition matrices by EM (or by frequency, for comparison)."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        traces = labelled_traces(
            store.read_table(candidates, "candidates.parquet"),
            store.read_table(annotations, "annotations.parquet"),
            labels_per_segment=config.estimate.labels_per_segment,
        )
        matrices = estimate_transitions(traces, config.estimate)
        matrices.save(directory / "transitions.npz")
        counts = {name: float(estimate.counts.sum()) for name, estimate in matrices.estimates.items()}
        return Built(counts={"traces": len(traces), **{f"transitions {k}": v for k, v in counts.items()}})

    return transitions_work(config, candidates, annotations).produce(build)
