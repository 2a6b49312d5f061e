"""Where a model comes from: pinned when a run starts, found again when a task needs it."""

import json

import pytest
import torch

from mralign_core.config import ModelConfig
from mralign_core.errors import ConfigError
from mralign_core.models import describe_model, folder_digest, limit_threads, locate_model, model_name


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "my-model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(64))
    return path


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "artifact"
    path.mkdir()
    return path


def test_a_local_folder_is_pointed_at_and_pinned_by_its_content(folder, artifact):
    section = ModelConfig(path=str(folder))
    revision = describe_model(section, artifact)
    location = locate_model(artifact, model_name(section))
    assert (location.path, location.revision, location.name) == (str(folder), "", "my-model")
    assert revision == folder_digest(folder)
    assert [file.name for file in artifact.iterdir()] == ["model.json"]


@pytest.mark.parametrize(("name", "content"), [("config.json", b"{ }"), ("model.safetensors", b"x" * 64), ("new", b"")])
def test_another_content_is_another_revision(folder, name, content):
    before = folder_digest(folder)
    (folder / name).write_bytes(content)
    assert folder_digest(folder) != before


def test_a_folder_without_a_model_is_refused(tmp_path, artifact):
    with pytest.raises(ConfigError, match=r"model\.path .*artifact has no config\.json: name a folder"):
        describe_model(ModelConfig(path=str(artifact)), artifact)
    assert not list(artifact.iterdir())


def test_a_model_of_the_hub_is_found_at_its_revision(artifact):
    (artifact / "model.json").write_text(json.dumps({"path": "Qwen/Qwen3-8B", "revision": "abc"}))
    assert locate_model(artifact, "x") == ("Qwen/Qwen3-8B", "abc", "x")


def test_weights_in_the_artifact_are_found_there(artifact):
    (artifact / "config.json").write_text("{}")
    assert locate_model(artifact, "pocket") == (str(artifact), "", "pocket")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"path": "Qwen/Qwen3-8B"}, "Qwen/Qwen3-8B"),
        ({"source": "pocket"}, "pocket"),
        ({"source": "smollm2"}, "smollm2"),
    ],
)
def test_a_name_has_no_path_of_this_machine(fields, name):
    assert model_name(ModelConfig(**fields)) == name


def test_threads_are_limited_only_when_the_config_says_so():
    before = torch.get_num_threads()
    try:
        limit_threads(ModelConfig(cpu_threads=0))
        assert torch.get_num_threads() == before
        limit_threads(ModelConfig(cpu_threads=3))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
