"""The same pipeline started twice at once: both complete, each artifact is made once, and the digests are one run's."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from mralign_core.storage import ArtifactStore, RunRecords
from mralign_core.storage.filesystem import StoreFiles
from tests.flows.test_pipeline import digests, published, start, wait_for
from tests.pocket_store import small_config

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_api")]
TIMEOUT_S = 900
MADE = re.compile(r"(\S+(?: \S+)*): made in [\d.]+ s")


def made_by(log):
    """What a run says that it made."""
    return MADE.findall(log.read_text())


def ends_well(process, log):
    assert process.wait(timeout=TIMEOUT_S) == 0, log.read_text()[-3000:]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, store_root):
    """Logs that say what is made; a store without what the session that made the model may have left."""
    monkeypatch.setenv("PREFECT_LOGGING_EXTRA_LOGGERS", "mralign_core")
    shutil.rmtree(store_root / "claims", ignore_errors=True)


def test_both_complete_and_nothing_is_made_twice(store_root, tmp_path):
    alone = Path(shutil.copytree(store_root, tmp_path / "alone"))
    logs = {name: tmp_path / f"{name}.log" for name in ("first", "second", "alone")}
    processes = {name: start(store_root, logs[name]) for name in ("first", "second")}
    try:
        for name, process in processes.items():
            ends_well(process, logs[name])
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    ends_well(start(alone, logs["alone"]), logs["alone"])
    made = [made_by(logs[name]) for name in ("first", "second")]
    assert not set(made[0]) & set(made[1])
    assert sorted(made[0] + made[1]) == sorted(made_by(logs["alone"]))
    assert digests(store_root) == digests(alone)
    config = small_config(store_root)
    assert not StoreFiles(config.storage).sizes("claims")
    records = RunRecords(ArtifactStore(config.storage), config.name).newest_first()
    assert len(records) == 2
    assert records[0].artifacts == records[1].artifacts


def test_when_one_is_killed_the_other_goes_on_at_once(store_root, tmp_path):
    log = tmp_path / "log"
    first = start(store_root, tmp_path / "killed.log")
    wait_for(store_root, "claims/generations-shard/*", first)
    second = start(store_root, log)
    wait_for(store_root, "artifacts/generations-shard/*/*/manifest.json", second)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    ends_well(second, log)
    assert len([path for path in published(store_root) if "/report/" in path]) == 1
    # It may have been killed between publishing and giving up its claim; nobody asks for that again.
    left = [path.relative_to(store_root / "claims") for path in store_root.glob("claims/*/*")]
    assert all(any((store_root / "artifacts" / name.with_suffix("")).glob("*/manifest.json")) for name in left)
