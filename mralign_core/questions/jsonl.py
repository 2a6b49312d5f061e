"""Reading a user's JSONL file: one object a line, every problem named with its file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mralign_core.errors import DataError
from mralign_core.questions.opening import lines_of, stem, why_not_a_file

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
    if what := why_not_a_file(path):
        raise DataError(f"{field}: {path} is {what}; name a JSONL file, one JSON object a line")
    if not path.is_file():
        raise DataError(f"{field}: {path} is not a file; name a JSONL file, one JSON object a line")
    problems: list[str] = []
    lines = list(stream_jsonl(path, field, problems))
    refuse(path, field, problems, "write one JSON object a line, as in a .jsonl file")
    if not lines:
        raise DataError(f"{field}: {path} is empty; give at least one JSON object, one a line")
    return lines


def stream_jsonl(path: Path, field: str, problems: list[str]) -> Iterator[Line]:
    r"""The objects of a JSONL file, one at a time; what is wrong with a line is added to ``problems``.

    Lines end as :func:`~mralign_core.questions.opening.lines_of` has it, never at other separators such as U+2028,
    which JSON text may hold unescaped.

    Raises:
        DataError: the file is not UTF-8 text, or can't be unpacked.
    """
    for number, text in lines_of(path, field):
        if text.strip() and (values := _parse(text, number, problems)) is not None:
            yield Line(number, values, f"line {number}", stem(path))


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


class NotReadableError(ValueError):
    """A JSON text that means nothing, or two things; the message says why, without its place."""


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        NotReadableError: it is not JSON, is nested too deeply, has a number too long, or an object that has a key
            twice, of which most readers silently take the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise NotReadableError(f"not JSON ({error.msg} at line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise NotReadableError("lists or objects are nested too deeply in it") from None
    except NotReadableError:
        raise
    except ValueError as error:  # of a number with thousands of digits
        raise NotReadableError(f"not readable ({error})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise NotReadableError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in an object")
    return values


def _parse(line: str, number: int, problems: list[str]) -> dict[str, Any] | None:
    text = line.strip()
    try:
        values = parse_json(text)
    except NotReadableError as error:
        problems.append(f"line {number}: {str(error).replace('at line 1, column', 'at column')}: {text!r:.60}")
        return None
    if not isinstance(values, dict):
        problems.append(f"line {number}: not an object but {type(values).__name__}: {text!r:.60}")
        return None
    if holds_half_character(line, values):
        problems.append(f"line {number}: {HALF_CHARACTER}: {text!r:.60}")
        return None
    return values


def shown(value: Any) -> str:
    """The beginning of a value, for a message.

    Example:
        >>> shown(None), shown("a" * 99)[:6]
        ('None', "'aaaaa")
    """
    try:
        return f"{value!r:.60}"
    except (RecursionError, ValueError):  # nested too deeply; a number with thousands of digits
        return f"a {type(value).__name__} that can't be shown"


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
    except RecursionError:  # so deep that nothing in it is read
        return False
    return False
