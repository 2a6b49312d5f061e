"""Stage 2: label what each thinking segment does."""

from __future__ import annotations

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tasks.annotate import SHARDS_AT_ONCE, annotate_shard, annotation_shards, collect_annotations
from tasks.engine.last_run import inputs_of, remember
from tasks.publish import show_labels


@flow(name="annotate", task_runner=ThreadPoolTaskRunner(max_workers=SHARDS_AT_ONCE))  # type: ignore[arg-type]
def annotate(config: RunConfig, candidates: ArtifactRef | None = None) -> ArtifactRef:
    """Annotate the candidates in shards.

    Args:
        config: the run config.
        candidates: artifact of the kept traces; the last run's when empty.
    """
    inputs = inputs_of(config, {"candidates": candidates})
    candidates = inputs["candidates"]
    bounds = annotation_shards(config, candidates)
    shards = [annotate_shard.submit(config, candidates, start, end) for start, end in bounds]
    annotations = collect_annotations(config, candidates, [shard.result() for shard in shards])
    remember(config, inputs, annotations=annotations)
    show_labels(config, candidates, annotations)
    return annotations
