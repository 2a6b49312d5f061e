"""Stage 2: label what each thinking segment does."""

from __future__ import annotations

from typing import NamedTuple

from prefect import flow

from flows.fan_out import missing_shards, run_in_threads
from flows.form import AnnotateForm
from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tasks.annotate import (
    SHARDS_AT_ONCE,
    annotate_shard,
    collect_annotations,
    collect_draw_annotations,
    within_budget,
)
from tasks.engine.last_run import inputs_of, remember
from tasks.engine.naming import name_run
from tasks.engine.session import session
from tasks.engine.task import StageTask
from tasks.publish import show_labels


class Annotated(NamedTuple):
    """The labels of the candidates, and of the draws that matrices are estimated from (None where there are none)."""

    annotations: ArtifactRef
    draw_annotations: ArtifactRef | None


@flow(name="annotate", flow_run_name=name_run)
def annotate(
    config: AnnotateForm,
    candidates: ArtifactRef | None = None,
    thinking_draws: ArtifactRef | None = None,
) -> Annotated:
    """Annotate the candidates in shards, and the thinking draws where matrices are estimated from them.

    Args:
        config: a preset, and what differs from it.
        candidates: artifact of the kept traces; the last run's when empty.
        thinking_draws: artifact of the draws to estimate from; the last run's when empty.
    """
    draws = {"thinking-draws": thinking_draws} if config.estimate.uses_draws else {}
    inputs = inputs_of(config, {"candidates": candidates, **draws})
    annotations = annotate_all(config, inputs["candidates"])
    remember(config, inputs, annotations=annotations)
    show_labels(config, inputs["candidates"], annotations)
    if not draws:
        return Annotated(annotations, None)
    after_candidates = within_budget(config, inputs["candidates"])
    of_draws = annotate_all(after_candidates, inputs["thinking-draws"], collect_draw_annotations)
    remember(config, inputs, **{"draw-annotations": of_draws})
    return Annotated(annotations, of_draws)


def annotate_all(config: RunConfig, traces: ArtifactRef, collect: StageTask = collect_annotations) -> ArtifactRef:
    """The labels of all traces, from the annotators of a config.

    Args:
        config: the run config.
        traces: artifact of the traces.
        collect: joins their labels.
    """
    with session():
        shards = missing_shards(collect.work(config, traces))
        calls = [{"config": config, "candidates": traces, "rows": rows} for rows in shards]
        run_in_threads(annotate_shard, calls, SHARDS_AT_ONCE)
        return collect(config, traces)
