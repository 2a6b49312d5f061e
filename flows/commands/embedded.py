"""The embedded Prefect server: a process of this command's own, which ends with it.

Prefect starts one too where no server is named, but one that every web page and every user of this machine can use, and
in this process's group: a signal to the group, as ``timeout`` and a CI's cancel send it, would take the server before
the run has told it that it ends, and ``kill -9`` of the run would leave the server behind.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from flows.commands import door
from flows.commands.secret import OwnServer
from mralign_core.errors import UserError
from mralign_core.processes.family import MARK, start_guard

START_TIMEOUT_S = 120.0
"""It takes 20 to 36 s on a busy machine."""
STOP_TIMEOUT_S = 5.0
ATTEMPTS = 3
"""Another program may take the port before the server does."""

Find = Callable[[str], OwnServer | None]
"""Gives the server of ours at the URL of an API; None as long as none is up there."""


class EmbeddedServerError(UserError):
    """The embedded server could not be started."""


def start_embedded_server(find: Find, meanwhile: Callable[[], object] = lambda: None) -> OwnServer:
    """Start a server that ends with this process, however it does, and give it as it was found.

    Args:
        find: how it is found.
        meanwhile: what to do while it starts.

    Raises:
        EmbeddedServerError: it ended, or did not answer in time.
    """
    if MARK in os.environ:
        start_guard(os.environ[MARK])
    for _ in range(ATTEMPTS):
        port = _free_port()
        url = f"http://{door.HOST}:{port}/api"
        process = _start(port)
        atexit.register(_stop, process)
        meanwhile()
        if server := _wait_until_up(process, url, find):
            return server
    raise EmbeddedServerError(
        f"the embedded Prefect server ended with exit status {process.returncode}; what it printed is above. Is "
        f"{os.environ['PREFECT_HOME']} a folder you can write to, with room left? `make serve` starts a server to use "
        "instead"
    )


def _start(port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", *door.module(port, embedded=True)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def _wait_until_up(process: subprocess.Popen[bytes], url: str, find: Find) -> OwnServer | None:
    """The server; None if its process ended before it was up.

    Raises:
        EmbeddedServerError: it did neither in time.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None:
        if server := find(url):
            return server
        if time.monotonic() > deadline:
            raise EmbeddedServerError(
                f"the embedded Prefect server did not answer within {START_TIMEOUT_S:.0f} s: start the run again when "
                "the machine is less busy, or start `make serve` and let the run report there"
            )
        time.sleep(0.1)
    return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((door.HOST, 0))
        return int(probe.getsockname()[1])
