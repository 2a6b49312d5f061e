"""Rows that break their table's contract are set aside with the reason; the others go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd

from mralign_core.schemas.base import Table
from mralign_core.storage.artifact import ArtifactRef
from mralign_core.storage.store import ArtifactStore
from mralign_core.storage.tables import TableWriter

logger = logging.getLogger("mralign_core.quarantine")
FILE_NAME = "quarantine.json"


class RowWriter:
    """Writes rows that keep a contract, piece by piece, and lists the others in ``quarantine.json`` beside them.

    Use it as a context manager. It raises DataError where not one row of the first piece keeps the contract.
    """

    def __init__(self, directory: Path, file_name: str, table: Table) -> None:
        self._directory, self._table = directory, table
        self._writer = TableWriter(directory / file_name, table)
        self._seen = self._kept = 0

    def add(self, frame: pd.DataFrame) -> None:
        """Write the good rows of a piece."""
        good, quarantined = self._table.validate(frame)
        if len(quarantined):
            logger.warning("table %s: %d row(s) set aside", self._table.name, quarantined["row"].nunique())
            rows = quarantined.assign(table=self._table.name, row=quarantined["row"] + self._seen)
            _add(self._directory, rows.to_dict("records"))
        if len(frame) and good.empty and not self._kept:
            self._table.require(frame)
        self._writer.add(good)
        self._seen += len(frame)
        self._kept += len(good)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)


def write_rows(directory: Path, file_name: str, frame: pd.DataFrame, table: Table) -> None:
    """Write the rows of a table that keep its contract, as :class:`RowWriter` does.

    Raises:
        DataError: there are rows, and not one keeps the contract.
    """
    with RowWriter(directory, file_name, table) as rows:
        rows.add(frame)


def read_quarantine(store: ArtifactStore, ref: ArtifactRef) -> list[dict[str, Any]]:
    """The rows that an artifact's stage set aside: table, row, row_id, column, reason, value."""
    if FILE_NAME not in store.manifest(ref).files:
        return []
    return list(store.read_json(ref, FILE_NAME))


def carry_over(store: ArtifactStore, shards: Iterable[tuple[ArtifactRef, Sequence[str]]], directory: Path) -> None:
    """Keep what the shards set aside when they are joined.

    Args:
        store: where they are.
        shards: each with the ids of the rows that are taken from it.
        directory: of what is joined.
    """
    rows = [
        row
        for ref, ids in shards
        for wanted in [set(ids)]
        for row in read_quarantine(store, ref)
        if _is_of(row, wanted)
    ]
    if rows:
        _add(directory, rows)


def _is_of(row: Mapping[str, Any], ids: set[str]) -> bool:
    """Whether a row that was set aside is of one of these questions or traces; one without an id is of all."""
    return not row.get("row_id") or str(row["row_id"]) in ids


def _add(directory: Path, rows: list[dict[str, Any]]) -> None:
    path = directory / FILE_NAME
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path.write_text(json.dumps([*known, *rows], ensure_ascii=False, indent=1), encoding="utf-8")
