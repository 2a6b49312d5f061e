"""Opening a user's file: told by its first bytes what it is, unpacked, and read line by line within limits.

A file may be a mistake (a spreadsheet named ``.csv``, a pipe, a link to nothing) or an attack (a small file that
unpacks to gigabytes, a line without an end). Either is one error that names it, and takes no more memory than a
line may have.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from mralign_core.errors import DataError

MIB = 1 << 20
MOST_LINE_BYTES = 64 * MIB
"""Longest line, and longest cell of a table."""
MOST_TEXT_BYTES = 512 * MIB
"""Largest file that is read whole, as JSON is."""
MOST_UNPACKED_BYTES = 64 << 30
"""Most that a packed file may unpack to."""
MOST_RATIO, FREE_BYTES = 100, 16 * MIB
"""A packed file may unpack to so many times its size; the first bytes are free, as small files pack better. Texts pack
5 to 20 times."""

GZIP = b"\x1f\x8b"
_OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or export it as CSV",
    b"PK\x05\x06": "an empty zip archive: unpack the right one",
    b"\xfd7zXZ\x00": "packed by xz: unpack it (xz -d), or pack it by gzip",
    b"BZh": "packed by bzip2: unpack it (bunzip2), or pack it by gzip",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it (zstd -d), or pack it by gzip",
    b"\x04\x22\x4d\x18": "packed by lz4: unpack it (lz4 -d), or pack it by gzip",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"Rar!": "a rar archive: unpack it",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file: export it as CSV",
    b"PAR1": "a Parquet file: name it .parquet",
    b"ARROW1": "an Arrow file: write it as Parquet or JSONL",
    b"SQLite format 3": "a database: export its table as CSV",
    b"%PDF": "a PDF: give the text as CSV or JSONL",
    b"\xff\xfe\x00\x00": "UTF-32 text: save it as UTF-8",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8 (in Excel: CSV UTF-8)",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8 (in Excel: CSV UTF-8)",
}
"""First bytes of files that people name .csv or .jsonl though they are not → what they are, and what to do."""
_SPECIAL = {
    stat.S_ISFIFO: "a pipe, which can be read only once: write it to a file",
    stat.S_ISSOCK: "a socket, not a file",
    stat.S_ISCHR: "a device, not a file",
    stat.S_ISBLK: "a device, not a file",
}


def stem(path: Path) -> str:
    """A file's name without its suffixes.

    Example:
        >>> stem(Path("data/NQ-open.dev.jsonl.gz"))
        'NQ-open.dev'
    """
    return Path(without_gz(path.name)).stem


def without_gz(name: str) -> str:
    """A name without the suffix of gzip."""
    return name[:-3] if name.lower().endswith(".gz") else name


def why_not_a_file(path: Path) -> str:
    """Why a path is no file or folder that can be read: what it is instead; empty where it is one, or is not there."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return f"a link to {path.readlink()}, which is not there" if path.is_symlink() else ""
    except (OSError, ValueError) as error:
        return f"out of reach ({_reason(error)})"
    return next((what for is_kind, what in _SPECIAL.items() if is_kind(mode)), "")


@contextlib.contextmanager
def open_bytes(path: Path, field: str) -> Iterator[BinaryIO]:
    """The bytes of a file; those of a gzip file, whatever its name, come unpacked.

    Raises:
        DataError: it can't be opened, is of another kind than its name says, is damaged, or unpacks to too much.
    """
    if what := why_not_a_file(path):
        raise DataError(f"{field}: {path} is {what}")
    try:
        with path.open("rb") as raw:
            start = raw.read(max(map(len, _OTHER_KINDS)))
            raw.seek(0)
            if start.startswith(GZIP):
                yield from _unpacked(raw, f"{field}: {path}")
                return
            _refuse_other_kinds(path, field, start)
            yield raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{field}: {path} can't be unpacked ({error}); is it a whole gzip file?") from None
    except OSError as error:
        raise DataError(f"{field}: {path} can't be read ({_reason(error)})") from None


def lines_of(path: Path, field: str) -> Iterator[tuple[int, str]]:
    r"""The lines of a text file with their numbers, from 1, each with its end (``\n``, ``\r\n`` or ``\r``).

    Raises:
        DataError: as :func:`open_bytes`; or it is not UTF-8 text, or a line is too long.
    """
    number = 0
    with open_bytes(path, field) as file:
        while piece := file.readline(MOST_LINE_BYTES + 1):
            if len(piece) > MOST_LINE_BYTES:
                raise DataError(
                    f"{field}: {path}: line {number + 1} is longer than {MOST_LINE_BYTES // MIB} MiB; rows end with a "
                    "line feed, and a question is never so long"
                )
            for raw in piece.splitlines(keepends=True):
                number += 1
                yield number, decode(raw, path, field, number)


def file_text(path: Path, field: str) -> str:
    """The text of a file, whole.

    Raises:
        DataError: as :func:`open_bytes`; or it is not UTF-8 text, or too large to be read whole.
    """
    with open_bytes(path, field) as file:
        raw = file.read(MOST_TEXT_BYTES + 1)
    if len(raw) > MOST_TEXT_BYTES:
        raise DataError(
            f"{field}: {path} is larger than {MOST_TEXT_BYTES // MIB} MiB, too large to be read whole; write one JSON "
            "object a line (.jsonl), which is read line by line"
        )
    return decode(raw, path, field, 1)


def decode(raw: bytes, path: Path, field: str, number: int) -> str:
    """A line as text, without the byte-order mark that a file may begin with.

    Raises:
        DataError: it is not UTF-8 text.
    """
    if b"\0" in raw:
        raise DataError(
            f"{field}: {path} is not UTF-8 text (line {number} holds a NUL byte, as UTF-16 text and binary files do); "
            "save it as UTF-8"
        )
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{field}: {path} is not UTF-8 text (line {number}, byte {raw[error.start]:#04x}); save it as UTF-8, as by "
            "iconv -f LATIN1 -t UTF-8"
        ) from None


def _unpacked(raw: BinaryIO, where: str) -> Iterator[BinaryIO]:
    """The unpacked bytes of a gzip file; unpacking it once before costs far less than reading rows that are refused."""
    size = raw.seek(0, io.SEEK_END)
    for is_trial in (True, False):
        raw.seek(0)
        with gzip.open(raw) as packed:
            unpacked = cast(BinaryIO, io.BufferedReader(_Limited(packed, size, where), MIB))
            if not is_trial:
                yield unpacked
            while is_trial and unpacked.read(MIB):
                pass


class _Limited(io.RawIOBase):
    """An unpacking file that stops where it has unpacked too much for its size."""

    def __init__(self, packed: gzip.GzipFile, packed_bytes: int, where: str) -> None:
        self._packed = packed
        self._packed_bytes = packed_bytes
        self._where = where
        self._unpacked = 0

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Unpack some more."""
        chunk = self._packed.read1(len(buffer))
        buffer[: len(chunk)] = chunk
        self._unpacked += len(chunk)
        refuse_bomb(self._unpacked, self._packed_bytes, self._where)
        return len(chunk)


def refuse_bomb(unpacked: int, packed: int, where: str) -> None:
    """Refuse a file that unpacks to far more than texts do.

    Args:
        unpacked: bytes so far.
        packed: bytes of the file.
        where: field and path, for the message.

    Raises:
        DataError: it does.
    """
    most = _most_unpacked(packed)
    if unpacked > most:
        raise DataError(
            f"{where} has {packed:,} bytes and unpacks to more than {most // MIB:,} MiB; texts unpack to 5 to 20 times "
            f"their size, and {MOST_RATIO} times is the limit. If it is what it should be, give it unpacked"
        )


def _most_unpacked(packed: int) -> int:
    return min(MOST_UNPACKED_BYTES, max(FREE_BYTES, MOST_RATIO * packed))


def _refuse_other_kinds(path: Path, field: str, start: bytes) -> None:
    for first_bytes, what in _OTHER_KINDS.items():
        if start.startswith(first_bytes):
            raise DataError(f"{field}: {path} is {what}")
    if start and path.suffix.lower() == ".gz":
        raise DataError(f"{field}: {path} can't be unpacked: it is no gzip file; take .gz off its name if it is plain")


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
