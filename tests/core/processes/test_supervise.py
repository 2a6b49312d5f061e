"""Real child processes, which import nothing heavy."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from mralign_core.processes import supervise
from mralign_core.processes.supervise import Supervisor

CHILD = """
import logging, os, sys, time
from pathlib import Path
from mralign_core.processes.supervise import Lifeline, LifelineHandler
lifeline = Lifeline(Path(sys.argv[1]), int(sys.argv[2]))
"""
STARTER = """
import subprocess, sys
command = [sys.executable, "-c", *sys.argv[1:]]
children = [subprocess.Popen([*command, str(rank)], start_new_session=True) for rank in (0, 1)]
sys.exit(max(child.wait() for child in children))
"""
"""As torchrun does it: each child in a session of its own, out of reach of a signal to the command's group."""
PARENT = """
import sys
from pathlib import Path
from mralign_core.processes.supervise import Supervisor
with Supervisor(sys.argv[2:], Path(sys.argv[1])) as supervisor:
    for message in supervisor.messages():
        print(message["pid"], flush=True)
"""


@pytest.fixture
def address():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders have names too long for a socket
        yield Path(folder, "socket")


def command(script, address):
    return [sys.executable, "-c", STARTER, CHILD + script, str(address)]


def wait_until_gone(pids, seconds=30.0):
    end = time.monotonic() + seconds
    while (there := [pid for pid in pids if is_running(pid)]) and time.monotonic() < end:
        time.sleep(0.02)
    return there


def is_running(pid):
    """Whether it runs; one that nobody has buried yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_messages_records_and_printed_lines_arrive(address):
    script = """
logging.getLogger("mralign_core").addHandler(LifelineHandler(lifeline))
logging.getLogger("mralign_core.training").warning("step %d", 3)
lifeline.send("progress", values=[float("nan"), "ä" * 100_000])
print("printed by", sys.argv[2])
sys.stdout.write("no line end")
lifeline.close()
"""
    with Supervisor(command(script, address), address) as supervisor:
        messages = list(supervisor.messages())
        assert supervisor.exit_code() == 0
    log = {"kind": "log", "name": "mralign_core.training", "level": 30, "text": "step 3"}
    assert [each for each in messages if each["kind"] == "log"] in (
        [{**log, "rank": 0}, {**log, "rank": 1}],
        [{**log, "rank": 1}, {**log, "rank": 0}],
    )
    values = [each["values"] for each in messages if each["kind"] == "progress"]
    assert [value[1] for value in values] == ["ä" * 100_000] * 2
    assert [value[0] != value[0] for value in values] == [True, True]
    printed = "".join(each["text"] for each in messages if each["kind"] == "output")
    assert all(text in printed for text in ("printed by 0", "printed by 1", "no line end"))
    assert not [each for each in messages if each["kind"] == "lost"]


def test_a_child_that_is_killed_is_noticed_though_its_starter_says_nothing(address):
    script = """
lifeline.send("pid", pid=os.getpid())
time.sleep(60)
"""
    with Supervisor(command(script, address), address) as supervisor:
        pids = {}
        for message in supervisor.messages():
            if message["kind"] == "lost":
                break
            pids[message["rank"]] = message["pid"]
            if len(pids) == 2:
                os.kill(pids[1], signal.SIGKILL)
    assert message["rank"] == 1
    assert not wait_until_gone(pids.values())


def test_whatever_stops_the_supervisor_ends_all_children(address):
    script = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
lifeline.send("pid", pid=os.getpid())
time.sleep(60)
"""
    pids = []

    def work():
        with Supervisor(command(script, address), address) as supervisor:
            for message in supervisor.messages():
                pids.append(message["pid"])
                if len(pids) == 2:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not wait_until_gone(pids)


def test_a_child_that_hears_nothing_is_killed(address, monkeypatch):
    monkeypatch.setattr(supervise, "GRACE_S", 0.2)
    script = """
lifeline.send("pid", pid=os.getpid())
import ctypes
ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock: no other thread of the process runs
"""
    pids, started = [], time.monotonic()
    with Supervisor(command(script, address), address) as supervisor:
        for message in supervisor.messages():
            pids.append(message["pid"])
            if len(pids) == 2:
                break
    assert not wait_until_gone(pids)
    assert time.monotonic() - started < 30


def test_the_children_of_a_supervisor_that_is_killed_end_by_themselves(address):
    script = """
lifeline.send("pid", pid=os.getpid())
time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(address), *command(script, address)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    starter = psutil.Process(pids[0]).ppid()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert not wait_until_gone([*pids, starter])


def test_a_child_without_a_supervisor_does_not_start(address):
    found = subprocess.run(
        [sys.executable, "-c", CHILD, str(address), "0"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert "FileNotFoundError" in found.stderr


def test_a_module_runs_behind_a_lifeline(address, tmp_path):
    Path(tmp_path, "job.py").write_text(
        "import sys\n"
        "def main(lifeline, *arguments):\n"
        "    lifeline.send('ran', name=__name__, values=[*arguments])\n"
        "    sys.exit(3)\n"
    )
    child = [sys.executable, "-m", "mralign_core.processes.child", str(address), "job", "a", "--b"]
    with Supervisor(child, address, {"PYTHONPATH": str(tmp_path), "RANK": "1"}) as supervisor:
        messages = list(supervisor.messages())
        assert supervisor.exit_code() == 3
    assert messages == [{"kind": "ran", "rank": 1, "name": "job", "values": ["a", "--b"]}]
