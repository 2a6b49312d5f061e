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
from typing import Any, TypeVar

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


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        if not _loops:
            _loops.append(asyncio.new_event_loop())
            threading.Thread(target=_loops[0].run_forever, name="llm", daemon=True).start()
        return _loops[0]
