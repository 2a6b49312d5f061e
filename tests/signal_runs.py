"""Start ``mralign``, send it a signal at a moment, and see how it ends; for tests and for benchmarks."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.ports import free_port
from tests.prefect_database import put_database

MRALIGN = Path(sys.executable).with_name("mralign")
TEST = "MRALIGN_SIGNAL_TEST"
"""In the environment of all that a command starts, however it starts it."""


class Ended(NamedTuple):
    """How a command ended after a signal."""

    seconds: float
    code: int | None
    """None where it did not end."""
    left: list[str]
    """Command lines of processes that it left."""
    output: str
    states: dict[str, str]
    """Flow → state of its last run in the embedded server's records."""


def signal_run(
    folder: Path,
    arguments: list[str],
    *,
    after: str | Callable[[], bool] = "",
    seconds: float = 0.0,
    number: signal.Signals = signal.SIGTERM,
    to_group: bool = True,
    most_s: float = 60.0,
    env: dict[str, str] | None = None,
) -> Ended:
    """Run ``mralign`` in a folder, signal it, and wait for its end.

    Args:
        folder: where it works, and where its embedded server keeps its records.
        arguments: of ``mralign``.
        after: a text of its output to wait for first, or what says whether the moment has come.
        seconds: to wait after that.
        number: the signal.
        to_group: to its process group, as ``timeout`` sends it, or to the process alone.
        most_s: how long to wait for the end; then it is killed.
        env: variables besides.
    """
    log = folder / "output"
    if after:  # else it may be the making of the database that is interrupted
        home = folder / ".mralign" / "prefect"
        home.mkdir(parents=True, exist_ok=True)
        put_database(home)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    clean |= {"MRALIGN_PORT": str(free_port()), "OMP_NUM_THREADS": "1", TEST: str(folder), **(env or {})}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [MRALIGN, *arguments], cwd=folder, env=clean, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_until(after if callable(after) else lambda: after in log.read_text(errors="replace"), process, log)
        time.sleep(seconds)
        started = time.monotonic()
        (os.killpg if to_group else os.kill)(process.pid, number)
        code = _wait(process, most_s)
        took = time.monotonic() - started
        return Ended(took, code, _left(folder), log.read_text(errors="replace"), _states(folder))
    finally:
        for each in _family(folder):
            each.kill()
        process.wait()


def _wait_until(has_come, process, log, most_s=300.0):
    deadline = time.monotonic() + most_s
    while not has_come():
        output = log.read_text(errors="replace")[-3000:]
        assert process.poll() is None, f"it ended before its moment:\n{output}"
        assert time.monotonic() < deadline, f"its moment never came:\n{output}"
        time.sleep(0.1)


def _wait(process, most_s):
    try:
        return process.wait(most_s)
    except subprocess.TimeoutExpired:
        return None


def _family(folder):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TEST) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _left(folder):
    found = []
    for process in _family(folder):
        with suppress(psutil.NoSuchProcess):
            found.append(" ".join(process.cmdline()))
    return found


def _states(folder):
    records = folder / ".mralign" / "prefect" / "prefect.db"
    if not records.exists():
        return {}
    query = (
        "select flow.name, flow_run.state_type from flow_run join flow on flow.id = flow_run.flow_id "
        "order by flow_run.created"
    )
    with closing(sqlite3.connect(records)) as found:
        try:
            return dict(found.execute(query).fetchall())
        except sqlite3.OperationalError:  # it was not yet made
            return {}
