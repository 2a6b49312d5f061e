"""All processes that one process started, directly or not, also those whose own parents are gone.

They are known by a mark in their environment, which every process inherits from the one that starts it: neither a
session of its own nor the death of what is between them takes it away. A guard, a small process beside the family,
ends it when its head is gone without a word, as after ``kill -9``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import psutil

MARK = "MRALIGN_FAMILY"
"""The environment variable: the identity of the head, a space, and what the family is for."""
_guards: list[subprocess.Popen[bytes]] = []
SAME_START_S = 2.0
"""Two readings of one process's start differ by less, whatever the clock does meanwhile."""


class Identity(NamedTuple):
    """One process, told from all that had or will have its number: ``host:pid:start``."""

    host: str
    pid: int
    start: int
    """Seconds since the epoch."""

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.start}"

    @classmethod
    def parse(cls, text: str) -> Identity | None:
        """The identity that a text shows; None if it shows none."""
        with contextlib.suppress(ValueError):
            host, pid, start = text.rsplit(":", 2)
            return cls(host, int(pid), int(start))
        return None

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this host."""
        return self.host == socket.gethostname()

    @property
    def is_running(self) -> bool:
        """Whether it runs; of a process of another host nothing is known."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.start) < SAME_START_S
            return same and process.status() != psutil.STATUS_ZOMBIE
        return False


def this_process() -> Identity:
    """The identity of the process that asks."""
    return Identity(socket.gethostname(), os.getpid(), int(psutil.Process().create_time()))


def mark_family(purpose: str) -> str:
    """Mark all that this process starts from now on; returns the mark.

    Args:
        purpose: what the family is for, to find it again when its head is gone.
    """
    os.environ[MARK] = f"{this_process()} {purpose}"
    return os.environ[MARK]


def family(mark: str) -> list[psutil.Process]:
    """The processes with this mark; its head has none."""
    return [process for process, found in _marked() if found == mark]


def abandoned(purpose: str) -> list[psutil.Process]:
    """The processes of families for this purpose whose head is gone."""
    found = []
    for process, mark in _marked():
        head, _, its_purpose = mark.partition(" ")
        identity = Identity.parse(head)
        if its_purpose == purpose and identity and identity.is_here and not identity.is_running:
            found.append(process)
    return found


def end(processes: Sequence[psutil.Process], grace_s: float, number: signal.Signals = signal.SIGTERM) -> None:
    """Tell processes to end, and kill those that have not in time.

    Args:
        processes: all of them at once.
        grace_s: how long they may take, in seconds; 0 kills them at once.
        number: the signal that tells them.
    """
    if grace_s:
        for process in processes:
            tell(process, number)
        _, processes = psutil.wait_procs(processes, timeout=grace_s)
    for process in processes:
        tell(process, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=1.0)


def end_family(mark: str, grace_s: float) -> None:
    """End all processes with this mark, those too that they start meanwhile."""
    end(family(mark), grace_s)
    while left := family(mark):
        end(left, 0)


def tell(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to a process, if it is still there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def start_guard(mark: str) -> None:
    """Start the process that ends the family when this one is gone."""
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    process = subprocess.Popen(
        [sys.executable, "-m", "mralign_core.family", mark],
        env=environment,
        stdin=subprocess.PIPE,  # closed by the operating system when this process ends, however it does
        start_new_session=True,
    )
    _guards.append(process)


def dismiss_guards() -> None:
    """End the guards of this process, which has ended its family itself."""
    while _guards:
        process = _guards.pop()
        process.kill()
        process.wait()


def guard(mark: str) -> None:
    """Wait until the process that started this one is gone, then end its family."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_family(mark, grace_s=1.0)


def _marked() -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            mark = process.environ().get(MARK)
            if mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process, mark


if __name__ == "__main__":
    guard(sys.argv[1])
