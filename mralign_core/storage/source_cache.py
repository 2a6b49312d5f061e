"""What modules' code came to when it was last read: a file beside Python's own compiled modules.

Code is brought into a normal form through its syntax tree, which takes two seconds for all that the stages import; each
process that makes a cache key did it anew. An entry holds for one content of the module's file: an edited one is read
again, and takes its place. Other versions of Python have files of their own, and so has each normal form. Where nothing
can be written, such as in a package that is installed for all users, each process does it anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter


class Known(NamedTuple):
    """What a module's source comes to."""

    content: str
    """Digest of its file."""
    code: str
    """Digest of the code in its normal form: no comments, docstrings or layout."""
    imports: list[str]
    """What import statements may mean: modules, and attributes, which have no file."""


_ENTRIES = TypeAdapter(dict[str, Known])


def file_of_sources(folder: Path, form: int) -> Path:
    """Where what is known is kept, beside the compiled modules of a folder.

    Args:
        folder: of the module that reads sources.
        form: number of the normal form, and of what counts as an import.
    """
    return folder / "__pycache__" / f"sources.{sys.implementation.cache_tag}.{form}.json"


class SourceCache:
    """Module → what is known of it, kept in a JSON file; threads and processes may share it.

    Of two processes that keep entries at the same time one's may be lost, and are made again.

    Args:
        path: of the file; its folder need not be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Known] | None = None
        self._is_kept = True
        self._lock = threading.Lock()

    def get(self, module: str) -> Known | None:
        """What is known, None if nothing is."""
        with self._lock:
            return self._all().get(module)

    def put(self, module: str, known: Known) -> None:
        """Know something in this process."""
        with self._lock:
            self._all()[module] = known
            self._is_kept = False

    def keep(self) -> None:
        """Write what is new for other processes, where that can be done."""
        with self._lock:
            if self._is_kept:
                return
            self._is_kept = True
            beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(exist_ok=True)
                beside.write_text(json.dumps(self._all()), encoding="utf-8")
                beside.replace(self._path)

    def _all(self) -> dict[str, Known]:
        if self._entries is None:
            self._entries = {}
            with contextlib.suppress(OSError, ValueError):
                self._entries = _ENTRIES.validate_json(self._path.read_bytes())
        return self._entries
