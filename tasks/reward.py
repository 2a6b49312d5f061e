"""Weights for every segment from the ratios of transition probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mralign_core.config import RunConfig
from mralign_core.estimation import TransitionMatrices, Weigher, read_trace_batches, weigh_corpus
from mralign_core.label_sets import label_set_of
from mralign_core.schemas.rewards import REWARDS
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.tables import TableWriter
from tasks.engine.run import Built, Produced, Work, stage_task


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
        traces = store.open_file(candidates, "candidates.parquet")
        batches = read_trace_batches(
            traces,
            store.open_file(annotations, "annotations.parquet"),
            labels_per_segment=config.estimate.labels_per_segment,
            taxonomy=label_set_of(config).taxonomy,
        )
        matrices = TransitionMatrices.load(store.open_file(transitions, "transitions.npz"))
        weigher = Weigher(matrices, config.reward, config.estimate.confidence)
        num_clipped = 0
        with TableWriter(directory / "rewards.parquet", REWARDS) as table:
            for columns in weigh_corpus(batches, weigher, config.reward, seed=config.seed, candidates=traces):
                table.write(columns)
                num_clipped += int(np.asarray(columns["clipped"]).sum())
        return Built(REWARDS.name, {**weigher.counts, "clipped": num_clipped})

    return rewards_work(config, candidates, annotations, transitions).produce(build)
