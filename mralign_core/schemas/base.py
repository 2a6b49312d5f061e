"""What a table that crosses a stage boundary promises: columns, Arrow types and checks, validated by pandera.

Every stage validates what it reads and what it writes. Validation is lazy: all bad rows are found at once, moved to a
quarantine table with the reason, and counted, while the good rows go on (:meth:`Table.validate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
from pandera.errors import SchemaErrors

from mralign_core.errors import DataError
from mralign_core.schemas.checks import is_null

QUARANTINE_COLUMNS = ["row", "row_id", "column", "reason", "value"]


class Column(NamedTuple):
    """One column: Arrow type, element checks as (reason, predicate), whether null or repeated values are allowed."""

    type: pa.DataType
    checks: Sequence[tuple[str, Callable[[Any], bool]]] = ()
    nullable: bool = False
    unique: bool = False


class Validated(NamedTuple):
    """Rows that keep the contract, and a table of those that don't (``QUARANTINE_COLUMNS``), one row a problem."""

    good: pd.DataFrame
    quarantined: pd.DataFrame


@dataclass(frozen=True)
class Table:
    """A named, versioned table contract."""

    name: str
    columns: dict[str, Column]
    row_checks: Sequence[tuple[str, Callable[[Any], bool]]] = ()
    unique_together: Sequence[str] = ()
    version: int = 1
    row_id: str = field(default="")

    @property
    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema rows are written with, so that the same rows always give the same file."""
        return pa.schema([pa.field(name, column.type) for name, column in self.columns.items()])

    def validate(self, frame: pd.DataFrame) -> Validated:
        """Split rows into good and quarantined ones.

        Raises:
            DataError: a column is missing, so no row can be judged.
        """
        missing = [name for name in self.columns if name not in frame.columns]
        if missing:
            raise DataError(
                f"table {self.name!r} lacks column(s) {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}"
            )
        frame = frame[list(self.columns)].reset_index(drop=True)
        try:
            self._pandera_schema().validate(frame, lazy=True)
        except SchemaErrors as error:
            quarantined = self._quarantine(frame, error.failure_cases)
            good = frame.drop(index=quarantined["row"].unique()).reset_index(drop=True)
            return Validated(good, quarantined)
        return Validated(frame, pd.DataFrame(columns=QUARANTINE_COLUMNS))

    def require(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the frame when every row keeps the contract.

        Raises:
            DataError: at least one row breaks it; the message names the first ones.
        """
        good, quarantined = self.validate(frame)
        if len(quarantined):
            first = quarantined.head(5).to_dict("records")
            lines = [f"row {p['row']} ({p['row_id']}): {p['column']} {p['reason']}, got {p['value']}" for p in first]
            raise DataError(f"table {self.name!r}: {quarantined['row'].nunique()} bad row(s)\n  " + "\n  ".join(lines))
        return good

    def to_arrow(self, frame: pd.DataFrame) -> pa.Table:
        """Rows as an Arrow table with exactly the contract's columns and types."""
        arrays = [
            pa.array([None if is_null(value) else value for value in frame[name]], type=column.type)
            for name, column in self.columns.items()
        ]
        return pa.Table.from_arrays(arrays, schema=self.arrow_schema)

    def from_arrow(self, table: pa.Table) -> pd.DataFrame:
        """Rows of an Arrow table as a frame whose list columns hold Python lists."""
        return self.frame(table.to_pylist())

    def frame(self, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
        """Rows as a frame with the contract's columns, whose cells are Python values; they are not checked."""
        return pd.DataFrame(rows, columns=list(self.columns)).astype(object)

    def _pandera_schema(self) -> pandera.DataFrameSchema:
        columns = {
            name: pandera.Column(
                None,
                [pandera.Check(_elementwise(test, column.nullable), name=reason) for reason, test in column.checks],
                nullable=column.nullable,
                unique=column.unique,
            )
            for name, column in self.columns.items()
        }
        checks = [pandera.Check(_rowwise(test), name=reason) for reason, test in self.row_checks]
        return pandera.DataFrameSchema(columns, checks=checks, unique=list(self.unique_together) or None)

    def _quarantine(self, frame: pd.DataFrame, failures: pd.DataFrame) -> pd.DataFrame:
        rows = failures.dropna(subset=["index"])
        if rows.empty:
            raise DataError(f"table {self.name!r}: {failures['check'].iloc[0]}")
        id_column = self.row_id or next(iter(self.columns))
        table = pd.DataFrame(
            {
                "row": rows["index"].astype(int),
                "row_id": [str(frame[id_column].iloc[int(index)]) for index in rows["index"]],
                "column": [
                    "(row)" if context == "DataFrameSchema" else str(column)
                    for context, column in zip(rows["schema_context"], rows["column"], strict=True)
                ],
                "reason": [_reason(str(check)) for check in rows["check"]],
                "value": [repr(value)[:120] for value in rows["failure_case"]],
            }
        )
        return table.drop_duplicates(["row", "column", "reason"]).sort_values(["row", "column"], ignore_index=True)


def _elementwise(test: Callable[[Any], bool], nullable: bool) -> Callable[[pd.Series], pd.Series]:
    def check(series: pd.Series) -> pd.Series:
        return series.map(lambda value: (nullable and is_null(value)) or bool(test(value))).astype(bool)

    return check


def _rowwise(test: Callable[[Any], bool]) -> Callable[[pd.DataFrame], pd.Series]:
    def check(frame: pd.DataFrame) -> pd.Series:
        return pd.Series([bool(test(row)) for row in frame.itertuples(index=False)], index=frame.index, dtype=bool)

    return check


def _reason(check: str) -> str:
    return {"not_nullable": "must not be empty", "field_uniqueness": "must be unique"}.get(check, check)
