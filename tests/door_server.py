"""A real Prefect server behind its door, in a process of its own."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

from flows.commands import door
from flows.commands.secret import recognise
from tests.ports import free_port
from tests.prefect_database import put_database

CHECKOUT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 180


@contextmanager
def behind_door(home, settings):
    """Start one with these settings; gives the server as ``secret.recognise`` does, and its process."""
    put_database(home)
    port = free_port()
    env = {**os.environ, **settings, "PREFECT_HOME": str(home)}
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        env.pop(name, None)
    log = home / f"server-{port}.log"
    command = [sys.executable, "-m", *door.module(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=CHECKOUT, env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield wait_until_recognised(f"http://127.0.0.1:{port}/api", home, process, log), process
        finally:
            process.terminate()
            process.wait(timeout=60)


def auth_of(server):
    """What lets a request in."""
    return httpx.BasicAuth(*server.token.split(":"))


def wait_until_recognised(api_url, home, process, log=None):
    """The server that a process started, as soon as it proves to be ours: one that has just started may be slow to."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (server := recognise(api_url, [home])):
        said = log.read_text(errors="replace")[-3000:] if log else ""
        assert process.poll() is None and time.monotonic() < deadline, f"the Prefect server did not start:\n{said}"
        time.sleep(0.3)
    return server
