"""What became of an attack, and the table of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.table import Table


class Outcome(NamedTuple):
    """How often an attack was tried and survived; ``lost`` says what the others cost, ``note`` what was measured."""

    attack: str
    tried: int
    survived: int
    lost: Sequence[str] = ()
    note: str = ""


def table_of(outcomes: Iterable[Outcome], title: str) -> Table:
    """The outcomes as a table for the terminal."""
    table = Table("attack", "tried", "survived", "lost", "measured", title=title)
    for outcome in outcomes:
        lost = "\n".join(sorted(set(outcome.lost))[:6]) or "nothing"
        table.add_row(outcome.attack, str(outcome.tried), str(outcome.survived), lost, outcome.note)
    return table
