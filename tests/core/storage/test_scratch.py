"""What a killed process leaves goes with the next start; what a living one uses, and what is not ours, stays."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mralign_core.config import StorageConfig
from mralign_core.errors import StorageError
from mralign_core.storage import ArtifactStore, key_of, scratch, tree_digest
from mralign_core.storage.cache import DownloadCache
from mralign_core.storage.scratch import part_file, scratch_folder, sweep_scratch

ROOT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where tests run in the background
from pathlib import Path
from mralign_core.storage.scratch import part_file, scratch_folder
with scratch_folder() as folder, part_file(Path(sys.argv[1])) as part:
    (folder / "large").write_bytes(b"x" * 1000)
    part.write_bytes(b"half")
    print(folder, part, flush=True)
    signal.pause()
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The system's folder for temporary files, here and in children."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def holder(temporary, tmp_path):
    """Starts a process that holds a scratch folder and a half-written file of the store."""
    processes = []

    def start():
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "store" / "tmp")]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout
        return process, *map(Path, process.stdout.readline().split())

    yield start
    for process in processes:
        with process:
            process.kill()


def test_what_a_killed_process_left_goes_and_what_a_living_one_uses_stays(holder, tmp_path):
    living, its_folder, its_part = holder()
    killed, dead_folder, dead_part = holder()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert dead_folder.exists() and dead_part.exists()
    ArtifactStore(StorageConfig(root=str(tmp_path / "store"))).check_writable()
    assert not dead_folder.exists() and not dead_part.exists()
    assert (its_folder / "large").exists() and its_part.exists()
    living.send_signal(signal.SIGINT)
    living.wait()
    assert not its_folder.exists() and not its_part.exists()


def test_the_first_scratch_folder_of_a_process_sweeps_too(holder):
    killed, dead_folder, _ = holder()
    killed.kill()
    killed.wait()
    scratch._sweep_once.cache_clear()
    with scratch_folder() as folder:
        assert folder.exists() and not dead_folder.exists()


def test_folders_of_others_stay(temporary, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_text("x")
    for name in ("mralign-backup", "mralign-2024-archived", "mralign-abcdefgh"):
        (temporary / name).mkdir()
    (temporary / f"mralign-{'a' * 20}").symlink_to(tmp_path / "precious")
    (temporary / f"mralign-{'b' * 20}").write_text("a file")
    before = sorted(os.listdir(temporary))
    sweep_scratch()
    assert sorted(os.listdir(temporary)) == before
    assert (tmp_path / "precious" / "x").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_folders_of_another_user_stay(temporary):
    other = temporary / f"mralign-{'c' * 20}"
    other.mkdir()
    os.chown(other, 12345, 12345)
    sweep_scratch()
    assert other.exists()


def test_links_in_a_dead_scratch_folder_are_not_followed(holder, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_text("x")
    killed, dead_folder, _ = holder()
    (dead_folder / "link").symlink_to(tmp_path / "precious")
    killed.kill()
    killed.wait()
    sweep_scratch()
    assert not dead_folder.exists()
    assert (tmp_path / "precious" / "x").exists()


def test_sweeps_while_folders_are_made_take_none_that_is_used(temporary):
    sweeper = subprocess.Popen(
        [sys.executable, "-c", "from mralign_core.storage.scratch import sweep_scratch\nwhile 1: sweep_scratch()"],
        cwd=ROOT,
    )
    try:
        for _ in range(300):
            with scratch_folder() as folder, part_file(folder / "tmp") as part:
                part.write_text("x")
                assert part.read_text() == "x"
    finally:
        sweeper.kill()
        sweeper.wait()
    assert not os.listdir(temporary)


def test_a_folder_that_a_sweep_takes_before_it_is_locked_is_made_again(tmp_path):
    paths = [tmp_path / name for name in "ab"]

    def make():
        path = paths.pop(0)
        path.mkdir()
        if paths:
            path.rmdir()
        return path

    path, lock = scratch._locked(make)
    os.close(lock)
    assert path == tmp_path / "b"


def entry(cache, number, size=1000):
    folder = cache.folder / f"{number:064x}"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "x").write_bytes(b"x" * size)
    os.utime(folder, (number, number))
    return folder


def test_the_cache_is_bounded_and_what_was_used_longest_ago_goes_first(tmp_path):
    cache = DownloadCache(tmp_path / "cache", 3000)
    folders = [entry(cache, number) for number in range(1, 5)]
    cache.use(folders[0].name)
    cache.make_room(1000)
    assert [folder.exists() for folder in folders] == [True, False, False, True]
    cache.make_room(10**9)
    assert [folder.exists() for folder in folders] == [True, False, False, False]


USER = """
import sys, signal
from pathlib import Path
from mralign_core.storage.cache import DownloadCache
DownloadCache(Path(sys.argv[1]), 0).use(sys.argv[2])
print("uses it", flush=True)
signal.pause()
"""


def test_what_another_process_uses_stays_until_it_dies(tmp_path):
    cache = DownloadCache(tmp_path / "cache", 0)
    folder = entry(cache, 1)
    command = [sys.executable, "-c", USER, str(cache.folder), folder.name]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as user:
        assert user.stdout and user.stdout.readline()
        cache.make_room(1)
        cache.forget(folder.name[:16])
        assert folder.exists()
        user.kill()
        user.wait()
    cache.make_room(1)
    assert not folder.exists()
    assert not os.listdir(cache.folder / "users")


def test_a_bucket_is_read_with_a_cache_smaller_than_what_is_read(s3_server, s3_root, tmp_path, directory):
    section = StorageConfig(root=s3_root, endpoint_url=s3_server.endpoint_url, cache_gib=10_000 / 2**30)
    store = ArtifactStore(section, cache_folder=tmp_path / "cache")
    other = entry(DownloadCache(tmp_path / "cache", 0), 1, size=9_000)
    ref = store.publish("estimate", key_of(n=1), directory, parents=[], fingerprint={})
    assert tree_digest(store.open_directory(ref)) == ref.sha256
    assert not other.exists()


def test_a_worker_sweeps_with_what_it_first_publishes(holder, tmp_path, directory):
    killed, _, dead_part = holder()
    killed.kill()
    killed.wait()
    store = ArtifactStore(StorageConfig(root=str(tmp_path / "store")))
    store.publish("estimate", key_of(n=1), directory, parents=[], fingerprint={})
    assert not dead_part.exists()


def test_a_cache_that_cannot_be_written_is_named(s3_server, s3_root, tmp_path, directory):
    section = StorageConfig(root=s3_root, endpoint_url=s3_server.endpoint_url)
    (tmp_path / "file").write_text("no folder")
    store = ArtifactStore(section, cache_folder=tmp_path / "file" / "cache")
    ref = store.publish("estimate", key_of(n=1), directory, parents=[], fingerprint={})
    with pytest.raises(StorageError, match=r"Make .*cache a folder that you can write to"):
        store.open_directory(ref)
