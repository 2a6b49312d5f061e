"""What the store deletes is its own: a symbolic link anywhere on the way is refused and named, its target untouched."""

import logging
import os
import time

import pytest
import torch

from mralign_core.config import StorageConfig
from mralign_core.errors import StorageError
from mralign_core.storage import ArtifactStore, key_of
from mralign_core.storage.cache import DownloadCache
from mralign_core.storage.deleting import NotOursError, own_folder, remove_empty_folders, remove_file
from mralign_core.storage.filesystem import StoreFiles
from mralign_core.training.checkpoints import StoredCheckpoints, TrainingState

KEY = key_of(adapter=1)
LONG_AGO = time.time() - 10 * 86_400


@pytest.fixture
def foreign(tmp_path):
    """A folder of somebody else, laid out and named as the store's own would be."""
    folder = tmp_path / "foreign"
    for key in ("step-000000001", "step-000000002", "step-000000003"):
        for path in (folder / key / ("0" * 16) / "manifest.json", folder / key / ("0" * 16) / "data" / "thesis.txt"):
            path.parent.mkdir(parents=True)
            path.write_text("precious")
    (folder / "empty" / "kept").mkdir(parents=True)
    for name in ("notes.txt", "a" * 32, f"{'b' * 8}.{'a' * 32}"):
        (folder / name).write_text("precious")
        os.utime(folder / name, (LONG_AGO, LONG_AGO))
    return folder


def everything(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_text() for path in folder.rglob("*")}


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "store"
    root.mkdir()
    return root


@pytest.fixture
def store(root):
    return ArtifactStore(StorageConfig(root=str(root)))


def link(place, target):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target, target_is_directory=True)
    return place


def state_at(step):
    return TrainingState(step, {"x": torch.zeros(2)}, {})


@pytest.mark.parametrize("action", ["save", "clear"])
def test_a_link_in_place_of_a_checkpoints_folder(root, store, foreign, caplog, action):
    place = link(root / "artifacts" / "checkpoint" / KEY, foreign)
    before = everything(foreign)
    checkpoints = StoredCheckpoints(store, KEY)
    checkpoints.save(state_at(9)) if action == "save" else checkpoints.clear()
    assert before.items() <= everything(foreign).items()
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING][-1:]
    assert f"{place} is a symbolic link to {foreign}" in warning and "Put a folder in place of" in warning


@pytest.mark.parametrize("where", ["artifacts", "artifacts/estimate", "artifacts/estimate/step-000000001"])
def test_a_link_anywhere_in_the_middle(root, store, foreign, where):
    targets = {
        "artifacts": foreign.parent / "outer",
        "artifacts/estimate": foreign,
        "artifacts/estimate/step-000000001": foreign / "step-000000001",
    }
    link(foreign.parent / "outer" / "estimate", foreign)
    place = link(root / where, targets[where])
    before = everything(foreign)
    with pytest.raises(StorageError, match="is a symbolic link to") as caught:
        store.remove("estimate", "step-000000001")
    assert str(place) in str(caught.value)
    assert everything(foreign) == before


def test_a_link_to_a_parent(root, store, foreign):
    link(root / "artifacts" / "estimate" / "x", root.parent)
    before = everything(root.parent)
    with pytest.raises(StorageError, match="symbolic link"):
        store.remove("estimate", "x")
    assert everything(root.parent) == before


def test_a_name_that_climbs_out(root, store, foreign):
    (root / "artifacts").mkdir()
    with pytest.raises(StorageError, match="leaves the store"):
        store.remove("../../foreign", "step-000000001")
    assert (foreign / "step-000000001" / ("0" * 16) / "data" / "thesis.txt").exists()


def test_links_inside_an_artifact_are_not_followed(root, store, foreign, directory):
    ref = store.publish("estimate", KEY, directory, parents=[], fingerprint={})
    place = root / ref.path / "data" / "report.txt"
    place.unlink()
    place.symlink_to(foreign / "notes.txt")
    link(root / ref.path / "data" / "more", foreign)
    before = everything(foreign)
    store.remove("estimate", KEY)
    assert everything(foreign) == before


def test_a_link_in_place_of_the_folder_for_temporaries(root, store, foreign, caplog):
    link(root / "tmp", foreign)
    before = everything(foreign)
    store.check_writable()
    assert everything(foreign) == before
    assert f"{root / 'tmp'} is a symbolic link" in caplog.text


def test_only_what_the_store_named_goes_from_its_folder_for_temporaries(root, store):
    (root / "tmp").mkdir()
    for name in ("notes.txt", "a" * 32):
        (root / "tmp" / name).write_text("x")
        os.utime(root / "tmp" / name, (LONG_AGO, LONG_AGO))
    (root / "tmp" / ("c" * 32)).write_text("written an hour ago by an older version")
    link(root / "tmp" / ("d" * 32), root.parent)
    (root / "tmp" / ("e" * 32)).mkdir()
    os.mkfifo(root / "tmp" / ("f" * 32))
    store.check_writable()
    assert sorted(path.name for path in (root / "tmp").iterdir()) == [
        *(letter * 32 for letter in "cdef"),
        "notes.txt",
    ]


def test_empty_folders_behind_a_link_stay(root, foreign):
    link(root / "artifacts" / "x", foreign / "empty")
    with pytest.raises(NotOursError):
        remove_empty_folders(root, "artifacts/x")
    StoreFiles(StorageConfig(root=str(root))).remove_empty_folder("artifacts")
    assert (foreign / "empty" / "kept").is_dir()
    assert (root / "artifacts" / "x").is_symlink()


def test_a_root_that_is_itself_a_link_is_the_users_choice(tmp_path, directory):
    (tmp_path / "disk").mkdir()
    store = ArtifactStore(StorageConfig(root=str(link(tmp_path / "linked", tmp_path / "disk"))))
    store.publish("estimate", KEY, directory, parents=[], fingerprint={})
    store.remove("estimate", KEY)
    assert not list((tmp_path / "disk" / "artifacts").rglob("*.json"))


def test_what_is_gone_already_is_no_error_of_ours(root):
    with pytest.raises(FileNotFoundError):
        remove_file(root, "artifacts/none/x")
    (root / "file").write_text("x")
    with pytest.raises(NotADirectoryError), own_folder(root, "file/x"):
        pass


@pytest.mark.parametrize("digest", ["*", "", "0" * 16])
def test_the_cache_removes_folders_named_by_a_digest_and_no_links(tmp_path, foreign, digest):
    cache = DownloadCache(tmp_path / "cache", 0)
    (tmp_path / "cache" / "mine").mkdir(parents=True)
    (tmp_path / "cache" / "mine" / "x").write_text("mine")
    link(tmp_path / "cache" / ("0" * 64), foreign)
    before = everything(foreign)
    cache.forget(digest)
    cache.make_room(10)
    assert everything(foreign) == before
    assert (tmp_path / "cache" / "mine" / "x").exists()
