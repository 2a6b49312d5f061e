"""Real process families: found by their mark, ended with their head, told from those of others."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from mralign_core.family import MARK, Identity, abandoned, end, family, this_process

HEAD = """
import os, subprocess, sys, time
from mralign_core.family import mark_family, start_guard
mark = mark_family(sys.argv[1])
if "guarded" in sys.argv:
    start_guard(mark)
between = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
subprocess.run([sys.executable, "-c", between, "import time; time.sleep(60)"], check=True)
print(mark, flush=True)
time.sleep(60)
"""
"""A head with a grandchild in a session of its own, whose parent is gone."""


@pytest.fixture
def start_head(tmp_path):
    """Start a head for a purpose; gives the process, the mark and the purpose."""
    heads = []

    def start(*options):
        purpose = f"test {tmp_path} {len(heads)}"
        head = subprocess.Popen([sys.executable, "-c", HEAD, purpose, *options], stdout=subprocess.PIPE, text=True)
        mark = head.stdout.readline().rstrip("\n")
        heads.append((head, mark))
        return head, mark, purpose

    yield start
    for head, mark in heads:
        head.kill()
        head.wait()
        head.stdout.close()
        end(family(mark), grace_s=0)


def wait_until_gone(mark, seconds=10.0):
    deadline = time.monotonic() + seconds
    while family(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
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


def test_a_process_that_hears_nothing_is_killed():
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as deaf:
        deaf.stdout.readline()
        end([psutil.Process(deaf.pid)], grace_s=0.2)
        assert not psutil.pid_exists(deaf.pid)


class TestIdentity:
    def test_it_is_read_back_from_its_text(self):
        identity = this_process()
        assert Identity.parse(str(identity)) == identity
        assert identity.pid == os.getpid() and identity.is_here and identity.is_running

    @pytest.mark.parametrize("text", ["", "host", "host:1", "host:one:2", "a tag of a user's"])
    def test_another_text_shows_none(self, text):
        assert Identity.parse(text) is None

    def test_a_later_process_of_the_same_number_is_another(self):
        identity = this_process()
        assert not identity._replace(start=identity.start - 100).is_running

    def test_a_process_that_ended_does_not_run_though_nobody_has_buried_it(self):
        with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
            started = int(psutil.Process(process.pid).create_time())
            deadline = time.monotonic() + 10
            while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not this_process()._replace(pid=process.pid, start=started).is_running
