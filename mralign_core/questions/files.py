"""Records of a user's files, whatever their format, one at a time; a folder's files in order of their names."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mralign_core.errors import DataError
from mralign_core.questions.jsonl import (
    HALF_CHARACTER,
    Line,
    decode,
    holds_half_character,
    open_bytes,
    stem,
    stream_jsonl,
)

BATCH_ROWS = 1000
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "dev": "validation",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "test": "test",
    "eval": "test",
}
"""Words in file names that say of which split a file is."""

Reader = Callable[[Path, str, list[str]], Iterator[Line]]


def format_of(path: str | Path) -> str:
    """The format that a file's name tells, such as ``.csv``; empty when it is none that can be read."""
    suffix = Path(str(path).removesuffix(".gz")).suffix.lower()
    return "" if suffix not in READERS or (suffix == ".parquet" and str(path).endswith(".gz")) else suffix


def files_of(folder: Path) -> list[Path]:
    """The question files of a folder and of the folders in it. JSON files there are rather descriptions of the rest."""
    found = [path for path in folder.rglob("*") if path.is_file() and format_of(path) not in ("", ".json")]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def split_of(path: Path) -> str:
    """The split that a file's name tells: ``train``, ``validation``, ``test``, or empty.

    Example:
        >>> split_of(Path("NQ-open.dev.jsonl")), split_of(Path("TruthfulQA.csv"))
        ('validation', '')
    """
    words = re.split(r"[^a-z]+", stem(path).lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "")


def stream_files(files: Sequence[Path], field: str, problems: list[str]) -> Iterator[Line]:
    """The records of files, one after the other; what is wrong with one is added to ``problems``.

    Raises:
        DataError: a file can't be read at all.
    """
    for path in files:
        found: list[str] = []
        for line in READERS[format_of(path)](path, field, found):
            yield line._replace(place=_inside(path, line.place)) if len(files) > 1 else line
        problems += [_inside(path, problem) for problem in found] if len(files) > 1 else found


def _inside(path: Path, place: str) -> str:
    return f"{path.name}, {place}"


def _stream_csv(path: Path, field: str, problems: list[str]) -> Iterator[Line]:
    with open_bytes(path, field) as file:
        lines = (decode(raw, path, field, number) for number, raw in enumerate(file, start=1))
        reader = csv.DictReader(lines, strict=True)
        try:
            for number, values in enumerate(reader, start=1):
                if None in values or None in values.values():
                    problems.append(f"row {number} (to line {reader.line_num}): not as many cells as the header has")
                else:
                    yield Line(number, values, f"row {number}", stem(path))
        except csv.Error as error:
            problems.append(f"line {reader.line_num}: not CSV ({error}); rows end and cells are quoted as in RFC 4180")


def _stream_json(path: Path, field: str, problems: list[str]) -> Iterator[Line]:
    with open_bytes(path, field) as file:
        text = decode(file.read(), path, field, 1)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{field}: {path} is not JSON ({error}); a file of one object a line is .jsonl") from None
    if not isinstance(rows, list):
        raise DataError(f"{field}: {path} must hold a list of objects, not {type(rows).__name__}")
    for number, values in enumerate(rows, start=1):
        if holds_half_character(text, values):
            problems.append(f"row {number}: {HALF_CHARACTER}: {values!r:.60}")
        elif isinstance(values, dict):
            yield Line(number, values, f"row {number}", stem(path))
        else:
            problems.append(f"row {number}: not an object but {type(values).__name__}: {values!r:.60}")


def _stream_parquet(path: Path, field: str, problems: list[str]) -> Iterator[Line]:
    try:
        with pq.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(BATCH_ROWS) for row in batch.to_pylist())
            for number, values in enumerate(rows, start=1):
                yield Line(number, values, f"row {number}", stem(path))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{field}: {path} is not a readable Parquet file: {error}") from None


READERS: dict[str, Reader] = {
    ".jsonl": stream_jsonl,
    ".csv": _stream_csv,
    ".json": _stream_json,
    ".parquet": _stream_parquet,
}
