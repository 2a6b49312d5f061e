"""Files that are made when they are first asked for, and kept in a temporary folder as long as the process runs."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from mralign_core.workbench.interruption import stop_if_left

LOOKS_UP_S = 0.2
"""How often one that waits for a file asks whether anybody waits for it."""


class KeptFiles:
    """What several threads ask for at a time is made by one of them."""

    def __init__(self) -> None:
        self._making: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def file(self, name: str, make: Callable[[Path], object]) -> str:
        """The path of a file.

        Args:
            name: of the file; says all that it is made from.
            make: writes it to a path.

        Raises:
            AskerLeftError: whoever asked has left.
        """
        with _hold(self._making[name]):
            path = self._in_folder(name)
            if not path.exists():
                unfinished = path.with_suffix(".tmp")
                make(unfinished)
                unfinished.rename(path)
        return str(path)

    def _in_folder(self, name: str) -> Path:
        with self._lock:
            if self._folder and not Path(self._folder.name).is_dir():
                # Cleaners of /tmp take what is old. Under the old name another user could have made one since.
                self._folder.cleanup()
                self._folder = None
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="mralign-view-")
            return Path(self._folder.name, name)


@contextlib.contextmanager
def _hold(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock, unless the asker leaves while it is waited for: threads that wait are few."""
    while not lock.acquire(timeout=LOOKS_UP_S):
        stop_if_left()
    try:
        stop_if_left()
        yield
    finally:
        lock.release()
