"""The yield of a selection, step by step: how many items each step kept, how many it dropped, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import pandas as pd

from mralign_core.errors import NoCandidatesError
from mralign_core.schemas import POLARITIES

FUNNEL_COLUMNS = ["step", "kept", "dropped", "reason"]

Item = TypeVar("Item")


class Funnel:
    """Counts of a selection; a step has a row for each reason, or one row when it dropped nothing."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, int, str]] = []

    def keep(self, step: str, items: Iterable[Item], reasons: Sequence[str]) -> list[Item]:
        """Record a step and return the items it keeps: those whose reason to drop them is empty."""
        kept = [item for item, reason in zip(items, reasons, strict=True) if not reason]
        dropped = Counter(reason for reason in reasons if reason)
        for reason, count in dropped.most_common() or [("", 0)]:
            self.rows.append((step, len(kept), count, reason))
        return kept

    def frame(self) -> pd.DataFrame:
        """The counts as a table with ``FUNNEL_COLUMNS``."""
        return pd.DataFrame(self.rows, columns=FUNNEL_COLUMNS)

    def __str__(self) -> str:
        lines = []
        for step in dict.fromkeys(row[0] for row in self.rows):
            rows = [row for row in self.rows if row[0] == step]
            reasons = ", ".join(f"{count} {reason}" for _, _, count, reason in rows if count)
            lines.append(f"  {rows[0][1]:>7,} {step}" + (f" (dropped: {reasons})" if reasons else ""))
        return "\n".join(lines)


def require_both_polarities(candidates: pd.DataFrame, funnel: Funnel, remedy: str) -> None:
    """Refuse to go on without traces of each polarity.

    Raises:
        NoCandidatesError: one polarity or both have no trace; the message shows the yield of every step.
    """
    counts: dict[str, Any] = {name: int((candidates["polarity"] == name).sum()) for name in POLARITIES}
    if all(counts.values()):
        return
    found = ", ".join(f"{count} {name}" for name, count in counts.items())
    raise NoCandidatesError(f"selection kept {found} traces; both kinds are needed. Its yield:\n{funnel}\n{remedy}")
