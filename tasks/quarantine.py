"""Rows that break their table's contract are set aside with the reason; the others go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from mralign_core.schemas import Table
from mralign_core.storage import ArtifactRef, ArtifactStore

logger = logging.getLogger("mralign_core.quarantine")
FILE_NAME = "quarantine.json"


def write_rows(store: ArtifactStore, directory: Path, file_name: str, frame: pd.DataFrame, table: Table) -> int:
    """Write the rows that keep the contract, and list the others in ``quarantine.json`` beside them.

    Returns:
        Rows written.

    Raises:
        DataError: there are rows, and not one keeps the contract.
    """
    good, quarantined = table.validate(frame)
    if len(quarantined) and good.empty:
        table.require(frame)
    if len(quarantined):
        logger.warning("table %s: %d row(s) set aside", table.name, quarantined["row"].nunique())
        _add(directory, quarantined.assign(table=table.name).to_dict("records"))
    store.write_table(directory, file_name, good, table)
    return len(good)


def read_quarantine(store: ArtifactStore, ref: ArtifactRef) -> list[dict[str, Any]]:
    """The rows that an artifact's stage set aside: table, row, row_id, column, reason, value."""
    if FILE_NAME not in store.manifest(ref).files:
        return []
    return list(json.loads(store.open_file(ref, FILE_NAME).read_text(encoding="utf-8")))


def carry_over(store: ArtifactStore, shards: Iterable[ArtifactRef], directory: Path) -> None:
    """Keep what the shards set aside when they are joined."""
    rows = [row for shard in shards for row in read_quarantine(store, shard)]
    if rows:
        _add(directory, rows)


def _add(directory: Path, rows: list[dict[str, Any]]) -> None:
    path = directory / FILE_NAME
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path.write_text(json.dumps([*known, *rows], ensure_ascii=False, indent=1), encoding="utf-8")
