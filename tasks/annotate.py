"""Labels for every segment of every candidate, in shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mralign_core.annotation.annotate import annotate_traces
from mralign_core.config import RunConfig
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.schemas import ANNOTATIONS, RAW_ANNOTATIONS
from mralign_core.storage import ArtifactRef, ArtifactStore, ReplyStore
from tasks.caching import Built, Produced, Work, shard_bounds, stage_task
from tasks.progress import progress
from tasks.quarantine import carry_over, write_rows


def annotation_shards(config: RunConfig, candidates: ArtifactRef) -> list[tuple[int, int]]:
    """Row ranges of the candidates, one a shard."""
    return list(shard_bounds(candidates.rows or 0, config.annotate.shard_size))


def shard_work(config: RunConfig, candidates: ArtifactRef, start: int, end: int) -> Work:
    """The annotations of traces ``start`` to ``end``."""
    return Work("annotations-shard", config, {"candidates": candidates}, {"start": start, "end": end})


def annotations_work(config: RunConfig, candidates: ArtifactRef) -> Work:
    """The annotations of all traces."""
    return Work("annotations", config, {"candidates": candidates})


@stage_task("annotate-shard", "annotate {start}–{end}")
def annotate_shard(config: RunConfig, candidates: ArtifactRef, start: int, end: int) -> Produced:
    """Annotate traces ``start`` to ``end``; every reply is kept before it is read, and never asked for again."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        rows = store.read_table(candidates, "candidates.parquet").iloc[start:end]
        with progress(f"annotating traces {start}–{end}", f"annotate-{start}") as report:
            result = annotate_traces(
                rows,
                config.annotate,
                seed=config.seed,
                taxonomy=PAPER_TAXONOMY,
                replies=ReplyStore(store),
                on_progress=report,
            )
        write_rows(store, directory, "annotations.parquet", result.annotations, ANNOTATIONS)
        write_rows(store, directory, "raw_annotations.parquet", result.raw, RAW_ANNOTATIONS)
        result.failures.to_json(directory / "failures.json", orient="records", indent=1)
        return Built(ANNOTATIONS.name, {"failures": len(result.failures)}, result.cost_usd)

    return shard_work(config, candidates, start, end).produce(build)


@stage_task("collect-annotations")
def collect_annotations(config: RunConfig, candidates: ArtifactRef, shards: Sequence[ArtifactRef]) -> Produced:
    """Join the shards into one artifact: labels, raw replies, failures."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        labels = pd.concat([store.read_table(s, "annotations.parquet") for s in shards], ignore_index=True)
        raw = pd.concat([store.read_table(s, "raw_annotations.parquet") for s in shards], ignore_index=True)
        failures = pd.concat([pd.read_json(store.open_file(s, "failures.json")) for s in shards], ignore_index=True)
        write_rows(store, directory, "annotations.parquet", labels, ANNOTATIONS)
        write_rows(store, directory, "raw_annotations.parquet", raw, RAW_ANNOTATIONS)
        carry_over(store, shards, directory)
        failures.to_json(directory / "failures.json", orient="records", indent=1)
        return Built(
            ANNOTATIONS.name,
            {**labels["rule"].value_counts().to_dict(), "failures": len(failures)},
        )

    return annotations_work(config, candidates).produce(build)
