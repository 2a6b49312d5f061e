"""Where a model comes from: pinned when a run starts, found again when a task needs it."""

import doctest
import json

import pytest
import torch

from mralign_core.config import ModelConfig, TrainConfig
from mralign_core.errors import ConfigError
from mralign_core.generation.check_template import check_rendering
from mralign_core.generation.checking import check_tokens, check_weights
from mralign_core.models import names
from mralign_core.models.load import load_model_and_tokenizer
from mralign_core.models.locate import (
    describe_model,
    file_content_digest,
    folder_digest,
    limit_threads,
    local_path,
    locate_model,
    model_name,
)
from mralign_core.models.lora import attach_lora, save_adapter
from mralign_core.models.names import told_model_name
from mralign_core.training.export import merge
from tests.core.tiny_gguf import write_gguf


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
    location = locate_model(artifact)
    assert (location, model_name(section)) == ((str(folder), ""), "my-model")
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
    assert locate_model(artifact) == ("Qwen/Qwen3-8B", "abc")


def test_weights_in_the_artifact_are_found_there(artifact):
    (artifact / "config.json").write_text("{}")
    assert locate_model(artifact) == (str(artifact), "")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"path": "Qwen/Qwen3-8B"}, "Qwen/Qwen3-8B"),
        ({"source": "pocket"}, "pocket"),
        ({"source": "smollm2"}, "smollm2"),
        ({"path": "/gone/my-model"}, "my-model"),
        ({"path": "/gone/my-model.gguf"}, "my-model"),
        ({"path": "gone/models/my-model/"}, "my-model"),
    ],
)
def test_a_name_has_no_path_of_this_machine(fields, name):
    assert told_model_name(ModelConfig(**fields)) == name


def test_threads_are_limited_only_when_the_config_says_so():
    before = torch.get_num_threads()
    try:
        limit_threads(ModelConfig(cpu_threads=0))
        assert torch.get_num_threads() == before
        limit_threads(ModelConfig(cpu_threads=3))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_path_may_be_written_in_several_ways(folder, artifact, monkeypatch, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("~/my-model", f"{folder}/", "./my-model", "my-model", str(tmp_path / "link")):
        describe_model(ModelConfig(path=path), artifact)
        assert locate_model(artifact).path == str(folder)
        assert model_name(ModelConfig(path=path)) in ("my-model", "link")
    monkeypatch.chdir(folder)
    assert model_name(ModelConfig(path=".")) == "my-model"


@pytest.mark.parametrize("path", ["./gone", "../gone", "~/gone", "/gone/model", "a/b/c", "m.gguf", "org/m.GGUF"])
def test_what_can_only_be_a_path_is_never_looked_up_on_the_hub(path, artifact, monkeypatch):
    monkeypatch.setattr("mralign_core.models.locate._hub_commit", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(ConfigError, match=r"model\.path '.*' does not exist \(looked for /.*\.gguf file, or a hub id"):
        describe_model(ModelConfig(path=path), artifact)


def test_an_adapter_is_no_model(folder, artifact):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds an adapter.*name the model that it belongs to"):
        describe_model(ModelConfig(path=str(folder)), artifact)


def test_another_file_is_no_model(folder, artifact):
    with pytest.raises(ConfigError, match=r"is a file, and no \.gguf file"):
        describe_model(ModelConfig(path=str(folder / "model.safetensors")), artifact)


def test_weights_that_differ_anywhere_have_another_digest(tmp_path):
    """Models trained from one another have the same size and header, and the same embeddings in front."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(20 << 20))
    before = file_content_digest(file)
    with file.open("r+b") as stream:
        stream.seek(13 << 20)
        stream.write(b"x" * (1 << 17))
    assert file_content_digest(file) != before


def test_a_gguf_file_becomes_an_ordinary_model(tmp_path, artifact):
    path = write_gguf(tmp_path / "my-model.GGUF")
    section = ModelConfig(path=str(path))
    assert describe_model(section, artifact) == file_content_digest(path)
    location = locate_model(artifact)
    assert location == (str(artifact), "")
    check_weights(artifact)
    model, tokenizer = load_model_and_tokenizer(artifact, "float32", "cpu")
    assert "gguf" not in json.dumps(json.loads((artifact / "config.json").read_text())).lower()
    check_tokens(location, tokenizer, check_rendering(tokenizer, section, ""))
    ids = tokenizer.encode("Who wrote Emma?<|im_end|>")
    assert tokenizer.decode(ids) == "Who wrote Emma?<|im_end|>" and ids[-1] == tokenizer.eos_token_id
    assert model(torch.tensor([ids])).logits.isfinite().all()
    adapted = attach_lora(model, TrainConfig(lora_r=2), seed=0)
    save_adapter(adapted, tmp_path / "adapter", base_model=model_name(section))
    merged = merge(adapted).model
    merged.save_pretrained(tmp_path / "merged")
    check_weights(tmp_path / "merged")


def test_a_folder_that_holds_one_gguf_file_is_that_file(tmp_path, artifact):
    folder = tmp_path / "m"
    folder.mkdir()
    write_gguf(folder / "q8.gguf")
    describe_model(ModelConfig(path=str(folder)), artifact)
    assert (artifact / "model.safetensors").is_file()


def test_a_damaged_gguf_file_is_refused(tmp_path, artifact):
    path = write_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ConfigError, match=r"m\.gguf can't be converted .*download it again"):
        describe_model(ModelConfig(path=str(path)), artifact)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.gguf", "b.gguf"], r"has 2 GGUF files \(a\.gguf, b\.gguf\): name one"),
        (["m-00001-of-00002.gguf"], "one part of a split GGUF file"),
    ],
)
def test_gguf_files_that_are_no_one_model_are_refused(tmp_path, artifact, names, reason):
    folder = tmp_path / "m"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=reason):
        describe_model(ModelConfig(path=str(folder)), artifact)


def test_a_gguf_file_without_the_package_says_what_to_install(tmp_path, artifact, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(ConfigError, match=r"pip install 'gguf>=0\.10'"):
        describe_model(ModelConfig(path=str(tmp_path / "m.gguf")), artifact)


def test_a_path_that_is_too_long_to_be_one_is_refused():
    with pytest.raises(ConfigError, match=r"model\.path 'aaa.*can't be looked up: File name too long"):
        local_path(ModelConfig(source="hub", path="a" * 5000))


def test_examples_in_docstrings():
    assert doctest.testmod(names).failed == 0
