"""Clearing a store up at the end of a run."""

from __future__ import annotations

import logging

from mralign_core.config import RunConfig
from mralign_core.retention.collect import Collector
from mralign_core.storage import ArtifactStore
from tasks.engine.graph import shard_kinds
from tasks.engine.progress import progress

logger = logging.getLogger("mralign_core.retention")


def clear_store(config: RunConfig) -> None:
    """Remove what ``storage.retention`` does not keep; a failure is told, and undoes nothing of what was decided."""
    collector = Collector(ArtifactStore(config.storage), config.storage.retention, shard_kinds())
    try:
        with progress("clearing the store", "gc-remove") as report:
            done = collector.carry_out(collector.plan(), report)
    except Exception as error:
        logger.warning("the store was not cleared up (mralign gc says what goes): %s", error)
        return
    logger.info("the store was cleared of %d things, %.1f MB", len(done.removed), done.num_bytes / 1e6)
