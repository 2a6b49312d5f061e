"""Tables that are worked out when they are first asked for, and kept on this machine for whoever asks later.

They are worked out part by part, and each part is kept as soon as it is whole: who leaves before the end, or ends the
server, loses one part. Layout::

    ~/.cache/mralign/analyses/<key>/table.parquet   a table
    ~/.cache/mralign/analyses/<key>/<part>.parquet  of one that is not whole yet

The longest unused go first (:class:`~mralign_core.storage.cache.DownloadCache`). A key says all that a table is made
from, the code that makes it among it.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mralign_core.errors import StorageError
from mralign_core.storage.cache import DownloadCache
from mralign_core.storage.scratch import part_file
from mralign_core.workbench.interruption import stop_if_left

logger = logging.getLogger("mralign_core.workbench")

MOST_KEPT_BYTES = 2**30
"""Of all tables; one of 100,000 traces has 1.5 MB."""
WRITTEN_AT_ONCE = 1_000
"""Rows in memory."""
LOOKS_UP_S = 0.2
"""How often one that waits for a table asks whether anybody waits for it."""
Rows = Iterable[dict[str, Any]]


class Work(NamedTuple):
    """A table that is being worked out.

    Args:
        of: content digests of what it is made from.
        rows: that it will have.
        done: of them.
    """

    of: frozenset[str]
    rows: int
    done: int = 0


class KeptTables:
    """What several threads ask for at a time is worked out by one of them.

    Args:
        folder: where tables are kept; in ``~/.cache/mralign`` when None. What can't be written there is kept in a
            temporary folder, as long as the process runs.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._chosen = folder
        self._making: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._only_temporary: set[str] = set()
        self._lock = threading.Lock()
        self._under_way: dict[str, Work] = {}
        self._whole: dict[Path, tuple[int, int]] = {}

    def file(self, key: str, schema: pa.Schema, parts: Sequence[Callable[[], Rows]], work: Work) -> str:
        """The path of a table's file.

        Args:
            key: hex digest of all that it is made from.
            schema: of its rows.
            parts: each gives some of the rows, in their order.
            work: what is told of it meanwhile.

        Raises:
            AskerLeftError: whoever asked has left; parts that are whole stay.
            StorageError: it can be written neither where tables are kept nor in a temporary folder.
        """
        with _hold(self._making[key]):
            if key not in self._only_temporary:
                try:
                    return self._made_in(self._folder(key), key, schema, parts, work)
                except OSError as error:
                    logger.warning("an analysis is kept until the server ends, and not in %s: %s", self._place, error)
            try:
                made = self._made_in(self._temporary_folder(key), key, schema, parts, work)
            except OSError as error:
                raise StorageError(
                    f"what was analysed can be kept neither in {self._place} nor in a temporary folder ({error}): "
                    "make room there, let this server write there, or give it another folder in TMPDIR"
                ) from error
            self._only_temporary.add(key)
        return made

    def under_way(self) -> list[Work]:
        """The tables that are being worked out."""
        return list(self._under_way.values())

    def _made_in(
        self, folder: Path, key: str, schema: pa.Schema, parts: Sequence[Callable[[], Rows]], work: Work
    ) -> str:
        """The path of a table's file in its folder, where it is worked out unless it is there."""
        table = folder / "table.parquet"
        while not self._is_whole(table, schema):
            self._under_way[key] = work
            try:
                self._work_out(key, table, schema, parts)
            finally:
                del self._under_way[key]
        return str(table)

    def _work_out(self, key: str, table: Path, schema: pa.Schema, parts: Sequence[Callable[[], Rows]]) -> None:
        # Another server that works out the same may be done first: then the table is there, and its parts are gone.
        files = [table.with_name(f"{number:05d}.parquet") for number in range(len(parts))]
        for file, rows_of in zip(files, parts, strict=True):
            if self._is_whole(table, schema):
                break
            if (number := _num_rows(file, schema)) is not None:
                self._count(key, number)
            else:
                _write(file, schema, (pa.Table.from_pylist(some, schema) for some in self._counted(key, rows_of())))
        else:
            with contextlib.suppress(FileNotFoundError):
                _write(table, schema, (pq.read_table(file) for file in files))
        for file in files:
            file.unlink(missing_ok=True)

    def _is_whole(self, table: Path, schema: pa.Schema) -> bool:
        """Whether a table is there; it is read for that once, and anew where it has changed."""
        try:
            stat = table.stat()
        except OSError:
            return False
        seen = stat.st_mtime_ns, stat.st_size
        if self._whole.get(table) != seen and _num_rows(table, schema) is not None:
            self._whole[table] = seen
        return self._whole.get(table) == seen

    def _counted(self, key: str, rows: Rows) -> Iterator[list[dict[str, Any]]]:
        some: list[dict[str, Any]] = []
        for row in rows:
            some.append(row)
            self._count(key, 1)
            stop_if_left()
            if len(some) == WRITTEN_AT_ONCE:
                yield some
                some = []
        yield some

    def _count(self, key: str, number: int) -> None:
        self._under_way[key] = self._under_way[key]._replace(done=self._under_way[key].done + number)

    @property
    def _place(self) -> Path:
        """Where tables are kept, if that can be written to."""
        return self._chosen or Path.home() / ".cache" / "mralign" / "analyses"

    def _folder(self, key: str) -> Path:
        """The folder of a table, kept from now on until this process ends."""
        with self._lock:
            try:
                return _room_for(self._place, key)
            except OSError as error:
                logger.warning("analyses are kept until the server ends, and not in %s: %s", self._place, error)
        return self._temporary_folder(key)

    def _temporary_folder(self, key: str) -> Path:
        """The folder of a table that is gone when this process ends."""
        with self._lock:
            if self._temporary and not Path(self._temporary.name).is_dir():
                # Cleaners of /tmp take what is old. Under the old name another user could have made one since.
                self._temporary.cleanup()
                self._temporary = None
            self._temporary = self._temporary or tempfile.TemporaryDirectory(prefix="mralign-view-")
            return _room_for(Path(self._temporary.name), key)


def _room_for(folder: Path, key: str) -> Path:
    cache = DownloadCache(folder, MOST_KEPT_BYTES)
    own = cache.use(key)
    if not own.is_dir():
        cache.make_room(0)
        own.mkdir(parents=True, exist_ok=True)
    return own


def _num_rows(file: Path, schema: pa.Schema) -> int | None:
    """Rows of a file; None where it is not there, damaged, or has other columns."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            read = opened.read()
    except (OSError, pa.ArrowException):
        return None
    return int(read.num_rows) if read.schema.equals(schema) else None


def _write(file: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    with part_file(file.parent.parent / "tmp") as unfinished:
        with pq.ParquetWriter(unfinished, schema, write_page_checksum=True) as writer:
            for table in tables:
                writer.write_table(table)
        unfinished.rename(file)


@contextlib.contextmanager
def _hold(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock, unless the asker leaves while it is waited for: threads that wait are few."""
    while not lock.acquire(timeout=LOOKS_UP_S):
        stop_if_left()
    try:
        stop_if_left()
        yield
    finally:
        lock.release()
