"""Reading a user's JSONL file: one object a line, every problem named with its file and line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mralign_core.errors import DataError

MOST_PROBLEMS = 20


class Line(NamedTuple):
    """One object of the file, with its line number from 1."""

    number: int
    values: dict[str, Any]


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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{field}: {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    # Not splitlines: JSON text may hold other line separators, such as U+2028, unescaped.
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not numbered:
        raise DataError(f"{field}: {path} is empty; give at least one JSON object, one a line")
    problems: list[str] = []
    lines = [Line(number, _parse(line, number, problems)) for number, line in numbered]
    refuse(path, field, problems, "write one JSON object a line, as in a .jsonl file")
    return lines


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


def _parse(line: str, number: int, problems: list[str]) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        problems.append(f"line {number}: not JSON ({error.msg} at column {error.colno}): {line.strip()!r:.60}")
        return {}
    if not isinstance(values, dict):
        problems.append(f"line {number}: not an object but {type(values).__name__}: {line.strip()!r:.60}")
        return {}
    return values
