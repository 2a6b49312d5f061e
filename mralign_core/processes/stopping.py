"""What a signal does to a command: it ends within seconds, and its children with it, whatever it is busy with.

SIGINT, SIGTERM and SIGHUP raise :class:`Stopped` in the main thread, which then unwinds as after any error. A thread
beside it watches the clock: a main thread that waits for something, such as other threads or a server that is gone, is
not waited for. A second Ctrl-C ends everything at once. The exit code is 128 and the signal's number.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn

from mralign_core.processes.family import MARK, dismiss_guards, end_family, mark_family

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UNWIND_S = 4.0
"""For the main thread to come to an end by itself."""
LAST_WORDS_S = 3.0
FAMILY_S = 1.0
"""Between telling children to end and killing them."""

LastWords = Callable[[signal.Signals], str]


class Stopped(BaseException):
    """A signal asked this process to end.

    Args:
        number: which.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.number = number


class EndingOnSignals:
    """Inside the ``with``, a signal ends this process and its children. In the main thread only.

    SIGHUP that was ignored before, as ``nohup`` has it, stays ignored. SIGINT does not: a shell without job control
    ignores it for what it starts with ``&``, and there it could not end a command at all.

    Args:
        last_words: called once before the end, in a thread of its own; what it returns is printed.
        purpose: what the processes that this one starts are for, as :func:`~.family.mark_family` has it.
        last_words_s: how long the last words may take, in seconds.
    """

    def __init__(self, last_words: LastWords, purpose: str = "command", last_words_s: float = LAST_WORDS_S) -> None:
        self._last_words = last_words
        self._last_words_s = last_words_s
        self._purpose = purpose
        self._number: signal.Signals | None = None
        self._has_raised = self._is_entered = False
        self._finishing = threading.Lock()
        self._wakeup = os.pipe()
        os.set_blocking(self._wakeup[1], False)

    def __enter__(self) -> EndingOnSignals:
        self._former_mark = os.environ.get(MARK)
        self._mark = mark_family(self._purpose)
        has_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._heard = [number for number in STOP_SIGNALS if not (number == signal.SIGHUP and has_nohup)]
        self._handlers = {number: signal.signal(number, self._raise) for number in self._heard}
        # Heard whatever the main thread does, and though others, such as Prefect, install handlers meanwhile.
        self._former_wakeup = signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        self._is_entered = True
        os.register_at_fork(after_in_child=self._forget)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._number:
            self._finish(self._number)
        self._is_entered = False
        signal.set_wakeup_fd(self._former_wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._wakeup[1])
        os.environ.pop(MARK, None)
        if self._former_mark is not None:
            os.environ[MARK] = self._former_mark

    def _raise(self, number: int, _: FrameType | None) -> None:
        if not self._has_raised:  # unwinding from the first one is not disturbed
            self._has_raised = True
            self._number = self._number or signal.Signals(number)
            raise Stopped(signal.Signals(number))

    def _forget(self) -> None:
        """In a copy of this process that a library forked: a signal to the copy is not one to this."""
        if self._is_entered:
            self._is_entered = False
            signal.set_wakeup_fd(-1)
            for number in self._heard:
                signal.signal(number, signal.SIG_DFL)

    def _watch(self) -> None:
        first = self._next_signal(None)
        if first is None:
            os.close(self._wakeup[0])
            return
        self._number = self._number or first
        threading.Thread(target=self._finish_after, args=(first,), daemon=True).start()
        while (number := self._next_signal(None)) is not None:
            if number == signal.SIGINT:
                _exit(self._mark, first, grace_s=0)

    def _next_signal(self, timeout_s: float | None) -> signal.Signals | None:
        """The next signal that came in; None at the end of the ``with``."""
        while select.select([self._wakeup[0]], [], [], timeout_s)[0]:
            byte = os.read(self._wakeup[0], 1)
            if not byte:
                return None
            if byte[0] in self._heard:
                return signal.Signals(byte[0])
        return None

    def _finish_after(self, number: signal.Signals) -> None:
        time.sleep(UNWIND_S)
        self._finish(number)

    def _finish(self, number: signal.Signals) -> NoReturn:
        """Say the last words and end everything; the second thread that asks for it waits for the end."""
        with self._finishing:
            speaker = threading.Thread(target=self._speak, args=(number,), daemon=True)
            speaker.start()
            speaker.join(self._last_words_s)
            _exit(self._mark, number, grace_s=FAMILY_S)

    def _speak(self, number: signal.Signals) -> None:
        line = self._last_words(number)
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            sys.stdout.flush()
            show_cursor = "\033[?25h" if sys.stderr.isatty() else ""
            print(f"{show_cursor}{line}", file=sys.stderr, flush=True)  # noqa: T201


def _exit(mark: str, number: signal.Signals, grace_s: float) -> NoReturn:
    try:
        end_family(mark, grace_s)
        dismiss_guards()
    finally:
        os._exit(128 + number)  # threads that still wait for something must not keep the process
