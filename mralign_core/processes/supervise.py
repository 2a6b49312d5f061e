"""Child processes that cannot outlive this one, and what they tell it while they work.

Each child connects to a socket of its supervisor and sends one JSON object a line. The connection is a lifeline as
well: the operating system closes it when either side dies, however it dies. A child whose supervisor is gone ends at
once, and a supervisor knows of a child that ended without a word, also when another program has started it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

POLL_S = 0.5
"""How long the supervisor waits before it looks again whether it is to stop."""
SHORT_S = 0.05
GRACE_S = 10.0
"""Between asking processes to end and killing them, first the command and then its children."""
CHUNK_BYTES = 1 << 16

STARTER = -1
"""The rank of a process that starts the others."""

ChildMessage = dict[str, Any]
"""A child's message has a ``kind`` and its ``rank``. The supervisor adds the kinds ``output`` (a line of text that a
process printed) and ``lost`` (a child that ended without a word)."""


class Supervisor:
    """Starts a command whose processes connect to a socket, and ends them all. A context manager.

    Args:
        command: program and arguments; it may start the children by way of another program. Each child runs
            ``python -m mralign_core.processes.child``.
        address: path of the socket to make; a system allows about 100 characters.
        environment: variables for the command, beside those of this process.
    """

    def __init__(self, command: Sequence[str], address: Path, environment: dict[str, str] | None = None) -> None:
        self._address = address
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(address))
        self._listener.listen()
        self._children: dict[int, _Child] = {}
        self._deadline = math.inf
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # so that one signal reaches the whole group, and Ctrl-C only this process
        )

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def messages(self) -> Iterator[ChildMessage]:
        """What the processes say, one message after another, until all have ended or :meth:`stop_listening_in` says."""
        output = self._process.stdout
        assert output is not None
        text = _Lines()
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(output, selectors.EVENT_READ)
            while (len(selector.get_map()) > 1 or self._process.poll() is None) and time.monotonic() < self._deadline:
                for key, _ in selector.select(POLL_S):
                    if key.fileobj is self._listener:
                        child = _Child(self._listener.accept()[0])
                        self._children[child.connection.fileno()] = child
                        selector.register(child.connection, selectors.EVENT_READ)
                        continue
                    chunk = _read(key.fd)
                    if not chunk:
                        selector.unregister(key.fileobj)
                    if key.fileobj is output:
                        lines = text.add(chunk)
                        yield from ({"kind": "output", "text": line.decode(errors="replace")} for line in lines)
                    else:
                        yield from self._children[key.fd].hear(chunk)

    def stop_listening_in(self, seconds: float) -> None:
        """End :meth:`messages` then, whatever the processes do."""
        self._deadline = time.monotonic() + seconds

    def exit_code(self) -> int:
        """The command's, once :meth:`messages` has come to its end."""
        return self._process.wait()

    def _end(self) -> None:
        self._listener.close()
        self._address.unlink(missing_ok=True)
        for child in self._children.values():
            child.connection.close()
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        end = time.monotonic() + GRACE_S
        while (deaf := [child for child in self._children.values() if child.is_running]) and time.monotonic() < end:
            time.sleep(SHORT_S)
        for child in deaf:
            child.kill()
        if self._process.stdout:
            self._process.stdout.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class Lifeline:
    """A child's end of the connection: it reports, and ends this process when the supervisor is gone.

    A context manager, which says goodbye at its end.

    Args:
        address: path of the supervisor's socket.
        rank: of this process among the children.

    Raises:
        OSError: there is no supervisor any more.
    """

    def __init__(self, address: Path, rank: int) -> None:
        self.rank = rank
        self._lock = threading.Lock()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(address))
        threading.Thread(target=self._watch, daemon=True).start()
        self.send("hello", pid=os.getpid())

    def send(self, kind: str, **values: Any) -> None:
        """Send one message of JSON values."""
        line = json.dumps({"kind": kind, "rank": self.rank, **values}) + "\n"
        with self._lock:
            self._connection.sendall(line.encode())

    def __enter__(self) -> Lifeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye: what follows is no accident."""
        self.send("bye")

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.recv(1)  # nothing is ever sent: it returns when the other end is closed
        os._exit(1)


class LifelineHandler(logging.Handler):
    """Sends log records to the supervisor.

    Args:
        lifeline: the connection.
    """

    def __init__(self, lifeline: Lifeline) -> None:
        super().__init__()
        self._lifeline = lifeline

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        self._lifeline.send("log", name=record.name, level=record.levelno, text=self.format(record))


class _Child:
    """The supervisor's end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._process: psutil.Process | None = None
        self._rank = -1
        self._explained_itself = False
        self._lines = _Lines()

    def hear(self, chunk: bytes) -> Iterator[ChildMessage]:
        """The messages that a chunk completes; an empty chunk says that the child has ended."""
        for line in self._lines.add(chunk):
            message = json.loads(line)
            if message["kind"] == "hello":
                self._rank = message["rank"]
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._process = psutil.Process(message["pid"])
            elif message["kind"] == "bye":
                self._explained_itself = True
            else:
                self._explained_itself |= message["kind"] == "error"
                yield message
        if not chunk and not self._explained_itself:
            yield {"kind": "lost", "rank": self._rank}

    @property
    def is_running(self) -> bool:
        """Whether its process runs; one that its starter has not buried yet does not."""
        if self._process is None or not self._process.is_running():
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            return self._process.status() != psutil.STATUS_ZOMBIE
        return False

    def kill(self) -> None:
        """End its process, though it hears nothing."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.kill() if self._process else None


class _Lines:
    """Whole lines out of chunks."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, chunk: bytes) -> list[bytes]:
        """The lines that a chunk completes; an empty chunk is the end, which completes the last."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if not chunk and self._rest:
            lines, self._rest = [self._rest], b""
        return lines


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, CHUNK_BYTES)
    except ConnectionResetError:  # the child was killed with something unread
        return b""
