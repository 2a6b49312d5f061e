"""Records of a user's files, whatever their format, one at a time; a folder's files in order of their names."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mralign_core.errors import DataError
from mralign_core.method.blanks import strip_blanks
from mralign_core.questions.jsonl import (
    HALF_CHARACTER,
    Line,
    NotReadableError,
    holds_half_character,
    parse_json,
    shown,
    stream_jsonl,
)
from mralign_core.questions.opening import (
    MOST_LINE_BYTES,
    file_text,
    lines_of,
    refuse_bomb,
    stem,
    why_not_a_file,
    without_gz,
)

logger = logging.getLogger("mralign_core.questions")
BATCH_ROWS = 1000
BATCH_BYTES = 1 << 30
"""So many rows of a Parquet file are read at a time that they take no more, even if each had the longest value."""
JSON_START = re.compile(r"\s*\[\s*")
JSON_NEXT = re.compile(r"\s*,\s*")
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
    name = Path(path).name
    suffix = Path(without_gz(name)).suffix.lower()
    return "" if suffix not in READERS or (suffix == ".parquet" and name != without_gz(name)) else suffix


def files_of(folder: Path, field: str) -> list[Path]:
    """The question files of a folder and of the folders in it, in order of their names, by links too.

    Left out are hidden files and folders, and JSON files, which are there rather descriptions of the rest. A folder
    that several links lead to is read once.

    Raises:
        DataError: a folder can't be listed, a link leads nowhere or back to a folder that it is in, or what has the
            name of a question file is none.
    """
    found = sorted(_walk(folder, field, [], set()))
    for path in found:
        if what := why_not_a_file(path):
            raise DataError(f"{field}: {path} is {what}")
    formats = Counter(format_of(path) for path in found)
    if len(formats) > 1:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(formats.items()))
        logger.warning(
            "%s: folder %s holds question files of several formats (%s), and all are read; if they hold the same "
            "questions, name one of them in path",
            field,
            folder,
            counts,
        )
    return found


def _walk(folder: Path, field: str, inside: list[str], seen: set[str]) -> Iterator[Path]:
    """The question files below a folder; ``inside`` are the real paths of the folders that it is in."""
    real = os.path.realpath(folder)
    if real in inside:
        raise DataError(f"{field}: {folder} is a link back to {real}, a folder that it is in: take the link away")
    if real in seen:
        return
    seen.add(real)
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{field}: folder {folder} can't be listed ({error.strerror})") from None
    folders = [entry for entry in entries if _is_folder(entry)]
    for entry in sorted(folders, key=lambda entry: (entry.is_symlink(), entry.name)):
        yield from _walk(Path(entry.path), field, [*inside, real], seen)
    yield from (Path(entry.path) for entry in entries if entry not in folders and _is_set(entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say, which is told once its name is that of a question file
        return False


def _is_set(name: str) -> bool:
    return format_of(name) not in ("", ".json")


def split_of(path: Path) -> str:
    """The split that a file's name tells: ``train``, ``validation``, ``test``, or empty.

    Example:
        >>> split_of(Path("NQ-open.dev.jsonl")), split_of(Path("TruthfulQA.csv"))
        ('validation', '')
    """
    words = re.split(r"[^a-z]+", stem(path).lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "")


def stream_files(
    files: Sequence[Path], field: str, problems: list[str], columns: Collection[str] = ()
) -> Iterator[Line]:
    """The records of files, one after the other; what is wrong with one is added to ``problems``.

    Args:
        files: the files.
        field: config field that names them, for the messages.
        problems: takes what is wrong with a record.
        columns: those that will be read; all, if none is named. Of others a Parquet file gives only the names.

    Raises:
        DataError: a file can't be read at all.
    """
    for path in files:
        found: list[str] = []
        lines = (
            _stream_parquet(path, field, columns)
            if format_of(path) == ".parquet"
            else READERS[format_of(path)](path, field, found)
        )
        for line in lines:
            yield line._replace(place=_inside(path, line.place)) if len(files) > 1 else line
        problems += [_inside(path, problem) for problem in found] if len(files) > 1 else found


def _inside(path: Path, place: str) -> str:
    return f"{path.name}, {place}"


def _stream_csv(path: Path, field: str, problems: list[str]) -> Iterator[Line]:
    csv.field_size_limit(max(csv.field_size_limit(), MOST_LINE_BYTES))
    # Lines keep their ends, as the reader wants it: a cell may hold one.
    reader = csv.DictReader((text for _, text in lines_of(path, field)), strict=True)
    started = 2  # line of the row under way
    try:
        _refuse_repeated(reader.fieldnames or (), path, field)
        for number, values in enumerate(reader, start=1):
            started = reader.line_num + 1
            if None in values or None in values.values():
                problems.append(f"row {number} (to line {reader.line_num}): not as many cells as the header has")
            else:
                yield Line(number, values, f"row {number}", stem(path))
    except csv.Error as error:
        reached = reader.reader.line_num
        rows = f"lines {started} to {reached}" if started < reached else f"line {reached}"
        quote = ": is a quote left open?" if started < reached else ""
        problems.append(f"{rows}: not CSV ({error}){quote}; rows end and cells are quoted as in RFC 4180")


def _refuse_repeated(names: Sequence[str], path: Path, field: str) -> None:
    """Refuse columns that can't be told apart, of which most readers silently take the last.

    Raises:
        DataError: two columns have the same name, or names that look the same.
    """
    counts = Counter(filter(None, (strip_blanks(name or "") for name in names)))
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise DataError(
            f"{field}: {path} has the column {', '.join(map(repr, repeated))} more than once; which one is meant can't "
            "be told: rename or remove one"
        )


def _stream_json(path: Path, field: str, problems: list[str]) -> Iterator[Line]:
    text = file_text(path, field)
    try:
        rows = parse_json(text)
    except NotReadableError as error:
        where = f"row {_num_readable(text) + 1}: " if JSON_START.match(text) else ""
        raise DataError(f"{field}: {path}: {where}{error}; a file of one object a line is .jsonl") from None
    if not isinstance(rows, list):
        raise DataError(f"{field}: {path} must hold a list of objects, not {type(rows).__name__}")
    for number, values in enumerate(rows, start=1):
        if holds_half_character(text, values):
            problems.append(f"row {number}: {HALF_CHARACTER}: {shown(values)}")
        elif isinstance(values, dict):
            yield Line(number, values, f"row {number}", stem(path))
        else:
            problems.append(f"row {number}: not an object but {type(values).__name__}: {shown(values)}")


def _num_readable(text: str) -> int:
    """How many elements of a JSON list stand before the first that can't be read."""
    decoder, number, start = json.JSONDecoder(), 0, JSON_START.match(text)
    place = start.end() if start else 0
    while True:
        try:
            _, end = decoder.raw_decode(text, place)
            parse_json(text[place:end])
        except (ValueError, RecursionError):
            return number
        number, behind = number + 1, JSON_NEXT.match(text, end)
        if not behind:
            return number
        place = behind.end()


def _stream_parquet(path: Path, field: str, columns: Collection[str]) -> Iterator[Line]:
    if what := why_not_a_file(path):
        raise DataError(f"{field}: {path} is {what}")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _refuse_repeated(names, path, field)
            wanted = [name for name in names if not columns or name in columns]
            others = dict.fromkeys(name for name in names if name not in wanted)
            batches = file.iter_batches(_batch_rows(file.metadata, wanted, path, field), columns=wanted)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, values in enumerate(rows, start=1):
                yield Line(number, {**values, **others}, f"row {number}", stem(path))
    except DataError:
        raise
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:  # the last two: no Python value
        raise DataError(f"{field}: {path} is not a readable Parquet file: {error}") from None


def _batch_rows(metadata: pq.FileMetaData, wanted: Sequence[str], path: Path, field: str) -> int:
    """How many rows may be read at once, of what the file says of its columns.

    A short column can stand for a long one: a dictionary has a long value once, and pages pack repetition away.

    Raises:
        DataError: the columns unpack to far more than texts do.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(place) for group in groups for place in range(group.num_columns)]
    chunks = [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(tuple(f"{name}." for name in wanted))]
    refuse_bomb(sum(chunk.total_uncompressed_size for chunk in chunks), path.stat().st_size, f"{field}: {path}")
    longest_value = max((chunk.total_uncompressed_size for chunk in chunks), default=1)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, longest_value)))


READERS: dict[str, Reader] = {
    ".jsonl": stream_jsonl,
    ".csv": _stream_csv,
    ".json": _stream_json,
    ".parquet": lambda path, field, problems: _stream_parquet(path, field, ()),
}
