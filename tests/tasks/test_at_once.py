"""The same work started twice at once is paid for once: two processes, a folder or S3, an annotator over real HTTP."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactStore
from mralign_core.storage.filesystem import StoreFiles
from tasks.annotate import collect_annotations, read_ledger
from tasks.engine.shards import lay_out
from tests.pocket_store import POCKET
from tests.published_candidates import candidate_row, publish_candidates
from tests.tasks.test_paid_once import PRICE, SCRIPT, CountingServer

NUM_TRACES = 12
LEASE_S = 6.0


@pytest.fixture
def server():
    server = CountingServer(delay_s=0.1)
    yield server
    server.close()


@pytest.fixture(params=["folder", "s3"])
def storage(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return {"root": str(tmp_path / "store"), "claim_lease_s": LEASE_S}
    monkeypatch.setenv("HOME", str(tmp_path))  # the cache of downloaded artifacts
    server, root = request.getfixturevalue("s3_server"), request.getfixturevalue("s3_root")
    return {"root": root, "endpoint_url": server.endpoint_url, "claim_lease_s": LEASE_S}


@pytest.fixture
def config(server, storage):
    models = {"annotator_a": "openai/a", "annotator_b": "openai/b", "adjudicator": "openai/judge"}
    annotate: dict[str, Any] = {"shard_size": 4, "concurrency": 2}
    annotate |= {role: {"model": model, "api_base": server.url, **PRICE} for role, model in models.items()}
    return RunConfig(storage=storage, questions={"train": "nq_open"}, annotate=annotate)


@pytest.fixture
def candidates(config, tmp_path):
    texts = [["I recall the date.", f"Wait, let me check number {n}.", "So it is Galen."] for n in range(NUM_TRACES)]
    rows = [candidate_row(f"t{n}", segments) for n, segments in enumerate(texts)]
    return publish_candidates(config.storage, rows, tmp_path / "candidates")


@pytest.fixture
def start(config, candidates):
    """Starts another process that annotates all shards."""
    command = [sys.executable, "-c", SCRIPT, config.model_dump_json(), candidates.model_dump_json()]
    environment = {**os.environ, "PYTHONPATH": str(POCKET.parents[2])}
    processes = []

    def start():
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def ends_well(process, timeout_s=120):
    _, errors = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, errors[-3000:]


def wait_for_requests(server, number):
    deadline = time.monotonic() + 120
    while len(server.requests) < number:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def all_is_there_once(config, candidates, *, shards=NUM_TRACES // 4):
    """Whether each shard has one artifact, and nobody holds a claim."""
    store = ArtifactStore(config.storage)
    layout = lay_out(collect_annotations.work(config, candidates), store)
    kept = StoreFiles(config.storage).sizes("artifacts/annotations-shard")
    manifests = [name for name in kept if name.endswith("manifest.json")]
    return not layout.missing and len(manifests) == shards and not StoreFiles(config.storage).sizes("claims")


@pytest.mark.parametrize("storage", ["s3", pytest.param("folder", marks=pytest.mark.soak)], indirect=True)
def test_two_that_start_at_once_pay_what_one_pays(server, config, candidates, start):
    first, second = start(), start()
    ends_well(first)
    ends_well(second)
    assert len(server.counts) == 3 * NUM_TRACES
    assert set(server.counts.values()) == {1}
    paid = read_ledger(config, candidates)
    assert paid["cost_usd"].sum() == 3 * NUM_TRACES * 20
    assert all_is_there_once(config, candidates)


# What an owner that is killed or stopped leaves behind is tested on both kinds of store in tests/core/storage.
@pytest.mark.parametrize("storage", ["s3"], indirect=True)
def test_when_one_is_killed_the_other_pays_only_what_was_in_flight_again(server, config, candidates, start):
    server.delay_s = 0.3
    first = start()
    wait_for_requests(server, 3)
    second = start()
    wait_for_requests(server, 7)  # the first is in the middle of a shard
    first.send_signal(signal.SIGKILL)
    first.wait()
    ends_well(second)
    assert len(server.counts) == 3 * NUM_TRACES
    # In flight, or received and still being written: a slot is free for the next request before that is done.
    assert sum(server.counts.values()) <= 3 * NUM_TRACES + 2 * config.annotate.concurrency
    assert all_is_there_once(config, candidates)


@pytest.mark.parametrize("storage", ["folder"], indirect=True)
def test_one_that_was_stopped_for_longer_than_its_lease_does_no_harm(server, config, candidates, start):
    first = start()
    wait_for_requests(server, 5)
    first.send_signal(signal.SIGSTOP)
    second = start()
    ends_well(second)
    assert len(server.counts) == 3 * NUM_TRACES
    first.send_signal(signal.SIGCONT)
    ends_well(first)
    # What it had looked up in vain before it was stopped, it asks when it goes on: of each trace under way, two roles.
    assert sum(server.counts.values()) <= 3 * NUM_TRACES + 2 * 2 * config.annotate.concurrency
    assert all_is_there_once(config, candidates)
