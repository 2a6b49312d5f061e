"""Whether a container is well: a worker in it has asked the server for runs lately, or there is none in it."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

import psutil

WORKERS = (("-m", "deployments.worker"), ("worker", "start"))
"""What follows one another in the command line of a worker: this project's for processes, or Prefect's own."""
PORT = int(os.environ.get("PREFECT_WORKER_WEBSERVER_PORT", "8080"))
TIMEOUT_S = 10.0


def has_worker() -> bool:
    """Whether a worker runs in this container."""
    return any(_is_worker(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))


def _is_worker(command: Sequence[str]) -> bool:
    return any(tuple(command[place : place + 2]) in WORKERS for place in range(len(command)))


def worker_is_well() -> bool:
    """Whether the worker says that it has asked lately (``--with-healthcheck``)."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=TIMEOUT_S) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(0 if not has_worker() or worker_is_well() else 1)
