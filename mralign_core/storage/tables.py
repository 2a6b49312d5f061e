"""Tables as Parquet files: the same rows always give the same bytes, and what is read keeps its contract."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mralign_core import schemas
from mralign_core.errors import ArtifactError, DataError, StoreUnavailableError
from mralign_core.schemas.base import Table
from mralign_core.storage.patience import can_pass

ROW_GROUP_BYTES = 32 * 2**20
"""Size in memory of a row group: what a reader must hold to get at one of its rows."""
COPY_ROWS = 50_000
NAME_FIELD, VERSION_FIELD = b"mralign.table", b"mralign.table_version"


class TableFile(NamedTuple):
    """What the footer of a Parquet file says; ``table`` is empty when the store did not write it."""

    rows: int
    table: str


@functools.cache
def known_tables() -> dict[str, Table]:
    """Name → contract of every table that a module of :mod:`mralign_core.schemas` declares."""
    names = [module.name for module in pkgutil.iter_modules(schemas.__path__)]
    modules = [importlib.import_module(f"{schemas.__name__}.{name}") for name in names]
    values = (value for module in modules for value in vars(module).values())
    return {value.name: value for value in values if isinstance(value, Table)}


def write_table(directory: Path, file_name: str, frame: pd.DataFrame, table: Table) -> Path:
    """Write rows that keep a contract as Parquet (zstd) and return the file's path.

    Raises:
        DataError: a row breaks the contract.
    """
    path = Path(directory, file_name)
    with TableWriter(path, table) as writer:
        writer.add(frame)
    return path


class TableWriter:
    """Writes a table's file in pieces, so that no stage need hold the whole of it.

    Use it as a context manager; a file left by an error is not whole.
    """

    def __init__(self, path: Path, table: Table) -> None:
        self._table = table
        self._schema = table.arrow_schema.with_metadata(_stamp(table))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def add(self, frame: pd.DataFrame) -> None:
        """Append rows.

        Raises:
            DataError: a row breaks the contract.
        """
        self._append(self._table.to_arrow(self._table.require(frame)))

    def add_group(self, frame: pd.DataFrame) -> None:
        """Append rows as one row group, whatever its size: that of a file which is written again.

        Raises:
            DataError: a row breaks the contract.
        """
        self._append(self._table.to_arrow(self._table.require(frame)), row_group_size=max(1, len(frame)))

    def write(self, columns: Mapping[str, Any]) -> None:
        """Append rows that are right by construction, as equally long arrays by column name; they are not checked."""
        arrays = [pa.array(columns[field.name], type=field.type) for field in self._schema]
        self._append(pa.Table.from_arrays(arrays, schema=self._schema))

    def append(self, pieces: Sequence[pa.Table], column: str, values: Sequence[str]) -> None:
        """Append what :func:`read_matching` read, as one piece: its rows in the order of the values of a column."""
        if pieces:
            rows = pa.concat_tables(piece.cast(self._schema) for piece in pieces).combine_chunks()
            self._append(_in_order(rows, column, values))

    def _append(self, rows: pa.Table, row_group_size: int = 0) -> None:
        bytes_per_row = max(1, rows.nbytes // max(1, rows.num_rows))
        size = row_group_size or max(1, ROW_GROUP_BYTES // bytes_per_row)
        self._writer.write_table(rows.replace_schema_metadata(self._schema.metadata), row_group_size=size)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


def read_table(path: Path) -> pd.DataFrame:
    """Read a file that :func:`write_table` wrote and check it against its contract.

    Raises:
        ArtifactError: it is no such file, was written for another version of the contract, or breaks it.
    """
    return _checked(_read(path), path)


def read_rows(path: Path, start: int, end: int) -> pd.DataFrame:
    """Rows ``start`` to ``end`` of such a file; beside them, their row groups are held in memory and no more.

    Raises:
        ArtifactError: as :func:`read_table`.
    """
    return _checked(_read(path, start, end), path)


def _read(path: Path, start: int = 0, end: int | None = None) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            if end is None:
                return file.read()
            lengths = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
            firsts = list(accumulate(lengths, initial=0))
            groups = [i for i, length in enumerate(lengths) if firsts[i] < end and firsts[i] + length > start]
            table = file.read_row_groups(groups)
            return table.slice(start - firsts[groups[0]], end - start) if groups else table
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from None


def _checked(arrow: pa.Table, path: Path) -> pd.DataFrame:
    contract = _contract(arrow.schema, path)
    try:
        return contract.require(contract.from_arrow(arrow))
    except DataError as error:
        raise ArtifactError(f"{path} breaks its contract, run its stage again: {error}") from None


def stream_table(path: Path, table: Table, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Some columns of a file that :func:`write_table` wrote, in batches; the rows themselves are not checked.

    Raises:
        ArtifactError: it is no such file, holds another table, or was written for another version of the contract.
    """
    try:
        with pq.ParquetFile(path) as file:
            found = _contract(file.schema_arrow, path)
            if found.name != table.name:
                raise ArtifactError(f"{path} holds table {found.name!r}, not {table.name!r}")
            yield from file.iter_batches(batch_rows, columns=list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from None


def read_columns(path: Path, table: Table, columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of such a file; lists come as Python lists.

    Raises:
        ArtifactError: as :func:`stream_table`.
    """
    rows = [row for batch in stream_table(path, table, columns, COPY_ROWS) for row in batch.to_pylist()]
    return pd.DataFrame(rows, columns=list(columns)).astype(object)


def read_matching(path: Path, table: Table, column: str, values: Sequence[str]) -> pa.Table:
    """The rows of such a file with certain values in a column, value by value in their order; not checked.

    Raises:
        ArtifactError: as :func:`stream_table`.
    """
    batches = list(stream_table(path, table, list(table.columns), COPY_ROWS))
    rows = pa.Table.from_batches(batches, schema=table.arrow_schema)
    return _in_order(rows, column, values)


def _in_order(rows: pa.Table, column: str, values: Sequence[str]) -> pa.Table:
    """The rows with certain values in a column, value by value in their order."""
    positions = pc.index_in(rows.column(column), value_set=pa.array(values, type=rows.schema.field(column).type))
    order = positions.to_numpy(zero_copy_only=False).astype(float)  # NaN where the value is not wanted
    wanted = np.flatnonzero(~np.isnan(order))
    return rows.take(wanted[np.argsort(order[wanted], kind="stable")])


def describe_table(path: Path) -> TableFile:
    """Rows and contract name of a Parquet file, from its footer alone."""
    metadata = pq.read_metadata(path)
    return TableFile(metadata.num_rows, (metadata.metadata or {}).get(NAME_FIELD, b"").decode())


def _contract(schema: pa.Schema, path: Path) -> Table:
    metadata = schema.metadata or {}
    name, version = metadata.get(NAME_FIELD, b"").decode(), metadata.get(VERSION_FIELD, b"").decode()
    contract = known_tables().get(name)
    if contract is None:
        raise ArtifactError(f"{path} holds table {name!r}; known tables: {', '.join(known_tables())}")
    if version != str(contract.version):
        raise ArtifactError(
            f"{path} holds version {version} of table {name!r}, this code reads version "
            f"{contract.version}: run its stage again"
        )
    if not schema.equals(contract.arrow_schema, check_metadata=False):
        raise ArtifactError(
            f"{path} does not have the columns of table {name!r} version {version}: "
            f"it has {_columns(schema)}, not {_columns(contract.arrow_schema)}; run its stage again"
        )
    return contract


def _stamp(table: Table) -> dict[bytes, str]:
    return {NAME_FIELD: table.name, VERSION_FIELD: str(table.version)}


def _unreadable(path: Path, error: Exception) -> ArtifactError | StoreUnavailableError:
    if can_pass(error):
        return StoreUnavailableError(f"{path} can't be read: {error}. Check its disk or network folder; run again.")
    return ArtifactError(f"{path} is not a readable Parquet file: {error}")


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
