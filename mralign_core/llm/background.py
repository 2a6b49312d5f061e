"""One event loop for all requests of the process, on a thread of its own.

litellm keeps its connections by event loop, and can only close those of all loops at once: loops that come
and go, or several at a time (one a thread), break each other's connections. With one loop that stays,
callers may be any threads, one with a running loop of its own (a notebook) included, and connections are
reused from call to call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

Name = TypeVar("Name")
Result = TypeVar("Result")

_starting = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []


def run(
    work: Callable[[Callable[[int], None]], Coroutine[Any, Any, Result]],
    on_report: Callable[[int], None] = lambda _: None,
) -> Result:
    """Run a coroutine to its end, and meanwhile pass its reports on, in the calling thread.

    Args:
        work: makes the coroutine; its argument takes a report.
        on_report: called with each report, in order, outside of the event loop, so that it may block.
    """
    reports: SimpleQueue[int | None] = SimpleQueue()
    future = asyncio.run_coroutine_threadsafe(work(reports.put), _loop())
    future.add_done_callback(lambda _: reports.put(None))
    try:
        for report in iter(reports.get, None):
            on_report(report)
        return future.result()
    except BaseException:
        future.cancel()
        raise


class Crew(Generic[Name, Result]):
    """Coroutines that a thread starts one by one, and whose results it takes as they end, each under its name."""

    def __init__(self) -> None:
        self.num_under_way = 0
        self._tasks: set[asyncio.Task[Result]] = set()
        self._ended: SimpleQueue[tuple[Name, asyncio.Task[Result]]] = SimpleQueue()

    def start(self, name: Name, work: Callable[[], Coroutine[Any, Any, Result]]) -> None:
        """Start a coroutine."""
        self.num_under_way += 1
        _loop().call_soon_threadsafe(self._create, name, work)

    def next_ended(self) -> tuple[Name, Result]:
        """Wait for one to end; raises what it raised."""
        name, task = self._ended.get()
        self.num_under_way -= 1
        return name, task.result()

    def close(self, *, cancel: bool) -> None:
        """Wait until all have ended, cancelled or left to end by themselves; their results are lost."""
        if cancel:
            _loop().call_soon_threadsafe(lambda: [task.cancel() for task in self._tasks])
        while self.num_under_way:
            _, task = self._ended.get()
            self.num_under_way -= 1
            if not task.cancelled():
                task.exception()  # else asyncio complains that nobody looked at it

    def _create(self, name: Name, work: Callable[[], Coroutine[Any, Any, Result]]) -> None:
        def end(task: asyncio.Task[Result]) -> None:
            self._tasks.discard(task)
            self._ended.put((name, task))

        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(end)


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        if not _loops:
            _loops.append(asyncio.new_event_loop())
            threading.Thread(target=_loops[0].run_forever, name="llm", daemon=True).start()
        return _loops[0]
