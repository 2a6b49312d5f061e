"""Weights for every segment from the ratios of transition probabilities."""

from __future__ import annotations

from pathlib import Path

from mralign_core.config import RunConfig
from mralign_core.estimation import TransitionMatrices, labelled_traces, weigh_segments
from mralign_core.schemas import REWARDS
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.caching import Built, Produced, Work, stage_task
from tasks.quarantine import write_rows


def rewards_work(
    config: RunConfig, candidates: ArtifactRef, annotations: ArtifactRef, transitions: ArtifactRef
) -> Work:
    """The weights of a set of annotated traces."""
    inputs = {"candidates": candidates, "annotations": annotations, "transitions": transitions}
    return Work("rewards", config, inputs)


@stage_task("weigh-segments")
def weigh_traces(
    config: RunConfig, candidates: ArtifactRef, annotations: ArtifactRef, transitions: ArtifactRef
) -> Produced:
    """Weigh each segment by how much likelier its move is in traces of its polarity (Eq. 10)."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        traces = labelled_traces(
            store.read_table(candidates, "candidates.parquet"),
            store.read_table(annotations, "annotations.parquet"),
            labels_per_segment=config.estimate.labels_per_segment,
        )
        matrices = TransitionMatrices.load(store.open_file(transitions, "transitions.npz"))
        frame = weigh_segments(traces, matrices, config.reward)
        write_rows(store, directory, "rewards.parquet", frame, REWARDS)
        return Built(REWARDS.name, {"clipped": int(frame["clipped"].sum())})

    return rewards_work(config, candidates, annotations, transitions).produce(build)
