"""The processes of ``make serve``: real ones, whose logs grow and which end and are started again."""

import signal
import time

import pytest

from deployments import children
from deployments.children import Child, ServeError, rotate


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a child that runs a module of this text; they are all ended after the test."""
    modules = tmp_path / "modules"
    modules.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(modules))
    started = []

    def start_child(text):
        (modules / "job_of_child.py").write_text(text)
        child = Child("worker-cpu", ["job_of_child"], {"PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(modules)})
        started.append(child)
        return child

    yield start_child
    for child in started:
        child.process.kill()
        child.process.wait()


def test_one_that_died_is_named_with_the_end_of_its_log(start):
    child = start("print('no such pool'); raise SystemExit(3)")
    child.process.wait(timeout=30)
    with pytest.raises(ServeError, match=r"worker-cpu ended with exit status 3(.|\n)*no such pool"):
        child.check()


def test_one_that_dies_is_started_again_after_a_pause(start):
    child = start("import time; print('up', flush=True); time.sleep(60)")
    assert child.plan_restart() is None
    first = child.process
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=10)
    wait_s = child.plan_restart()
    assert 0 < wait_s <= 2
    assert child.plan_restart() is None, "it is said once"
    child.restart_if_due()
    assert child.process is first, "not yet"
    time.sleep(wait_s)
    child.restart_if_due()
    assert child.process is not first and child.process.poll() is None
    assert child.log.read_text().count("--- started") == 2, "what it printed before is still there"


def test_one_that_dies_at_once_time_after_time_ends_all(start, monkeypatch):
    monkeypatch.setattr(children, "LONGEST_WAIT_S", 0.0)
    child = start("raise SystemExit('no such pool')")
    for _ in range(4):
        child.process.wait(timeout=30)
        assert child.plan_restart() == 0
        child.restart_if_due()
    child.process.wait(timeout=30)
    with pytest.raises(ServeError, match=r"5 times one after another, worker-cpu ended with exit status 1(.|\n)*pool"):
        child.plan_restart()


def test_one_that_lived_long_is_not_counted(start, monkeypatch):
    monkeypatch.setattr(children, "LONGEST_WAIT_S", 0.0)
    monkeypatch.setattr(children, "SHORT_LIFE_S", 0.0)
    child = start("raise SystemExit(1)")
    for _ in range(7):
        child.process.wait(timeout=30)
        assert child.plan_restart() == 0
        child.restart_if_due()


def test_pauses_grow_to_a_bound(start, monkeypatch):
    monkeypatch.setattr(children, "MOST_SHORT_LIVES", 100)
    child = start("pass")
    waits = []
    for _ in range(9):
        child.process.wait(timeout=30)
        child._again_at = None
        waits.append(child.plan_restart())
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_log_that_grows_too_large_is_put_aside_and_the_oldest_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "LOG_BYTES", 100)
    log = tmp_path / "server.log"
    for number in range(6):
        with log.open("ab") as output:
            output.write(b"%d" % number * 101)
        rotate(log)
    assert log.read_bytes() == b""
    aside = {path.name: path.read_bytes()[:1] for path in tmp_path.iterdir() if path != log}
    assert aside == {"server.log.1": b"5", "server.log.2": b"4", "server.log.3": b"3"}


def test_a_process_goes_on_in_a_log_that_was_put_aside(start, monkeypatch):
    child = start("import itertools, time\nfor n in itertools.count(): print('line', n, flush=True); time.sleep(0.02)")
    while "line 5" not in child.log.read_text():
        time.sleep(0.02)
    monkeypatch.setattr(children, "LOG_BYTES", 10)
    rotate(child.log)
    while "line" not in child.log.read_text():
        time.sleep(0.02)
    assert not child.log.read_bytes().startswith(b"\0"), "it is appended to"
