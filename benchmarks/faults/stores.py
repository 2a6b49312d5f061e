"""An S3 server whose connections are spoilt, by rate and by outages, under single operations and a whole pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.runs import RUN_TIMEOUT_S, Place, digests_of
from tests.faulty_s3 import PASSING, FaultyS3
from tests.seaweedfs import BUCKET, S3Server

WORKER = Path(__file__).with_name("store_operations.py")
BETWEEN_OUTAGES_S = 15.0


def spoil(python: str, server: S3Server, *, share: float, num: int, seed: int) -> Outcome:
    """Operations one by one, while this share of the requests goes wrong, in nine ways."""
    rates = dict.fromkeys(PASSING, share / len(PASSING))
    with FaultyS3(server.endpoint_url, seed=seed) as proxy:
        worker = _Worker(python, server, proxy, "one-by-one", num, seed)
        with worker:
            proxy.rates = rates
            results = worker.results()
        lost = [str(result["problem"]).partition(":")[0] for result in results if result["problem"]]
        note = f"{sum(proxy.num_faults.values())} of {sum(proxy.num_requests.values())} requests spoilt"
    return Outcome(f"S3: {share:.0%} of requests go wrong", len(results), len(results) - len(lost), lost, note)


def refuse(python: str, server: S3Server, *, seconds: float) -> Outcome:
    """One operation of each kind, all started as the server begins to refuse connections."""
    with FaultyS3(server.endpoint_url) as proxy, _Worker(python, server, proxy, "at-once", 0, 0) as worker:
        proxy.outage(seconds)
        results = worker.results()
    lost = [str(result["problem"]).partition(":")[0] for result in results if result["problem"]]
    slowest = max(float(result["seconds"]) for result in results)
    return Outcome(
        f"S3: away for {seconds:g} s", len(results), len(results) - len(lost), lost, f"slowest {slowest:.1f} s"
    )


def refuse_whole_run(python: str, server: S3Server, *, outages: Sequence[float]) -> Outcome:
    """A whole pipeline on S3, whose server goes away again and again while it runs."""
    with tempfile.TemporaryDirectory() as folder, FaultyS3(server.endpoint_url) as proxy:
        alone = Place(Path(folder, "alone"), python)
        alone.run_alone()
        root = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        settings = {"storage.root": root, "storage.endpoint_url": proxy.url}
        place = alone.beside("s3", settings=settings, environment=server.environment())
        made = 0
        with place.start() as process:
            ended = threading.Event()

            def watch(process: subprocess.Popen[bytes] = process, ended: threading.Event = ended) -> None:
                process.wait(RUN_TIMEOUT_S)
                ended.set()

            threading.Thread(target=watch, daemon=True).start()
            for seconds in outages:
                if ended.wait(BETWEEN_OUTAGES_S):
                    break
                proxy.outage(seconds)
                made += 1
                time.sleep(seconds)
            status = process.wait(RUN_TIMEOUT_S)
        listed = server.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=root.split("/", 3)[3])
        names = [one["Key"].split("/", 1)[1] for page in listed for one in page.get("Contents", ())]
        problem = f"ended with status {status}" if status else ""
        if not problem and digests_of(names) != alone.digests():
            problem = "other artifacts than those of a run on a folder"
    said = ", ".join(f"{seconds:g}" for seconds in outages[:made])
    return Outcome("S3: away during a whole run", 1, 0 if problem else 1, [problem] if problem else [], f"{said} s")


class _Worker(AbstractContextManager["_Worker"]):
    """The process that operates; it has set up what it needs when the ``with`` begins."""

    def __init__(self, python: str, server: S3Server, proxy: FaultyS3, how: str, num: int, seed: int) -> None:
        root = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        environment: Mapping[str, str] = {**os.environ, **server.environment()}
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [python, str(WORKER), root, proxy.url, how, str(num), str(seed)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        while (line := self._process.stdout.readline().strip()) != "ready":
            if not line and self._process.poll() is not None:
                raise RuntimeError("the operations could not be set up")

    def results(self) -> list[dict[str, Any]]:
        """Let it operate, and wait for what became of each operation."""
        output, _ = self._process.communicate("go\n", timeout=RUN_TIMEOUT_S)
        return list(json.loads(output.strip().splitlines()[-1]))

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
