"""The processes that ``make serve`` runs: their logs, which grow to a bound, and what becomes of one that ends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from deployments.steps import CHECKOUT

PYTHON = (sys.executable, "-m")
LOG_BYTES = 10_000_000
"""A log that is larger is put aside."""
LOGS_KEPT = 3
"""Of each process, besides the one that it prints to."""
SHORT_LIFE_S = 30.0
MOST_SHORT_LIVES = 5
"""One after another; then something is wrong that starting again does not mend."""
LONGEST_WAIT_S = 60.0
LAST_LINES = 15


class ServeError(RuntimeError):
    """Something could not be started, or stopped by itself; the message says what and where its log is."""


class Child:
    """A process that prints to a log file of its name, out of reach of the terminal's Ctrl-C.

    Args:
        name: of the log.
        command: arguments of ``python -m``.
        env: its environment, with ``PREFECT_HOME``.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.name = name
        self.log = Path(env["PREFECT_HOME"]) / "logs" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._command = [*PYTHON, *command]
        self._env = dict(env)
        self._short_lives = 0
        self._again_at: float | None = None
        self.start()

    def start(self) -> None:
        """Start it; what it prints is added to its log."""
        rotate(self.log)
        self._started, self._again_at = time.monotonic(), None
        with self.log.open("ab") as output:
            output.write(f"--- started {datetime.now():%Y-%m-%d %H:%M:%S}\n".encode())
            output.flush()
            self.process = subprocess.Popen(
                self._command,
                cwd=CHECKOUT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Pass if it still runs.

        Raises:
            ServeError: it has ended.
        """
        if self.process.poll() is not None:
            raise ServeError(self._epitaph())

    def plan_restart(self) -> float | None:
        """Seconds until it is started again, said once after each end; None while it runs or waits for that.

        Raises:
            ServeError: it has ended at once, time after time.
        """
        if self.process.poll() is None or self._again_at is not None:
            return None
        now = time.monotonic()
        self._short_lives = self._short_lives + 1 if now - self._started < SHORT_LIFE_S else 1
        if self._short_lives >= MOST_SHORT_LIVES:
            raise ServeError(f"{self._short_lives} times one after another, {self._epitaph()}")
        wait = min(2.0**self._short_lives / 2, LONGEST_WAIT_S)
        self._again_at = now + wait
        return wait

    def restart_if_due(self) -> None:
        """Start it again once the time has come."""
        if self._again_at is not None and time.monotonic() >= self._again_at:
            self.start()

    def _epitaph(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        ended = f"{self.name} ended with exit status {self.process.returncode}"
        return "\n  ".join([f"{ended}; the end of {self.log}:", *lines])


def rotate(log: Path) -> None:
    """Put a log that has grown too large aside, and drop the oldest of those put aside.

    The file itself stays, emptied: the process that appends to it goes on there.
    """
    if not log.exists() or log.stat().st_size <= LOG_BYTES:
        return
    for number in range(LOGS_KEPT, 1, -1):
        older = log.with_suffix(f".log.{number - 1}")
        if older.exists():
            older.replace(log.with_suffix(f".log.{number}"))
    log.with_suffix(".log.1").write_bytes(log.read_bytes())
    with log.open("rb+") as file:
        file.truncate()
