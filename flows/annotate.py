"""Stage 2: label what each thinking segment does."""

from __future__ import annotations

from prefect import flow

from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tasks.annotate import annotate_shard, annotation_shards, collect_annotations
from tasks.publishing import show_labels
from tasks.runs import last_run, remember


@flow(name="annotate")
def annotate(config: RunConfig, candidates: ArtifactRef | None = None) -> ArtifactRef:
    """Annotate the candidates in shards.

    Args:
        config: the run config.
        candidates: artifact of the kept traces; the last run's when empty.
    """
    candidates = candidates or last_run(config, "candidates")
    shards = [annotate_shard(config, candidates, start, end) for start, end in annotation_shards(config, candidates)]
    annotations = collect_annotations(config, candidates, shards)
    remember(config, annotations=annotations)
    show_labels(config, candidates, annotations)
    return annotations
