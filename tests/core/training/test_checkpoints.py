"""Checkpoints on a folder and on a real S3 server: what is kept, and what a kill between any two operations leaves."""

import logging
import math
import struct

import pytest
import torch

from mralign_core.config import StorageConfig
from mralign_core.errors import StorageError
from mralign_core.storage import ArtifactStore, key_of
from mralign_core.storage.filesystem import StoreFiles
from mralign_core.training.checkpoints import StoredCheckpoints, TrainingState

KEY = key_of(adapter=1)
CHANGES = ("write", "upload", "remove", "remove_empty_folder")
"""Operations that change the store; a kill after one that reads leaves what a kill before it leaves."""


class Killed(BaseException):
    """What kill -9 would be: nothing of ours catches it."""


@pytest.fixture(params=["folder", "s3"])
def section(request, tmp_path):
    if request.param == "folder":
        return StorageConfig(root=str(tmp_path / "store"))
    server = request.getfixturevalue("s3_server")
    return StorageConfig(root=request.getfixturevalue("s3_root"), endpoint_url=server.endpoint_url, patience_s=0)


@pytest.fixture
def store(section, tmp_path):
    """The store holds no state of its own, so one serves for what several processes would open."""
    return ArtifactStore(section, tmp_path / "cache")


@pytest.fixture
def files(section):
    """The files behind the store."""
    return StoreFiles(section)


@pytest.fixture
def open_checkpoints(store):
    """Checkpoints of one adapter."""
    return lambda key=KEY: StoredCheckpoints(store, key)


def state_at(step):
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model.layers.0.q_proj.lora_A.weight": torch.randn(4, 8, generator=generator),
        "moments.0": torch.randn(8, 4, generator=generator).to(torch.bfloat16).T,
        "num_steps": torch.tensor(step),
        "random.cpu": torch.Generator().manual_seed(step).get_state(),
    }
    values = {"metrics": [{"step": n, "loss": 1 / 3 + n, "chosen_reward": math.nan} for n in range(step)], "z0": 0.1}
    return TrainingState(step, tensors, values)


def bits(value):
    if isinstance(value, dict):
        return {name: bits(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [bits(inner) for inner in value]
    return struct.pack("<d", value) if isinstance(value, float) else value


def assert_same(found, expected):
    assert found.step == expected.step
    assert bits(found.values) == bits(expected.values)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def steps_in(store, key=KEY):
    return [int(name.removeprefix("step-")) for name in store.keys(f"checkpoint/{key}")]


def test_latest_is_the_last_saved_bit_for_bit(open_checkpoints, store):
    assert open_checkpoints().latest() is None
    checkpoints = open_checkpoints()
    for step in (3, 7, 12):
        checkpoints.save(state_at(step))
        assert_same(open_checkpoints().latest(), state_at(step))
    assert steps_in(store) == [7, 12]
    assert open_checkpoints(key_of(adapter=2)).latest() is None


def test_infinities_and_the_smallest_floats_survive(open_checkpoints):
    values = {"losses": [math.inf, -math.inf, -0.0, 5e-324, 0.1 + 0.2, math.nan]}
    open_checkpoints().save(TrainingState(1, {}, values))
    assert bits(open_checkpoints().latest().values) == bits(values)


def test_clear_leaves_nothing_of_this_adapter_and_all_of_another(open_checkpoints, store, files):
    other = key_of(adapter=2)
    for key in (KEY, other):
        for step in (1, 2):
            open_checkpoints(key).save(state_at(step))
    open_checkpoints().latest()
    open_checkpoints().clear()
    assert open_checkpoints().latest() is None
    assert steps_in(store) == []
    assert steps_in(store, other) == [1, 2]
    assert not files.sizes(f"artifacts/checkpoint/{KEY}")


@pytest.mark.parametrize(
    ("file_name", "damage"),
    [
        ("manifest.json", "removed"),
        ("data/state.safetensors", "changed"),
        ("data/state.json", "cut"),
    ],
)
def test_damaged_checkpoint_gives_way_to_the_one_before(open_checkpoints, store, files, caplog, file_name, damage):
    for step in (3, 7):
        open_checkpoints().save(state_at(step))
    ref = store.find(f"checkpoint/{KEY}", "step-000000007")
    path = f"{ref.path}/{file_name}"
    content = files.read(path)
    if damage == "removed":
        files.remove(path)
    else:
        files.write(path, content[:-1] if damage == "cut" else content[:-9] + b"\x01" + content[-8:])
    with caplog.at_level(logging.WARNING, "mralign_core"):
        assert_same(open_checkpoints().latest(), state_at(3))
    assert "step-000000007" in caplog.text
    # The training goes on from step 3 and comes to step 7 and further: the damaged one must not outlive this.
    open_checkpoints().save(state_at(5))
    assert steps_in(store) == [3, 5]


def test_all_damaged_is_a_start_from_nothing(open_checkpoints, store, files):
    open_checkpoints().save(state_at(3))
    ref = store.find(f"checkpoint/{KEY}", "step-000000003")
    files.remove(f"{ref.path}/data/state.safetensors")
    assert open_checkpoints().latest() is None


def test_unfinished_checkpoint_does_not_push_out_a_whole_one(open_checkpoints, store, files):
    open_checkpoints().save(state_at(3))
    for step in (5, 9):
        files.write(f"artifacts/checkpoint/{KEY}/step-00000000{step}/{'0' * 16}/data/x", b"x")
    open_checkpoints().save(state_at(7))
    assert steps_in(store) == [3, 7]


def kill_after(monkeypatch, num_changes):
    """Let so many changes of the store through, and die after the last of them."""
    left = [num_changes]

    def wrap(operation):
        def counted(*args, **kwargs):
            result = operation(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return result

        return counted

    for name in CHANGES:
        monkeypatch.setattr(StoreFiles, name, wrap(getattr(StoreFiles, name)))


@pytest.mark.parametrize("action", ["save", "clear"])
def test_killed_after_any_change_leaves_a_usable_state(open_checkpoints, store, files, monkeypatch, action):
    num_killed = 0
    for num_changes in range(1, 100):
        key = key_of(adapter=num_changes)
        for step in (3, 7):
            open_checkpoints(key).save(state_at(step))
        with monkeypatch.context() as patch:
            kill_after(patch, num_changes)
            try:
                open_checkpoints(key).save(state_at(12)) if action == "save" else open_checkpoints(key).clear()
                break
            except Killed:
                num_killed += 1
        found = open_checkpoints(key).latest()
        if action == "save":
            assert_same(found, state_at(12) if found.step == 12 else state_at(7))
        elif found:
            assert_same(found, state_at(found.step))
        open_checkpoints(key).save(state_at(15))
        assert_same(open_checkpoints(key).latest(), state_at(15))
        assert len(steps_in(store, key)) <= 2
        open_checkpoints(key).clear()
        assert not files.sizes(f"artifacts/checkpoint/{key}")
    assert num_killed == {"save": 7, "clear": 8}[action]


def test_store_that_refuses_removal_still_gets_checkpoints(open_checkpoints, store, monkeypatch):
    def refuse(self, path):
        raise StorageError(f"{path}: AccessDenied")

    monkeypatch.setattr(StoreFiles, "remove", refuse)
    for step in (3, 7, 12):
        open_checkpoints().save(state_at(step))
    open_checkpoints().clear()
    assert steps_in(store) == [3, 7, 12]
    assert_same(open_checkpoints().latest(), state_at(12))


def test_store_that_is_down_does_not_stop_the_training(open_checkpoints, monkeypatch, caplog):
    open_checkpoints().save(state_at(3))
    with monkeypatch.context() as patch:
        patch.setattr(StoreFiles, "upload", lambda *args: (_ for _ in ()).throw(StorageError("no answer")))
        open_checkpoints().save(state_at(7))
    assert "step 7 is not in a checkpoint: no answer" in caplog.text
    assert_same(open_checkpoints().latest(), state_at(3))
