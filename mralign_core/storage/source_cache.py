"""What modules' code came to when it was last read: a file beside Python's own compiled modules.

Code is brought into a normal form through its syntax tree, which takes two seconds for all that the stages import; each
process that makes a cache key did it anew. An entry is found by the content of the module's file, so an edited one is
read again; other versions of Python or of this package have files of their own. Where nothing can be written, such as
in a package that is installed for all users, each process does it anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any


class SourceCache:
    """Key → what is known by it, kept in a JSON file; threads and processes may share it.

    Of two processes that keep entries at the same time one's may be lost, and are made again.

    Args:
        path: of the file; its folder need not be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Any] | None = None
        self._is_kept = True
        self._lock = threading.Lock()

    def get(self, key: str) -> Any:
        """What is known, None if nothing is."""
        with self._lock:
            return self._all().get(key)

    def put(self, key: str, value: Any) -> None:
        """Know a value, which JSON can hold, in this process."""
        with self._lock:
            self._all()[key] = value
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

    def _all(self) -> dict[str, Any]:
        if self._entries is None:
            self._entries = {}
            with contextlib.suppress(OSError, ValueError):
                entries = json.loads(self._path.read_text(encoding="utf-8"))
                self._entries = entries if isinstance(entries, dict) else {}
        return self._entries


def source_cache(reader: Path) -> SourceCache:
    """The one for what a module of this package makes of sources.

    Args:
        reader: its file; another content of it has another cache.
    """
    made_by = hashlib.sha256(reader.read_bytes()).hexdigest()[:12]
    return SourceCache(reader.parent / "__pycache__" / f"sources.{sys.implementation.cache_tag}.{made_by}.json")
