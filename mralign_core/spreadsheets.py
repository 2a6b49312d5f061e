"""CSV files that people fill in a spreadsheet: no cell is run, and what comes back is read however it was saved."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mralign_core.errors import DataError

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
MOST_CHARACTERS = 32_000
"""Spreadsheets cut a cell at 32,767 characters."""


def refuse_to_overwrite(option: str, *targets: Path) -> None:
    """Keep what a rater filled in.

    Raises:
        DataError: one of the files is there already.
    """
    for target in targets:
        if target.exists():
            raise DataError(f"{option}: {target} is there already and may hold someone's work; name another file")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows so that Excel reads them; texts that are not ours must be :func:`neutralised` before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The byte-order mark is what makes Excel read UTF-8.
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def opaque_id(*parts: object) -> str:
    """An id that tells nothing: letters only, so that no spreadsheet takes it for a number or a date.

    >>> opaque_id("q1-0", 0, "Let me think.")
    'pfwzmypfrrnv'
    """
    digest = hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=12).digest()
    return "".join(chr(ord("a") + byte % 26) for byte in digest)


def item_id(trace_id: str, segment: int, text: str) -> str:
    """A segment's opaque id; it depends on the text, so that a sheet of other segments of these names is noticed."""
    return opaque_id(trace_id, segment, text)


def neutralised(text: str) -> str:
    """Text that a spreadsheet shows and does not run: a quote before what would start a formula, no control characters.

    >>> neutralised("=1+1"), neutralised("a = b")
    ("'=1+1", 'a = b')
    """
    clean = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text.replace("\r\n", "\n"))
    if len(clean) > MOST_CHARACTERS:
        clean = f"{clean[:MOST_CHARACTERS]}\n[… {len(clean) - MOST_CHARACTERS} more characters]"
    starts = text.startswith(FORMULA_STARTS) or clean.lstrip().startswith(FORMULA_STARTS)
    return f"'{clean}" if starts else clean


def read_csv(path: Path, columns: Sequence[str], option: str, command: str) -> list[tuple[int, dict[str, str]]]:
    """Row number as a spreadsheet counts, and the stripped values by column name, of each row that is not empty.

    Args:
        path: the CSV, in any of the encodings and separators that spreadsheets write.
        columns: those that it must have.
        option: what named the file.
        command: what wrote it.

    Raises:
        DataError: there is no such file, or it has no header with these columns.
    """
    if not path.is_file():
        raise DataError(f"{option}: {path} is not a file; name a sheet that `{command}` wrote")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{option}: {path} can't be read ({error.strerror}); make it readable") from None
    lines = _decode(content).removeprefix("\ufeff").split("\n", 1)
    has_hint = lines[0].lower().startswith("sep=")  # a line that Excel writes for itself
    text = lines[1] if has_hint and len(lines) > 1 else "\n".join(lines)
    header: list[str] = []
    for separator in (",", ";", "\t"):
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
        header = [name.strip().casefold() for name in rows[0]] if rows else []
        if set(columns) <= set(header):
            numbered = enumerate(rows[1:], start=2 + has_hint)
            return [(row, _by_name(header, values)) for row, values in numbered if any(map(str.strip, values))]
    raise DataError(
        f"{option}: {path} has no header row with the columns {', '.join(columns)} (its first row is "
        f"{', '.join(header)!r:.80}); keep the header, and save as CSV with commas, semicolons or tabs"
    )


def _by_name(header: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    padded = [*values, *[""] * (len(header) - len(values))]
    return {name: value.strip() for name, value in zip(header, padded, strict=False)}


def _decode(content: bytes) -> str:
    """Text in UTF-8, in UTF-16 where a byte-order mark says so, else in the Western European code page of Windows."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")
