"""A rater's ratings as the very sheet that a spreadsheet would have come back with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mralign_core.evaluation.judge_sheet import NOT_TO_FILL, VERDICT_COLUMNS
from mralign_core.rating.records import Rating, Round, Shown, latest
from mralign_core.spreadsheets import neutralised, write_csv


def write_rated_sheet(path: Path, of: Round, ratings: Sequence[Rating], *, blind_only: bool = False) -> None:
    """Write the CSV that ``mralign compare-annotators --sheet`` or ``mralign judge-sheet --in`` reads.

    Args:
        path: the file.
        of: the round.
        ratings: of one rater, in order.
        blind_only: as they were before the rater saw any results.
    """
    said = latest(ratings, blind_only=blind_only)
    write_csv(path, of.columns, [_row(of, shown, said.get(shown.item)) for shown in of.items])


def _row(of: Round, shown: Shown, rating: Rating | None) -> dict[str, Any]:
    cells = {name: neutralised(cell) if isinstance(cell, str) else cell for name, cell in shown.cells.items()}
    not_asked = [name for name in of.columns if name in VERDICT_COLUMNS.values() and name not in shown.asked]
    said = {"comment": neutralised(rating.note), **rating.said} if rating else {}
    return {"item": shown.item, **cells, **dict.fromkeys(not_asked, NOT_TO_FILL), **said}
