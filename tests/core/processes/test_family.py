"""Real process families: found by their mark, ended with their head, told from those of others."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from mralign_core.processes import family as family_module
from mralign_core.processes.family import MARK, Identity, _start_of, abandoned, end, end_family, family, this_process

HEAD = """
import os, subprocess, sys, time
from mralign_core.processes.family import mark_family, start_guard
mark = mark_family(sys.argv[1])
if "guarded" in sys.argv:
    start_guard(mark)
if "copied" in sys.argv and not os.fork():
    time.sleep(60)
between = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
subprocess.run([sys.executable, "-c", between, "import time; time.sleep(60)"], check=True)
print(mark, flush=True)
time.sleep(60)
"""
"""A head with a grandchild in a session of its own, whose parent is gone."""


@pytest.fixture
def start_head(tmp_path):
    """Start a head for a purpose; gives the process, the mark and the purpose."""
    heads: list[tuple[subprocess.Popen[str], str]] = []

    def start(*options):
        purpose = f"test {tmp_path} {len(heads)}"
        head = subprocess.Popen([sys.executable, "-c", HEAD, purpose, *options], stdout=subprocess.PIPE, text=True)
        assert head.stdout
        mark = head.stdout.readline().rstrip("\n")
        heads.append((head, mark))
        wait_until(lambda: family(mark))  # a process that has just been started shows no environment for a moment
        return head, mark, purpose

    yield start
    for head, mark in heads:
        with head:
            head.kill()
        end(family(mark), grace_s=0)


def is_copy(process):
    return process.cmdline() == process.parent().cmdline()


def identity_of(pid):
    return this_process()._replace(pid=pid, start=_start_of(pid))


def wait_until(is_so, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)


def wait_until_gone(mark):
    wait_until(lambda: not family(mark))
    return family(mark)


def test_a_grandchild_without_its_parent_is_still_of_the_family(start_head):
    _, mark, purpose = start_head()
    (grandchild,) = family(mark)
    assert grandchild.environ()[MARK] == mark
    assert not abandoned(purpose)


def test_a_family_whose_head_was_killed_is_abandoned_until_it_is_ended(start_head):
    head, mark, purpose = start_head()
    other = start_head()
    head.kill()
    head.wait()
    assert abandoned(purpose) == family(mark) != []
    end(abandoned(purpose), grace_s=2.0)
    assert not family(mark) and family(other[1])


def test_a_guard_ends_the_family_of_a_head_that_was_killed(start_head):
    head, mark, _ = start_head("guarded")
    assert family(mark)
    head.kill()
    head.wait()
    assert not wait_until_gone(mark)


def test_a_guard_does_not_wait_for_copies_of_a_head_that_was_killed(start_head):
    head, mark, _ = start_head("guarded", "copied")
    (copy,) = [child for child in psutil.Process(head.pid).children() if MARK not in child.environ() and is_copy(child)]
    try:
        head.kill()
        head.wait()
        assert not wait_until_gone(mark)
    finally:
        end([copy], grace_s=0)


def test_what_can_not_be_ended_is_not_waited_for(start_head, monkeypatch):
    _, mark, _ = start_head()
    # All children of this process would end too, such as the S3 server that other tests in it use.
    monkeypatch.setattr(family_module, "_members", family)
    with monkeypatch.context() as patch:
        patch.setattr(family_module, "tell", lambda *_: None)
        started = time.monotonic()
        end_family(mark, grace_s=0.1)
        assert time.monotonic() - started < 0.1 + family_module.KILLED_S + 10
    end_family(mark, grace_s=0)
    assert not family(mark)


def test_a_process_that_hears_nothing_is_killed():
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout
        deaf.stdout.readline()
        end([psutil.Process(deaf.pid)], grace_s=0.2)
        assert not psutil.pid_exists(deaf.pid)


class TestIdentity:
    def test_it_is_read_back_from_its_text(self):
        identity = this_process()
        assert Identity.parse(str(identity)) == identity
        assert identity.pid == os.getpid() and identity.is_here and identity.is_running

    @pytest.mark.parametrize(
        "text", ["", "host", "host:1", "host:one:2", f"host:{2**31}:2", "host:-1:2", "a tag of a user's"]
    )
    def test_another_text_shows_none(self, text):
        assert Identity.parse(text) is None

    def test_a_later_process_of_the_same_number_is_another(self):
        identity = this_process()
        boot, ticks = identity.start.split("-")
        assert not identity._replace(start=f"{boot}-{int(ticks) - 1}").is_running
        assert not identity._replace(start=f"{boot[::-1]}-{ticks}").is_running

    def test_it_lives_on_when_the_clock_is_set(self, monkeypatch):
        identity = this_process()
        real = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: real(process) + 86_400)
        assert this_process() == identity and identity.is_running

    def test_where_the_system_tells_the_clock_only_a_step_is_allowed_for(self, monkeypatch):
        monkeypatch.setattr("mralign_core.processes.family._boot", lambda: "")
        identity = this_process()
        started = int(identity.start)
        assert Identity.parse(str(identity)) == identity and identity.is_running
        assert identity._replace(start=str(started - 600)).is_running
        assert not identity._replace(start=str(started - 86_400)).is_running

    def test_brackets_in_the_name_of_a_program_do_not_matter(self, tmp_path):
        program = tmp_path / "a) S 1 (b"
        program.symlink_to("/bin/sleep")
        with subprocess.Popen([program, "60"]) as process:
            assert identity_of(process.pid).is_running
            process.kill()
            process.wait()

    def test_a_process_in_another_name_space_of_numbers_is_not_here(self):
        identity = this_process()
        assert not identity._replace(host=identity.host + "1").is_here

    def test_a_process_that_ended_does_not_run_though_nobody_has_buried_it(self):
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            identity = identity_of(process.pid)
            assert identity.is_running
            assert process.stdin
            process.stdin.close()
            deadline = time.monotonic() + 60
            while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
                time.sleep(0.02)
            assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
            assert not identity.is_running
