"""Tables as Parquet files: the same rows always give the same bytes, and what is read keeps its contract."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mralign_core.errors import ArtifactError, DataError
from mralign_core.schemas import TABLES, Table

NAME_FIELD, VERSION_FIELD = b"mralign.table", b"mralign.table_version"


class TableFile(NamedTuple):
    """What the footer of a Parquet file says; ``table`` is empty when the store did not write it."""

    rows: int
    table: str


def write_table(directory: Path, file_name: str, frame: pd.DataFrame, table: Table) -> Path:
    """Write rows that keep a contract as Parquet (zstd) and return the file's path.

    Raises:
        DataError: a row breaks the contract.
    """
    path = Path(directory, file_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow = table.to_arrow(table.require(frame))
    arrow = arrow.replace_schema_metadata({NAME_FIELD: table.name, VERSION_FIELD: str(table.version)})
    pq.write_table(arrow, path, compression="zstd")
    return path


def read_table(path: Path) -> pd.DataFrame:
    """Read a file that :func:`write_table` wrote and check it against its contract.

    Raises:
        ArtifactError: it is no such file, was written for another version of the contract, or breaks it.
    """
    try:
        arrow = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"{path} is not a readable Parquet file: {error}") from None
    contract = _contract(arrow.schema, path)
    if not arrow.schema.equals(contract.arrow_schema, check_metadata=False):
        raise ArtifactError(
            f"{path} does not have the columns of table {contract.name!r} version {contract.version}: "
            f"it has {_columns(arrow.schema)}, not {_columns(contract.arrow_schema)}; run its stage again"
        )
    try:
        return contract.require(contract.from_arrow(arrow))
    except DataError as error:
        raise ArtifactError(f"{path} breaks its contract, run its stage again: {error}") from None


def describe_table(path: Path) -> TableFile:
    """Rows and contract name of a Parquet file, from its footer alone."""
    metadata = pq.read_metadata(path)
    return TableFile(metadata.num_rows, (metadata.metadata or {}).get(NAME_FIELD, b"").decode())


def _contract(schema: pa.Schema, path: Path) -> Table:
    metadata = schema.metadata or {}
    name, version = metadata.get(NAME_FIELD, b"").decode(), metadata.get(VERSION_FIELD, b"").decode()
    if name not in TABLES:
        raise ArtifactError(f"{path} holds table {name!r}; known tables: {', '.join(TABLES)}")
    if version != str(TABLES[name].version):
        raise ArtifactError(
            f"{path} holds version {version} of table {name!r}, this code reads version "
            f"{TABLES[name].version}: run its stage again"
        )
    return TABLES[name]


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
