"""The yield of a selection, step by step: how many items each step kept, how many it dropped, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import pandas as pd

from mralign_core.errors import NoCandidatesError
from mralign_core.schemas.candidates import POLARITIES

FUNNEL_COLUMNS = ["step", "kept", "dropped", "reason"]

FEW_TRACES, SMALL_SHARE = 10, 0.1
"""Of one polarity: below either, P of that polarity rests on too little to tell anything from it."""

Item = TypeVar("Item")


class Funnel:
    """Counts of a selection that may go piece by piece; a step has a row for each reason, or one when it dropped none.

    Args:
        steps: the steps in order, where they are to be shown though nothing reaches them.
    """

    def __init__(self, steps: Sequence[str] = ()) -> None:
        self._steps: dict[str, Counter[str]] = {step: Counter() for step in steps}

    def keep(self, step: str, items: Iterable[Item], reasons: Sequence[str]) -> list[Item]:
        """Count items at a step and return those it keeps: those whose reason to drop them is empty."""
        self._steps.setdefault(step, Counter()).update(reasons)
        return [item for item, reason in zip(items, reasons, strict=True) if not reason]

    @property
    def rows(self) -> list[tuple[str, int, int, str]]:
        """Step, items it kept, items it dropped for the reason, reason."""
        rows = []
        for step, counts in self._steps.items():
            dropped = sorted(((-count, reason) for reason, count in counts.items() if reason))
            rows += [(step, counts[""], -count, reason) for count, reason in dropped or [(0, "")]]
        return rows

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


def require_both_polarities(counts: Mapping[str, int], funnel: Funnel, remedy: str) -> None:
    """Refuse to go on without traces of each polarity.

    Args:
        counts: traces by polarity.
        funnel: the yield of every step, for the message.
        remedy: what can help.

    Raises:
        NoCandidatesError: one polarity or both have no trace.
    """
    if all(counts.get(name) for name in POLARITIES):
        return
    found = ", ".join(f"{counts.get(name, 0)} {name}" for name in POLARITIES)
    raise NoCandidatesError(f"selection kept {found} traces; both kinds are needed. Its yield:\n{funnel}\n{remedy}")


def imbalance(counts: Mapping[str, int]) -> str:
    """What is to be said of traces of which few have one polarity, and what can help; empty where enough have either.

    Args:
        counts: traces by polarity.
    """
    numbers = {name: counts.get(name, 0) for name in POLARITIES}
    few = min(numbers, key=lambda name: numbers[name])
    share = numbers[few] / max(1, sum(numbers.values()))
    if numbers[few] >= FEW_TRACES and share >= SMALL_SHARE:
        return ""
    found = " and ".join(f"{number} {name}" for name, number in numbers.items())
    matrix, weight = ("P⁺", "train.desirable_weight") if few == "positive" else ("P⁻", "train.undesirable_weight")
    return (
        f"The selection kept {found} traces. {matrix} rests on {numbers[few]} of them, so the transition weights say "
        f"little, and training sees {few} traces in {100 * share:.0f} % of its rows. What can help: more questions, or "
        "a file of traces with more of them; another generate.answer_match, if right answers are taken for wrong ones; "
        f"reward.support_shrinkage, which draws weights of rare moves towards 1; a larger {weight}."
    )
