"""All processes that one process started, directly or not, also those whose own parents are gone.

They are known by a mark in their environment, which every process inherits from the one that starts it: neither a
session of its own nor the death of what is between them takes it away. A guard, a small process beside the family,
ends it when its head is gone without a word, as after ``kill -9``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from mralign_core.processes.boot import boot_id

MARK = "MRALIGN_FAMILY"
"""The environment variable: the identity of the head, a space, and what the family is for."""
_guards: list[subprocess.Popen[bytes]] = []
CLOCK_STEP_S = 3600.0
"""Without ``/proc``, two readings of one process's start differ by less, though the clock is set meanwhile."""
GUARD = ["-m", "mralign_core.processes.family"]
"""Arguments of Python that start a guard."""
MOST_PID = 2**31 - 1
KILLED_S = 1.5
"""For a family that was killed to be gone."""


class Identity(NamedTuple):
    """One process, told from all that had or will have its number: ``host:pid:start``."""

    host: str
    pid: int
    start: str
    """The start of its machine and its own, in clock ticks after that; it does not move when the clock is set."""

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.start}"

    @classmethod
    def parse(cls, text: str) -> Identity | None:
        """The identity that a text shows; None if it shows none."""
        with contextlib.suppress(ValueError):
            host, pid, start = text.rsplit(":", 2)
            if 0 < int(pid) <= MOST_PID and re.fullmatch(r"[0-9a-f]+(-[0-9]+)?", start):
                return cls(host, int(pid), start)
        return None

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this host."""
        return self.host == _host()

    @property
    def is_running(self) -> bool:
        """Whether it runs; of a process of another host nothing is known."""
        try:
            return _is_same(_start_of(self.pid), self.start)
        except ProcessLookupError:
            return False
        except OSError:
            return True  # what can't be seen is not known to be gone


def this_process() -> Identity:
    """The identity of the process that asks."""
    pid = os.getpid()
    return Identity(_host(), pid, _start_of(pid))


@functools.cache
def _host() -> str:
    """Names this host; a container that has the host's name, but process numbers of its own, is another."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def _boot() -> str:
    """Names this start of this machine; "" where that can't be told."""
    return boot_id().replace("-", "")[:12]


def _start_of(pid: int) -> str:
    """When a process started.

    Raises:
        ProcessLookupError: none has the number, or it has ended and nobody has buried it.
        PermissionError: it is another user's, and hidden.
    """
    if not _boot():
        return _clock_start_of(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        os.kill(pid, 0)  # tells a process that is hidden from one that is gone
        raise ProcessLookupError(pid) from None
    state, *fields = stat.rpartition(b")")[2].split()  # a program may have spaces and brackets in its name
    if state in (b"Z", b"X"):
        raise ProcessLookupError(pid)
    return f"{_boot()}-{int(fields[18])}"


def _clock_start_of(pid: int) -> str:
    """Seconds since the epoch at which a process started, where the system tells no more."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            raise ProcessLookupError(pid)
        return str(int(process.create_time()))
    except psutil.NoSuchProcess:
        raise ProcessLookupError(pid) from None
    except psutil.AccessDenied:
        raise PermissionError(pid) from None


def _is_same(start: str, other: str) -> bool:
    is_by_clock = start.isdecimal() and other.isdecimal()
    return abs(int(start) - int(other)) < CLOCK_STEP_S if is_by_clock else start == other


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


def end(
    processes: Sequence[psutil.Process],
    grace_s: float,
    number: signal.Signals = signal.SIGTERM,
    killed_s: float = 1.0,
) -> None:
    """Tell processes to end, and kill those that have not in time.

    Args:
        processes: all of them at once.
        grace_s: how long they may take, in seconds; 0 kills them at once.
        number: the signal that tells them.
        killed_s: how long those that are killed are waited for, in seconds.
    """
    if grace_s:
        for process in processes:
            tell(process, number)
        _, processes = psutil.wait_procs(processes, timeout=grace_s)
    for process in processes:
        tell(process, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=killed_s)


def end_family(mark: str, grace_s: float) -> None:
    """End all processes with this mark and all children of this one, those too that they start meanwhile.

    What the operating system can't end, such as a process that waits for a disk, is left after a moment.

    Args:
        mark: the family's.
        grace_s: between telling them and killing them, in seconds.
    """
    end(_members(mark), grace_s, killed_s=KILLED_S / 2)
    deadline = time.monotonic() + KILLED_S / 2
    while (left := _members(mark)) and (left_s := deadline - time.monotonic()) > 0:
        end(left, 0, killed_s=left_s)


def _members(mark: str) -> list[psutil.Process]:
    """The family, and the copies of this process: the operating system shows what they were born with, not the mark."""
    return list({*family(mark), *filter(_is_to_end, psutil.Process().children(recursive=True))})


def _is_to_end(process: psutil.Process) -> bool:
    """Whether it lives, and is no guard: a guard ends by itself after its family."""
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and process.cmdline()[1:3] != GUARD
    return False


def tell(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to a process, if it is still there and may be told."""
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def start_guard(mark: str) -> None:
    """Start the process that ends the family when this one is gone."""
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    process = subprocess.Popen(
        [sys.executable, *GUARD, mark],
        env=environment,
        stdin=subprocess.PIPE,  # closed by the operating system when this process ends, however it does
        start_new_session=True,
    )
    if not _guards:
        os.register_at_fork(after_in_child=_leave_guards)
    _guards.append(process)


def dismiss_guards() -> None:
    """End the guards of this process, which has ended its family itself."""
    while _guards:
        process = _guards.pop()
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILLED_S)


def _leave_guards() -> None:
    """In a copy of this process: the guards wait for the end of this one, not for the copy's."""
    for process in _guards:
        assert process.stdin
        process.stdin.close()
        process.returncode = 0  # nothing that the copy could wait for
    _guards.clear()


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
