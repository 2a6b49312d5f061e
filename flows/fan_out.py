"""Run one task over many shards: here, one after another or in threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefect.task_runners import ThreadPoolTaskRunner

from mralign_core.config import EvaluateConfig, GenerateConfig
from mralign_core.storage import ArtifactRef
from tasks.engine.run import StageTask


def run_shards(
    task: StageTask[Any], calls: Sequence[Mapping[str, Any]], section: GenerateConfig | EvaluateConfig
) -> list[ArtifactRef]:
    """The artifact of each call, in their order; in as many threads as the section asks for.

    Args:
        task: what makes one shard.
        calls: its arguments by name, shard by shard.
        section: where, and how many at once.
    """
    if section.where != "threads":
        return [task(**call) for call in calls]
    with ThreadPoolTaskRunner(max_workers=section.num_workers) as runner:  # type: ignore[var-annotated]
        futures = [runner.submit(task, dict(call)) for call in calls]
        return [future.result() for future in futures]
