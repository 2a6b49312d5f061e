"""Progress of a run, where its user looks: a bar in the terminal, a progress artifact in the Prefect UI, log lines.

An artifact is there as long as the work is.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Protocol
from uuid import UUID

from prefect.artifacts import ProgressArtifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tasks.engine.session import open_session, root_flow_run_id

logger = logging.getLogger("mralign_core.progress")

ARTIFACT_EVERY_S = 3.0
LOG_EVERY_S = 15.0


class OnProgress(Protocol):
    """What the core calls as it works."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Say how much is done, and a few words on it."""


@contextlib.contextmanager
def progress(title: str, key: str) -> Iterator[OnProgress]:
    """Yield a callback that shows ``done`` of ``total`` in the terminal, the log and the Prefect UI.

    Args:
        title: what is being done, in a few words.
        key: artifact key in the UI (lower-case letters, digits, dashes).
    """
    in_prefect = (TaskRunContext.get() or FlowRunContext.get()) is not None
    last_log, last_artifact = time.monotonic(), -ARTIFACT_EVERY_S
    shared = open_session()
    bars = shared.kept("progress") if shared else {}
    with _bars.open() as bar, _removed_at_end(bars.setdefault(key, ShownProgress())) as shown:
        row = bar.add_task(title, total=None) if bar else None

        def report(done: int, total: int, note: str = "") -> None:
            nonlocal last_artifact, last_log
            now = time.monotonic()
            if bar is not None and row is not None:
                bar.update(row, completed=done, total=total, description=f"{title} · {note}" if note else title)
            elif now - last_log > LOG_EVERY_S or done == total:
                logger.info("%s: %d of %d%s", title, done, total, f" · {note}" if note else "")
                last_log = now
            if in_prefect and (now - last_artifact > ARTIFACT_EVERY_S or done == total):
                text = f"{title}: {done:,} of {total:,}" + (f" · {note}" if note else "")
                shown.publish(key, text, 100.0 * done / max(total, 1))
                last_artifact = now

        yield report


class _Bars:
    """The terminal's one live display, which tasks that run at the same time share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._display: Progress | None = None
        self._users = 0

    @contextlib.contextmanager
    def open(self) -> Iterator[Progress | None]:
        """The display while somebody uses it; None where there is no terminal."""
        if not sys.stderr.isatty():
            yield None
            return
        with self._lock:
            if self._display is None:
                columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
                console = Console(stderr=True)
                self._display = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
                self._display.start()
            display, self._users = self._display, self._users + 1
        try:
            yield display
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    display.stop()
                    self._display = None


_bars = _Bars()


class ShownProgress:
    """The progress artifact of one key, which the tasks of a run that share the key share too.

    Progress is for the eye: a server that can't take it must not stop the work.

    Args:
        page: id of the flow run on whose page it is; of the run that its user started when None.
    """

    def __init__(self, page: UUID | None = None) -> None:
        self._page = page
        self.lock = threading.Lock()
        self.num_users = 0
        self._artifact: UUID | None = None

    def publish(self, key: str, text: str, percent: float) -> None:
        """Show how much is done, in words and per cent."""
        try:
            with self.lock:
                if self._artifact:
                    update_progress_artifact(self._artifact, percent, description=text)
                else:
                    page = self._page or UUID(root_flow_run_id())
                    new = ProgressArtifact(progress=percent, key=key, description=text, flow_run_id=page)
                    self._artifact = new.create().id  # type: ignore[union-attr]
        except Exception as error:
            logger.debug("progress artifact not written: %s", error)

    def remove(self) -> None:
        """Take it off the page."""
        try:
            if self._artifact:
                with get_client(sync_client=True) as client:
                    client.delete_artifact(self._artifact)
        except Exception as error:
            logger.debug("progress artifact not removed: %s", error)
        self._artifact = None


@contextlib.contextmanager
def _removed_at_end(shown: ShownProgress) -> Iterator[ShownProgress]:
    """What is finished leaves the page, with the last task that shows it."""
    with shown.lock:
        shown.num_users += 1
    try:
        yield shown
    finally:
        with shown.lock:
            shown.num_users -= 1
            if not shown.num_users:
                shown.remove()
