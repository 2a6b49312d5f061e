"""P⁺, P⁻ and P from the labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from mralign_core.config import RunConfig
from mralign_core.estimation import count_corpus, estimate_corpus, read_trace_batches, with_permuted_polarities
from mralign_core.label_sets import label_set_of
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine.progress import progress
from tasks.engine.run import Built, Produced, Work, stage_task


def transitions_work(config: RunConfig, candidates: ArtifactRef, annotations: ArtifactRef) -> Work:
    """The transition matrices of a set of annotated traces."""
    return Work("transitions", config, {"candidates": candidates, "annotations": annotations})


@stage_task("estimate-transitions")
def estimate_matrices(config: RunConfig, candidates: ArtifactRef, annotations: ArtifactRef) -> Produced:
    """Estimate the three transition matrices, pooled and by stratum, with bootstrap draws of them."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        taxonomy = label_set_of(config).taxonomy
        read = partial(
            read_trace_batches,
            store.open_file(candidates, "candidates.parquet"),
            store.open_file(annotations, "annotations.parquet"),
            labels_per_segment=config.estimate.labels_per_segment,
            taxonomy=taxonomy,
        )
        batches = read()
        if config.estimate.permute_polarity:
            batches = with_permuted_polarities(batches, read(), seed=config.seed)
        corpus = count_corpus(batches, taxonomy.num_states, keep_traces=config.estimate.num_resamples > 0)
        with progress("resampling traces", "estimate") as report:
            rng = np.random.default_rng(config.seed)
            matrices = estimate_corpus(corpus, config.estimate, taxonomy, rng=rng, on_progress=report)
        matrices.save(directory / "transitions.npz")
        counts = {f"transitions {name}": float(e.counts.sum()) for name, e in matrices.estimates.items()}
        return Built(counts={**corpus.totals, **counts, "strata with own matrices": len(matrices.strata)})

    return transitions_work(config, candidates, annotations).produce(build)
