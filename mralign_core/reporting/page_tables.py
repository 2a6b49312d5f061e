"""Tables of a run's page that no report has: named columns, numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from mralign_core.generation.outcomes import draws_table
from mralign_core.reporting.result_table import ResultTable
from mralign_core.reporting.titles import UNDEFINED

DOLLARS = "_usd"
"""What the names of columns of dollars end in."""


def page_records(table: ResultTable) -> list[dict[str, str]]:
    """The rows as a page takes them: all with the same columns, all text.

    Raises:
        ValueError: a column has no name, or the name of another; a page can't show it. A programming error.

    >>> page_records(ResultTable(["step", "kept"], [["drawn", "3"]]))
    [{'step': 'drawn', 'kept': '3'}]
    """
    if not all(table.columns) or len(set(table.columns)) < len(table.columns):
        raise ValueError(f"columns {list(table.columns)} need a name each, and of their own")
    return table.to_records()


def as_read(value: float | int | None, decimals: int = 0) -> str:
    """A number as people read it, a dash where there is none.

    >>> as_read(12345), as_read(0.12345, 2), as_read(float("nan"))
    ('12,345', '0.12', '–')
    """
    return UNDEFINED if value is None or pd.isna(value) else f"{value:,.{decimals}f}".replace("-", "−")


def draw_counts(counts: pd.DataFrame) -> ResultTable:
    """What became of the draws, a column a thinking mode.

    Args:
        counts: what ``outcomes.count_draws`` returns.
    """
    table = draws_table(counts)
    rows = [[str(name), *map(as_read, values)] for name, *values in table.to_numpy().tolist()]
    return ResultTable(["counted", *map(str, table.columns[1:])], rows)


def rule_counts(annotations: pd.DataFrame) -> ResultTable:
    """How many segments each rule decided, the commonest first.

    Args:
        annotations: column ``rule``.
    """
    counts = annotations["rule"].value_counts()
    rows = [[str(rule), as_read(count), f"{count / len(annotations):.1%}"] for rule, count in counts.items()]
    return ResultTable(["rule", "segments", "share"], rows)


def ledger_table(ledger: pd.DataFrame) -> ResultTable:
    """What each run asked of each model, and paid.

    Args:
        ledger: ``run, model`` and the fields of a ledger's ``Usage``.
    """
    amounts = [str(name) for name in ledger.columns if name not in ("run", "model")]
    rows = [
        [row["run"], row["model"], *(as_read(row[name], 2 if name.endswith(DOLLARS) else 0) for name in amounts)]
        for row in ledger.to_dict("records")
    ]
    names = [name.removesuffix(DOLLARS) + " $" if name.endswith(DOLLARS) else name for name in amounts]
    return ResultTable(["run", "model", *(name.replace("_", " ") for name in names)], rows, text_columns=["model"])


def weight_table(weights: pd.DataFrame) -> ResultTable:
    """How segments were weighed.

    Args:
        weights: columns ``weight, clipped``.
    """
    values = weights["weight"]
    of_weights = {"least": values.min(), "mean": values.mean(), "median": values.median(), "most": values.max()}
    rows = [["segments", as_read(len(weights))], ["clipped", as_read(weights["clipped"].sum())]]
    rows += [[f"{name} weight", as_read(value, 3)] for name, value in of_weights.items()]
    return ResultTable(["of the weights", "value"], rows)


def open_label_counts(counts: Mapping[str, int]) -> ResultTable:
    """Open labels with their counts, the commonest first."""
    ordered: Iterable[tuple[str, int]] = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ResultTable(["open label", "count"], [[name, as_read(count)] for name, count in ordered])
