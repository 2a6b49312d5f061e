"""A flow run of the command line: the server knows which process it is in, and is told when a signal ends it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

from flows.commands.server import wait_for_records
from mralign_core.errors import UserError

TELL_S = 2.5
"""For the server to hear of the end; less than a process that a signal ends has for its last words."""
REMEDY = "run it again to go on: what it finished is in the store"

_has_begun = threading.Event()


def run_flow(flow: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a flow to its end, and wait until the server has its records; returns its state.

    Of an error that a user can act on the log has the message, which says it all, and no traceback.
    """
    from prefect import tags

    from flows.commands.settling import process_tag

    _has_begun.set()
    _log_user_errors_briefly()
    with tags(process_tag()):
        state = flow(*args, **kwargs, return_state=True)
    wait_for_records(state)
    return state


def last_words(number: signal.Signals) -> str:
    """Tell the server that a signal ends this process's runs; returns what to tell the user."""
    stopped = f"Stopped by {number.name}"
    if not _has_begun.is_set():
        return f"{stopped}."
    settled: list[list[str]] = []
    teller = threading.Thread(target=lambda: settled.append(_settle(f"{stopped}.")), daemon=True)
    teller.start()
    teller.join(TELL_S)
    if settled:
        return f"{stopped}; the Prefect server knows that the run has ended. {REMEDY.capitalize()}."
    return (
        f"{stopped}; the Prefect server could not be told: the run may show as Running there until `make serve` or "
        f"`mralign run` starts anew. {REMEDY.capitalize()}."
    )


def _settle(message: str) -> list[str]:
    from prefect.client.orchestration import get_client

    from flows.commands.settling import crash_own_runs

    with get_client(sync_client=True) as client:
        return crash_own_runs(client, message)


def _log_user_errors_briefly() -> None:
    """Keep Prefect from logging a traceback, at every level of the run, for an error whose message says it all."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback)  # once, however often it is added


def _without_traceback(record: logging.LogRecord) -> bool:
    from mralign_core.llm.faults import EndpointUnavailableError

    if record.exc_info and isinstance(record.exc_info[1], UserError | EndpointUnavailableError):
        record.exc_info = record.exc_text = None
    return True
