"""Real processes that are busy with what keeps a process from ending, and signals to them."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mralign_core.processes import stopping
from mralign_core.processes.family import KILLED_S, end, family
from mralign_core.processes.stopping import STOP_SIGNALS

MOST_S = 30.0  # on a busy machine; what is not ended sleeps for 60 s
SCRIPT = """
import ctypes, os, signal, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from mralign_core.processes import stopping
from mralign_core.processes.stopping import EndingOnSignals
stopping.UNWIND_S = 1.0

def last_words(number):
{last_words}

def unwound():
    print("unwound", flush=True)

{before}
with EndingOnSignals(last_words, last_words_s=1.0):
    print(os.environ["MRALIGN_FAMILY"], flush=True)
{work}
print("went on", flush=True)
"""
SPEAK = "return f'heard {number.name}'"
SLEEP = "try:\n    time.sleep(60)\nfinally:\n    unwound()"
BUSY = {
    "sleeping": SLEEP,
    "waiting for threads": "with ThreadPoolExecutor() as pool:\n    pool.submit(time.sleep, 60)\n    time.sleep(60)",
    "in C": "ctypes.CDLL(None).sleep(60)",
    "swallowing everything": "while True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass",
    "with a handler of its own": "signal.signal(signal.SIGTERM, lambda *_: None)\nwhile True:\n    time.sleep(1)",
    "with a deaf child": (
        "deaf = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)'\n"
        "subprocess.Popen([sys.executable, '-c', deaf], start_new_session=True)\n" + SLEEP
    ),
}


def indented(text):
    return "\n".join(f"    {line}" for line in text.splitlines())


class Busy:
    """A process that is busy; ends with the ``with``."""

    def __init__(self, work, *, last_words=SPEAK, before=""):
        script = SCRIPT.format(last_words=indented(last_words), work=indented(work), before=before)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        self.mark = self.process.stdout.readline().rstrip("\n")
        time.sleep(0.3)  # into its work

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        end(family(self.mark), grace_s=0)

    def stop(self, *numbers):
        """Seconds to its end after the signals, its exit code, and what it wrote."""
        started = time.monotonic()
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(0.2)
        out, err = self.process.communicate(timeout=60)
        return time.monotonic() - started, self.process.returncode, out + err


EACH = [*((name, signal.SIGTERM) for name in BUSY), *(("waiting for threads", number) for number in STOP_SIGNALS)]


def test_all_together_takes_less_than_ten_seconds():
    assert stopping.UNWIND_S + stopping.LAST_WORDS_S + stopping.FAMILY_S + KILLED_S < 10


@pytest.mark.parametrize(("work", "number"), EACH)
def test_a_signal_ends_it_with_its_children_in_time(work, number):
    with Busy(BUSY[work]) as busy:
        seconds, code, said = busy.stop(number)
        assert (code, f"heard {number.name}" in said, "went on" in said) == (128 + number, True, False), said
        assert seconds < MOST_S
        assert not family(busy.mark)


def test_what_can_unwind_does_and_is_not_waited_for():
    with Busy(SLEEP, before="stopping.UNWIND_S = 30.0") as busy:
        seconds, _, said = busy.stop(signal.SIGTERM)
    assert "unwound" in said and seconds < 25


def test_last_words_that_never_come_are_not_waited_for():
    with Busy(BUSY["waiting for threads"], last_words="time.sleep(60)") as busy:
        seconds, code, _ = busy.stop(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and seconds < MOST_S


def test_last_words_that_fail_do_not_keep_it():
    with Busy(SLEEP, last_words="raise OSError('no server')") as busy:
        seconds, code, _ = busy.stop(signal.SIGHUP)
    assert code == 128 + signal.SIGHUP and seconds < MOST_S


@pytest.mark.parametrize("first", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_second_ctrl_c_ends_it_at_once(first):
    with Busy(BUSY["with a deaf child"].replace(SLEEP, BUSY["waiting for threads"])) as busy:
        seconds, code, said = busy.stop(first, signal.SIGINT)
        assert code == 128 + first and seconds < stopping.UNWIND_S, said
        assert not family(busy.mark)


def test_a_second_sigterm_changes_nothing():
    slowly = "try:\n    time.sleep(60)\nfinally:\n    time.sleep(1)\n    unwound()"
    with Busy(slowly, before="stopping.UNWIND_S = 30.0") as busy:
        _, code, said = busy.stop(signal.SIGTERM, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and "unwound" in said


def test_it_is_ended_by_ctrl_c_though_a_shell_started_it_in_the_background():
    with Busy(SLEEP, before="signal.signal(signal.SIGINT, signal.SIG_IGN)") as busy:
        assert busy.stop(signal.SIGINT)[1] == 128 + signal.SIGINT


def test_what_nohup_started_outlives_its_terminal():
    with Busy("time.sleep(2)", before="signal.signal(signal.SIGHUP, signal.SIG_IGN)") as busy:
        _, code, said = busy.stop(signal.SIGHUP)
    assert code == 0 and "went on" in said


def test_the_end_of_a_forked_copy_is_not_its_own():
    work = (
        "import multiprocessing\n"
        "copy = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "copy.start()\ntime.sleep(0.2)\ncopy.terminate()\ncopy.join(5)\n"
        "print('copy', copy.exitcode, flush=True)\n"
    )
    with Busy(work) as busy:
        out, err = busy.process.communicate(timeout=30)
    assert busy.process.returncode == 0 and "copy -15" in out and "went on" in out, err


def test_copies_of_it_end_with_it():
    work = (
        "copy = os.fork()\nif not copy:\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    time.sleep(60)\n"
        "print(copy, flush=True)\n" + SLEEP
    )
    with Busy(work) as busy:
        copy = int(busy.process.stdout.readline())
        seconds, code, said = busy.stop(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and seconds < MOST_S, said
    assert not psutil.pid_exists(copy) or psutil.Process(copy).status() == psutil.STATUS_ZOMBIE


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start what it may not end")
def test_a_child_that_it_may_not_end_does_not_keep_it():
    work = "subprocess.Popen(['sleep', '20'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\nos.setuid(65534)\n"
    with Busy(work + SLEEP) as busy:
        seconds, code, said = busy.stop(signal.SIGTERM)
        assert code == 128 + signal.SIGTERM and seconds < MOST_S, said
        assert family(busy.mark)


def test_after_the_block_the_family_is_that_of_before():
    script = (
        "import os\nfrom mralign_core.processes.stopping import EndingOnSignals\n"
        "with EndingOnSignals(lambda n: ''): assert os.environ['MRALIGN_FAMILY'] != 'outer'\n"
        "assert os.environ['MRALIGN_FAMILY'] == 'outer'"
    )
    environment = {**os.environ, "MRALIGN_FAMILY": "outer"}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0


def test_after_the_block_signals_do_what_they_did_before():
    script = (
        "import os, signal\nfrom mralign_core.processes.stopping import EndingOnSignals\n"
        "handlers = [signal.getsignal(n) for n in (1, 2, 15)]\n"
        "with EndingOnSignals(lambda n: ''): pass\n"
        "assert handlers == [signal.getsignal(n) for n in (1, 2, 15)] and 'MRALIGN_FAMILY' not in os.environ\n"
        "os.kill(os.getpid(), 15)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGTERM
