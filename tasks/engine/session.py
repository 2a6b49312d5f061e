"""What tasks of one stage share and is dear to open: a client with its account, a sampler with its model.

A stage's flow opens a session around its tasks; a task by itself has its own. At the session's end all of it goes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from prefect.runtime import flow_run


class Session:
    """Things kept by kind and key, until the end. Hold ``lock`` while looking one up and opening it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.num_users = 0
        self._kept: dict[str, dict[Any, Any]] = {}
        self._at_end: dict[str, Callable[[], None]] = {}

    def kept(self, kind: str, at_end: Callable[[], None] | None = None) -> dict[Any, Any]:
        """What is kept of a kind, by key.

        Args:
            kind: what it is.
            at_end: called once when all of it is gone.
        """
        if at_end:
            self._at_end[kind] = at_end
        return self._kept.setdefault(kind, {})

    def once(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        """What is kept of a kind under a key, made the first time."""
        with self.lock:
            kept = self.kept(kind)
            if key not in kept:
                kept[key] = make()
            return kept[key]

    def end(self) -> None:
        """Let go of everything."""
        with self.lock:
            self._kept.clear()
            at_end = list(self._at_end.values())
            self._at_end.clear()
        for call in at_end:
            call()


_open: list[Session] = []
_opening = threading.Lock()


def open_session() -> Session | None:
    """The session that is open in this process, if one is."""
    return _open[-1] if _open else None


@contextlib.contextmanager
def session() -> Iterator[Session]:
    """The session that is open in this process, or a new one; it ends when the last that uses it leaves."""
    with _opening:
        if not _open:
            _open.append(Session())
        current = _open[-1]
        current.num_users += 1
    try:
        yield current
    finally:
        with _opening:
            current.num_users -= 1
            is_last = not current.num_users
            if is_last:
                _open.remove(current)
        if is_last:
            current.end()


def root_flow_run_id() -> str:
    """The flow run that a user started, which the one under way is part of; "" outside of flow runs."""
    return _root_flow_run_id(flow_run.id)


@functools.lru_cache(maxsize=64)  # Prefect asks the server, with a client of its own for each generation
def _root_flow_run_id(flow_run_id: str | None) -> str:
    return flow_run.root_flow_run_id if flow_run_id else ""


def run_name() -> str:
    """The pipeline run's name in the Prefect UI, so that its account can be found again; else this process."""
    run_id = root_flow_run_id()
    return f"{re.sub('[^A-Za-z0-9._-]', '-', flow_run.name or '')}-{run_id[:8]}" if run_id else _process_name()


@functools.cache
def _process_name() -> str:
    return f"{time.strftime('local-%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}"
