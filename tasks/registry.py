"""Telling the team's model registry what the store's versions and aliases are."""

from __future__ import annotations

import logging

from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactStore
from mralign_core.versions.registry import tell_registry
from tasks.engine.session import run_name

logger = logging.getLogger("mralign_core.versions")


def bring_registry_up_to_date(config: RunConfig) -> None:
    """Have ``retrain.registry`` show what the store does; a failure is told, and undoes nothing of what was decided."""
    if config.retrain.registry.kind == "none":
        return
    try:
        changes = tell_registry(ArtifactStore(config.storage), config.retrain.registry, run_name())
    except Exception as error:
        logger.warning("the registry was not told: %s", error)
        return
    (logger.warning if changes.left_out else logger.info)("registry: %s", changes)
