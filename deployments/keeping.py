"""What a user changed in the UI stays when ``prefect.yaml`` is deployed again, and new defaults arrive elsewhere.

What was deployed last is kept in a file under ``PREFECT_HOME``. A value on the server that differs from it is the
user's. Where nothing is known of the last time, all that differs from what is to be deployed is taken for the user's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

KEPT = "kept your"
"""Begins a line that says what was kept."""
FILE = "mr-align-deployed.json"
ABSENT = "<absent>"
"""Stands for a value that is not there."""
MOST_NAMES = 12
"""In one line."""

Values = dict[str, Any]


class Merged(NamedTuple):
    """What is to be on the server."""

    value: Any
    kept: tuple[str, ...]
    """Dotted names of what is the user's."""


def merge(last: Any, current: Any, new: Any, name: str = "") -> Merged:
    """Bring new defaults to what a user may have changed, field by field.

    Args:
        last: what was deployed last; :data:`ABSENT` where that is not known.
        current: what is on the server.
        new: what is to be deployed.
        name: of the value, for the names of its fields.

    Example:
        >>> merge({"a": 1, "b": 1}, {"a": 5, "b": 1}, {"a": 2, "b": 2})
        Merged(value={'a': 5, 'b': 2}, kept=('a',))
    """
    if current in (last, new):
        return Merged(new, ())
    if new == ABSENT and isinstance(last, dict) and name.startswith("config."):
        new = {}  # a form's section: what is left out of it is the preset's
    if isinstance(current, dict) and isinstance(new, dict):
        fields: Values = {}
        kept: list[str] = []
        before = last if isinstance(last, dict) else {key: new[key] for key in new if key in current}
        for key in [*new, *(key for key in current if key not in new)]:
            field = f"{name}.{key}" if name else key
            merged = merge(before.get(key, ABSENT), current.get(key, ABSENT), new.get(key, ABSENT), field)
            kept += merged.kept
            if merged.value != ABSENT:
                fields[key] = merged.value
        return Merged(fields, tuple(kept))
    return Merged(current, (name,))


def kept_line(owner: str, kind: str, names: tuple[str, ...]) -> str:
    """The line that says what was kept.

    Args:
        owner: whose values they are.
        kind: the values.
        names: of the fields that were kept; one without a name is the whole.
    """
    named = [name.removeprefix("config.") for name in names if name]
    more = f" and {len(named) - MOST_NAMES} more" if len(named) > MOST_NAMES else ""
    which = f": {', '.join(named[:MOST_NAMES])}{more}" if named else ""
    return f"{KEPT} {kind.replace('_', ' ')} of {owner}{which}"


class Record:
    """The file that knows what was deployed last, and what was on the server when a deployment began.

    The second is there only while one is under way: where it was cut off, the server holds the new defaults, and what
    is the user's can be read here alone.

    Args:
        home: ``PREFECT_HOME``.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / FILE
        found = self._read()
        self.last: Values = found.get("last", {})
        self.unfinished: Values = found.get("unfinished", {})

    def _read(self) -> dict[str, Values]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return {name: dict(found[name]) for name in ("last", "unfinished")}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            print(f"{self._path} can't be read ({error}): all that differs from the defaults is taken for yours")  # noqa: T201
            return {}

    def begin(self, current: Mapping[str, Any]) -> None:
        """Note what is on the server; what an attempt that was cut off has noted is the user's still."""
        self.unfinished = {**current, **self.unfinished}
        self._write()

    def note(self, deployed: Mapping[str, Any]) -> None:
        """Note what has been deployed, by the id of what has it."""
        self.last |= deployed
        self._write()

    def end(self) -> None:
        """Note that nothing is under way."""
        self.unfinished = {}
        self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump({"last": self.last, "unfinished": self.unfinished}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._path)
