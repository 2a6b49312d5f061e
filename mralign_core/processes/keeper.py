"""A process beside a foreign program, which ends it, and all that it started, when this run is gone.

``python keeper.py PID COMMAND…`` runs a command that knows nothing of a lifeline
(:mod:`.supervise`), as a server does. The keeper leads a session of its own, and looks a few times a second whether
process PID, its parent, is there. A program that changes its title, as vLLM's engine does, writes over the environment
that the system shows of it, so the marks of :mod:`.family` can be lost: its processes are known by the session.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import psutil

LOOK_S = 0.2
COMMAND_S = 8.0
"""Between telling the command to end and killing all that it started."""
_ending = False


def keep(parent: int, command: Sequence[str]) -> int:
    """Run a command until it ends, its parent is gone, or SIGTERM comes; returns its exit code.

    Args:
        parent: process that started this one.
        command: program and arguments.
    """
    signal.signal(signal.SIGTERM, _end)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    for number in (signal.SIGINT, signal.SIGHUP):  # only now, as a command inherits what is ignored
        signal.signal(number, signal.SIG_IGN)
    while not _ending and os.getppid() == parent and process.poll() is None:
        time.sleep(LOOK_S)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(COMMAND_S)
    for other in _of_session():
        with contextlib.suppress(psutil.Error):
            other.kill()
    return process.wait()


def _end(*_: object) -> None:
    global _ending
    _ending = True


def _of_session() -> Iterator[psutil.Process]:
    """The other processes of this session, which are the command and what it started."""
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) == os.getsid(0) and process.pid != os.getpid():
                yield process


if __name__ == "__main__":
    code = keep(int(sys.argv[1]), sys.argv[2:])
    sys.exit(code if code >= 0 else 128 - code)
