"""The pipeline by the command, on one store: twice at once, or killed and run again. What is made is what one makes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mralign_core.storage import ArtifactStore, RunRecords
from mralign_core.storage.filesystem import StoreFiles
from tests.pocket_store import SMALL, copy_store, small_config
from tests.prefect_api import environment_for

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600
MADE = re.compile(r"(\S+(?: \S+)*): made in [\d.]+ s")
FEW = {**SMALL, "questions.train": {"name": "pocket", "limit": 160}, "questions.eval": {"name": "pocket", "limit": 40}}
"""Two shards of draws and three of annotations, two adapters: there is work to share, and to be killed in."""


def published(root: Path) -> dict[str, tuple[str, int]]:
    """What a store on disk holds: path of each manifest → its content and when it was written."""
    manifests = root.glob("artifacts/**/manifest.json")
    return {str(path.relative_to(root)): (path.read_text(), path.stat().st_mtime_ns) for path in manifests}


def digests(root: Path) -> set[str]:
    """Stage, key and content digest of everything in a store on disk."""
    return {str(Path(path).parent) for path in published(root)}


def made_by(log: Path) -> list[str]:
    """What a run says that it made."""
    return MADE.findall(log.read_text())


def wait_for(root: Path, pattern: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not list(root.glob(pattern)):
        assert process.poll() is None, f"the run ended before {pattern} was there"
        assert time.monotonic() < deadline, f"{pattern} did not come"
        time.sleep(0.02)


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL, "it had ended before"


def ends_well(process: subprocess.Popen, log: Path) -> None:
    assert process.wait(timeout=TIMEOUT_S) == 0, log.read_text()[-3000:]


@pytest.fixture(scope="module")
def start(prefect_url):
    """Starts a run on a store, which reports to the tests' server and logs what it makes."""
    environment = {**os.environ, **environment_for(prefect_url), "OMP_NUM_THREADS": "1"}
    environment |= {"PREFECT_LOGGING_TO_API_ENABLED": "false", "PREFECT_LOGGING_EXTRA_LOGGERS": "mralign_core"}
    processes = []

    def start(root: Path, log: Path) -> subprocess.Popen:
        settings = [f"--set={name}={json.dumps(value)}" for name, value in {**FEW, "storage.root": str(root)}.items()]
        command = [sys.executable, "-m", "flows.commands.cli", "run", "--config", "pocket", *settings]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            kill(process)


@pytest.fixture(scope="module")
def alone(start, pocket_store, tmp_path_factory):
    """The store of a run that nothing disturbed, and its log."""
    folder = tmp_path_factory.mktemp("alone")
    root, log = copy_store(pocket_store, folder / "store"), folder / "log"
    ends_well(start(root, log), log)
    return root, log


def test_both_complete_and_nothing_is_made_twice(start, alone, store_root, tmp_path):
    logs = [tmp_path / name for name in ("first.log", "second.log")]
    for process, log in [(start(store_root, log), log) for log in logs]:
        ends_well(process, log)
    made = [made_by(log) for log in logs]
    assert not set(made[0]) & set(made[1])
    assert sorted(made[0] + made[1]) == sorted(made_by(alone[1]))
    assert digests(store_root) == digests(alone[0])
    config = small_config(store_root)
    assert not StoreFiles(config.storage).sizes("claims")
    records = RunRecords(ArtifactStore(config.storage), config.name).newest_first()
    assert len(records) == 2
    assert records[0].artifacts == records[1].artifacts


@pytest.mark.soak
def test_when_one_is_killed_among_its_draws_the_other_goes_on_at_once(start, alone, store_root, tmp_path):
    log = tmp_path / "log"
    first = start(store_root, tmp_path / "killed.log")
    wait_for(store_root, "claims/generations-shard/*", first)
    second = start(store_root, log)
    wait_for(store_root, "artifacts/generations-shard/*/*/manifest.json", second)
    before = published(store_root)
    kill(first)
    ends_well(second, log)
    assert before.items() <= published(store_root).items(), "an artifact was made again"
    assert digests(store_root) == digests(alone[0])
    assert len([path for path in published(store_root) if "/report/" in path]) == 1
    # It may have been killed between publishing and giving up its claim; nobody asks for that again.
    left = [path.relative_to(store_root / "claims") for path in store_root.glob("claims/*/*")]
    assert all(any((store_root / "artifacts" / name.with_suffix("")).glob("*/manifest.json")) for name in left)


KILL_AT = {
    "artifacts/annotations-shard/*/*/manifest.json": 0.1,  # in the middle of the other shards of annotations
    "artifacts/adapter/*/*/manifest.json": 0.4,  # in the middle of training the second adapter
}
"""What must be there before a kill, and how long to wait on; one among the draws is above."""


@pytest.mark.soak
def test_killed_and_run_again_it_ends_as_if_nothing_had_happened(start, alone, store_root, tmp_path):
    log = tmp_path / "log"
    before = published(store_root)
    for pattern, delay_s in KILL_AT.items():
        process = start(store_root, log)
        wait_for(store_root, pattern, process)
        time.sleep(delay_s)
        kill(process)
        after = published(store_root)
        assert before.items() <= after.items(), "an artifact was made again"
        before = after
    ends_well(start(store_root, log), log)
    assert before.items() <= published(store_root).items(), "an artifact was made again"
    assert digests(store_root) == digests(alone[0])
