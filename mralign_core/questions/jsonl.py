"""Reading a user's JSONL file: one object a line, every problem named with its file and line."""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from mralign_core.errors import DataError

MOST_PROBLEMS = 20
HALF_CHARACTER = "holds half a character (one of two \\u escapes)"


class Line(NamedTuple):
    """One record of a file: its number from 1, its fields, how messages name it, and the file's name (no suffix)."""

    number: int
    values: dict[str, Any]
    place: str
    file: str


def read_jsonl(path: str | Path, field: str) -> list[Line]:
    """The objects of a JSONL file; blank lines and a byte-order mark are skipped.

    Args:
        path: the file.
        field: config field that names it, for the messages.

    Raises:
        DataError: the file is missing, not UTF-8, empty, or has lines that are not JSON objects.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{field}: {path} is not a file; name a JSONL file, one JSON object a line")
    problems: list[str] = []
    lines = list(stream_jsonl(path, field, problems))
    refuse(path, field, problems, "write one JSON object a line, as in a .jsonl file")
    if not lines:
        raise DataError(f"{field}: {path} is empty; give at least one JSON object, one a line")
    return lines


def stream_jsonl(path: Path, field: str, problems: list[str]) -> Iterator[Line]:
    """The objects of a JSONL file, one at a time; what is wrong with a line is added to ``problems``.

    Raises:
        DataError: the file is not UTF-8 text, or can't be unpacked.
    """
    with open_bytes(path, field) as file:
        # Lines end at \n only: JSON text may hold other line separators, such as U+2028, unescaped.
        for number, raw in enumerate(file, start=1):
            text = decode(raw, path, field, number)
            if text.strip() and (values := _parse(text, number, problems)) is not None:
                yield Line(number, values, f"line {number}", stem(path))


@contextlib.contextmanager
def open_bytes(path: Path, field: str) -> Iterator[BinaryIO]:
    """The file, opened; a ``.gz`` file comes unpacked.

    Raises:
        DataError: a ``.gz`` file is damaged, found while it is read.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{field}: {path} can't be unpacked ({error}); is it a whole gzip file?") from None


def decode(raw: bytes, path: Path, field: str, number: int) -> str:
    """A line as text, without the byte-order mark that a file may begin with.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{field}: {path} is not UTF-8 text (line {number}); save it as UTF-8") from None


def stem(path: Path) -> str:
    """A file's name without its suffixes.

    Example:
        >>> stem(Path("data/NQ-open.dev.jsonl.gz"))
        'NQ-open.dev'
    """
    return Path(path.name.removesuffix(".gz")).stem


def refuse(path: str | Path, field: str, problems: Sequence[str], remedy: str) -> None:
    """Raise if there are problems.

    Raises:
        DataError: names the config field, the file, the problems with their lines, and the remedy.
    """
    if not problems:
        return
    shown = list(problems[:MOST_PROBLEMS])
    if len(problems) > MOST_PROBLEMS:
        shown.append(f"… and {len(problems) - MOST_PROBLEMS} more")
    listed = "\n  ".join(shown)
    raise DataError(f"{field}: {path} has {len(problems)} problem(s); {remedy}\n  {listed}")


def _parse(line: str, number: int, problems: list[str]) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        problems.append(f"line {number}: not JSON ({error.msg} at column {error.colno}): {line.strip()!r:.60}")
        return None
    if not isinstance(values, dict):
        problems.append(f"line {number}: not an object but {type(values).__name__}: {line.strip()!r:.60}")
        return None
    if holds_half_character(line, values):
        problems.append(f"line {number}: {HALF_CHARACTER}: {line.strip()!r:.60}")
        return None
    return values


def holds_half_character(text: str, values: Any) -> bool:
    r"""Whether values read from JSON hold half of an escaped pair, such as ``\ud83d`` alone, which no file can keep.

    Example:
        >>> [holds_half_character(text, json.loads(text)) for text in (r'"\ud83d"', r'"\ud83d\ude42"')]
        [True, False]
    """
    if "\\ud" not in text and "\\uD" not in text:
        return False
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
