"""Work whose asker has gone is ended: a browser that goes on, or reloads a page, leaves no search behind.

The request's thread enters :func:`asked_by`; whatever it does then, queries and loops over texts, asks
:func:`stop_if_left`, and queries register how to end them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from mralign_core.errors import UserError


class AskerLeftError(UserError):
    """Nobody waits for the answer any more."""


class Asker:
    """Who waits for an answer; one thread works for it, another may say that it has left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has_left = False
        self._ends: list[Callable[[], None]] = []

    def leave(self) -> None:
        """End what is under way for it, and what would begin; may be called again, where an end was not heard."""
        with self._lock:
            self._has_left = True
            for end in self._ends:
                end()

    def check(self) -> None:
        """Stop here where it has left.

        Raises:
            AskerLeftError: it has.
        """
        if self._has_left:
            raise AskerLeftError("nobody waits for this any more")

    @contextlib.contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """While this lasts, it is ended by a call when the asker leaves."""
        with self._lock:
            self.check()
            self._ends.append(end)
        try:
            yield
        finally:
            with self._lock:
                self._ends.remove(end)


_ASKER: ContextVar[Asker | None] = ContextVar("asker", default=None)


@contextlib.contextmanager
def asked_by(asker: Asker) -> Iterator[None]:
    """What this thread does meanwhile is for that asker."""
    token = _ASKER.set(asker)
    try:
        yield
    finally:
        _ASKER.reset(token)


def stop_if_left() -> None:
    """Stop here where nobody waits any more.

    Raises:
        AskerLeftError: nobody does.
    """
    if asker := _ASKER.get():
        asker.check()


def ending(end: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """While this lasts, it is ended by a call when whoever asked leaves."""
    asker = _ASKER.get()
    return asker.ending(end) if asker else contextlib.nullcontext()
