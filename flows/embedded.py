"""The embedded Prefect server: a process of this command's own, which ends with it.

Prefect would start one too where no server is named, but one that every web page and every user of this machine can
use.
"""

from __future__ import annotations

import atexit
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from flows import door
from mralign_core.errors import UserError

START_TIMEOUT_S = 120.0
"""It takes 20 to 36 s on a busy machine."""
STOP_TIMEOUT_S = 10.0


class EmbeddedServerError(UserError):
    """The embedded server could not be started."""


def start_embedded_server(is_up: Callable[[str], bool]) -> str:
    """Start a server that ends with this process; returns the URL of its API.

    Args:
        is_up: whether there is a server at a URL.

    Raises:
        EmbeddedServerError: it ended, or did not answer in time.
    """
    with socket.socket() as probe:
        probe.bind((door.HOST, 0))
        port = int(probe.getsockname()[1])
    # In a session of its own, so that Ctrl-C ends the run first, which still reports to it.
    command = [sys.executable, "-m", *door.module(port, embedded=True)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    atexit.register(_stop, process)
    url = f"http://{door.HOST}:{port}/api"
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_up(url):
        if process.poll() is not None:
            raise EmbeddedServerError(f"the embedded Prefect server ended with exit status {process.returncode}")
        if time.monotonic() > deadline:
            raise EmbeddedServerError(f"the embedded Prefect server did not answer within {START_TIMEOUT_S:.0f} s")
        time.sleep(0.1)
    return url


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
