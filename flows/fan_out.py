"""Run one task over the shards that are to be made: here, one after another or in threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefect.task_runners import ThreadPoolTaskRunner

from mralign_core.config import EvaluateConfig, GenerateConfig
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine.run import Work
from tasks.engine.shards import lay_out
from tasks.engine.task import StageTask


def missing_shards(joined: Work) -> list[list[int]]:
    """The rows of each shard that is to be made of an artifact; none where it is there and finished."""
    store = ArtifactStore(joined.config.storage)
    return [] if joined.is_finished(store) else lay_out(joined, store).missing


def run_shards(
    task: StageTask, calls: Sequence[Mapping[str, Any]], section: GenerateConfig | EvaluateConfig
) -> list[ArtifactRef]:
    """The artifact of each call, in their order; in as many threads as the section asks for.

    Args:
        task: what makes one shard.
        calls: its arguments by name, shard by shard.
        section: where, and how many at once.
    """
    if section.where != "threads":
        return [task(**call) for call in calls]
    return run_in_threads(task, calls, section.num_workers)


def run_in_threads(task: StageTask, calls: Sequence[Mapping[str, Any]], num_threads: int) -> list[ArtifactRef]:
    """The artifact of each call, in their order, in so many threads of this process."""
    with ThreadPoolTaskRunner(max_workers=num_threads) as runner:  # type: ignore[var-annotated]
        futures = [runner.submit(task, dict(call)) for call in calls]
        return [future.result() for future in futures]
