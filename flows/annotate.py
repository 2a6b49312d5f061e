"""Stage 2: label what each thinking segment does."""

from __future__ import annotations

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.fan_out import missing_shards
from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tasks.annotate import SHARDS_AT_ONCE, annotate_shard, collect_annotations
from tasks.engine.last_run import inputs_of, remember
from tasks.engine.session import session
from tasks.publish import show_labels


# Prefect types a flow's task runner by the base class of its futures.
@flow(name="annotate", task_runner=ThreadPoolTaskRunner(max_workers=SHARDS_AT_ONCE))  # type: ignore[arg-type]
def annotate(config: RunConfig, candidates: ArtifactRef | None = None) -> ArtifactRef:
    """Annotate the candidates in shards.

    Args:
        config: the run config.
        candidates: artifact of the kept traces; the last run's when empty.
    """
    inputs = inputs_of(config, {"candidates": candidates})
    annotations = annotate_all(config, inputs["candidates"])
    remember(config, inputs, annotations=annotations)
    show_labels(config, inputs["candidates"], annotations)
    return annotations


def annotate_all(config: RunConfig, candidates: ArtifactRef) -> ArtifactRef:
    """The labels of all candidates, from the annotators of a config."""
    with session():
        shards = missing_shards(collect_annotations.work(config, candidates))
        for future in [annotate_shard.submit(config, candidates, rows) for rows in shards]:
            future.result()
        return collect_annotations(config, candidates)
