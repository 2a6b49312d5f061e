"""What a part has found so far, in a file that is whole at any time: a part that is cut off keeps what it had.

Nothing but the standard library is imported here: the process that starts the parts reads these files, and must not
depend on what it is to find out about.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LAST_CHARACTERS = 3000
"""Of a traceback or of what a part printed."""


class Setting(NamedTuple):
    """On what a part runs, and what earlier parts found."""

    device: str
    """``cuda``, or ``cpu`` for the stand-in: small shapes, the same code."""
    earlier: dict[str, Any]
    """Values of earlier parts by their names."""

    @property
    def is_stand_in(self) -> bool:
        """Whether the shapes are small, and no figure means anything."""
        return self.device == "cpu"


class NotShownHere(Exception):
    """A part, or the rest of one, can't be shown on this machine; the message says why."""


class Findings:
    """Values, checks and the line of one part, written whole after each addition.

    Args:
        path: of the JSON file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: dict[str, Any] = {"status": "cut", "line": "", "values": {}, "checks": [], "notes": []}
        self._failure: dict[str, str] = {}
        self._write()

    def value(self, name: str, value: Any) -> None:
        """Keep a figure; its unit is in its name."""
        self.record["values"][name] = value
        self._write()

    def check(self, name: str, found: float, limit: float) -> None:
        """Keep whether a figure stays at or under a limit; the part fails where one does not, and goes on."""
        is_ok = math.isfinite(found) and found <= limit
        self.record["checks"].append({"name": name, "found": found, "limit": limit, "ok": is_ok})
        self._write()

    def say(self, line: str) -> None:
        """The part's one line, such as it is known by now."""
        self.record["line"] = line
        self._write()

    def note(self, text: str) -> None:
        """What a reader must know beside the figures, such as what was not shown and why."""
        self.record["notes"].append(text)
        self._write()

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Go on behind an error: what is inside has failed, and the rest of the part may still show something."""
        try:
            yield
        except NotShownHere:
            raise
        except Exception as error:
            # As text: its traceback would hold the tensors of what failed, and the card's memory with them.
            found = _as_text(error)
            self._failure = self._failure or {"why": f"{what}: {found['why']}", "traceback": found["traceback"]}
            self.note(f"{what}: {found['why']}")

    def end(self, error: BaseException | None = None) -> None:
        """The part is over, by an error or without one."""
        failed = [check["name"] for check in self.record["checks"] if not check["ok"]]
        if isinstance(error, NotShownHere):
            self.record |= {"status": "skipped", "why": str(error)}
        elif error is not None:
            self.record |= {"status": "failed", **_as_text(error)}
        elif self._failure:
            self.record |= {"status": "failed", **self._failure}
        elif failed:
            self.record |= {"status": "failed", "why": f"outside its limit: {', '.join(failed)}"}
        else:
            self.record["status"] = "done"
        self._write()

    def _write(self) -> None:
        write_whole(self.path, as_json(self.record))


def _as_text(error: BaseException) -> dict[str, str]:
    """What is wrong in one line, and the end of the traceback."""
    text = "".join(traceback.format_exception(error))
    why = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"why": why, "traceback": text[-LAST_CHARACTERS:]}


def as_json(record: Any) -> str:
    """Findings as JSON, in which a number that is not finite is a text: no reader takes a bare ``NaN``.

    Example:
        >>> as_json(float("-inf"))
        '"-inf"'
    """
    return json.dumps(_finite(record), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once: a reader finds the old text or the new one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
