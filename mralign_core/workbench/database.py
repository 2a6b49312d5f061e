"""SQL over the Parquet files of a store, as they lie: nothing is copied, and no extension is loaded.

Files of a bucket are read from the store's own download cache, whose digests are checked: a search reads all texts,
and would fetch them anew each time.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import duckdb
import numpy as np

from mralign_core.errors import UserError
from mralign_core.workbench.interruption import AskerLeftError, ending, stop_if_left

MEMORY_LIMIT = "1GB"
"""Of all queries at a time; what needs more is an error, not a machine without memory."""
THREADS = 4
FETCHED_AT_ONCE = 1_000
_NAMED = re.compile(r"\$(\w+)")

TableRow = dict[str, Any]


class QueryError(UserError):
    """A query could not be answered; narrower ones may be."""


class Database:
    """Answers queries; several threads may ask at a time.

    Args:
        memory_limit: as DuckDB takes it.
        threads: that work on a query.
    """

    def __init__(self, memory_limit: str = MEMORY_LIMIT, threads: int = THREADS) -> None:
        self._connection = duckdb.connect(
            config={
                "memory_limit": memory_limit,
                "threads": threads,
                "autoinstall_known_extensions": False,  # no query reaches for the network
                "autoload_known_extensions": False,
                "temp_directory": "",  # an error is better than gigabytes in the working directory
            }
        )

    def rows(self, sql: str, values: Mapping[str, Any]) -> list[TableRow]:
        """All rows of a query.

        Args:
            sql: with ``$name`` for each value.
            values: by name; more than the query has may be given.
        """
        return list(self.stream(sql, values))

    def row(self, sql: str, values: Mapping[str, Any]) -> TableRow | None:
        """The first row of a query; None where there is none."""
        return next(self.stream(sql, values), None)

    def columns(self, sql: str, values: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """All rows of a query as columns, which takes a tenth of the time of rows where there are many.

        Args:
            sql: as for :meth:`rows`; its result must hold no null.
            values: as for :meth:`rows`.

        Raises:
            QueryError: as :meth:`stream`.
        """
        cursor = self._connection.cursor()
        try:
            with ending(cursor.interrupt):
                found = _execute(cursor, sql, values).fetchnumpy()
            return {name: np.ma.filled(column) for name, column in found.items()}
        except duckdb.InterruptException:
            raise AskerLeftError("nobody waits for this search any more") from None
        except duckdb.Error as error:
            raise _query_error(error) from error
        finally:
            cursor.close()

    def stream(self, sql: str, values: Mapping[str, Any]) -> Iterator[TableRow]:
        """The rows of a query, a few in memory at a time.

        Raises:
            QueryError: it needs more memory than it may have, or a file went away meanwhile.
            AskerLeftError: whoever asked has left.
        """
        cursor = self._connection.cursor()
        try:
            with ending(cursor.interrupt):
                found = _execute(cursor, sql, values)
            names = [column[0] for column in found.description or ()]
            while chunk := found.fetchmany(FETCHED_AT_ONCE):
                stop_if_left()
                yield from (dict(zip(names, map(as_json, row), strict=True)) for row in chunk)
        except duckdb.InterruptException:
            raise AskerLeftError("nobody waits for this search any more") from None
        except duckdb.Error as error:
            raise _query_error(error) from error
        finally:
            cursor.close()


def _execute(cursor: duckdb.DuckDBPyConnection, sql: str, values: Mapping[str, Any]) -> duckdb.DuckDBPyConnection:
    return cursor.execute(sql, {name: values[name] for name in set(_NAMED.findall(sql))})


def _query_error(error: duckdb.Error) -> QueryError:
    return QueryError(f"this could not be looked up ({error}): ask for less, or load the page anew")


@functools.cache
def shared_database() -> Database:
    """The one of this process."""
    return Database()


def as_json(value: Any) -> Any:
    """A value as JSON has it: a number that is none, or infinite, is null.

    >>> as_json([1.5, float("inf"), {"a": float("nan")}])
    [1.5, None, {'a': None}]
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    return value
