"""A champion whose base model is no longer what it was is not compared, whatever samples."""

import json

import pytest

from mralign_core.config import ModelConfig, StorageConfig
from mralign_core.models.locate import describe_model
from mralign_core.retraining.base_models import why_other_base
from mralign_core.storage import ArtifactStore
from tests.version_store import publish_version


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(StorageConfig(root=str(tmp_path / "store")))


@pytest.fixture
def version_on(store, tmp_path):
    """Publishes a version of a letter, of the model that lies in a folder now."""

    def version_on(letter, folder, base_model="base"):
        pointer = tmp_path / f"pointer-{letter}"
        pointer.mkdir()
        revision = describe_model(ModelConfig(path=str(folder)), pointer)
        model = store.publish("model", letter * 64, pointer, parents=[], fingerprint={}, model_revision=revision)
        return publish_version(store, tmp_path, letter, parents=[model], base_model=base_model)

    return version_on


def model_in(folder, weights=b"weights"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_folder_that_changed_in_place_is_noticed(store, version_on, tmp_path):
    folder = model_in(tmp_path / "base")
    champion = version_on("a", folder)
    assert why_other_base(store, version_on("b", folder), champion) == ""
    model_in(folder, b"other ws")
    why = why_other_base(store, version_on("c", folder), champion)
    assert why.startswith("base model base is not what it was when the champion was trained (its contents were ")
    assert "mralign promote" in why


def test_the_same_model_in_another_place_is_the_same(store, version_on, tmp_path):
    champion = version_on("a", model_in(tmp_path / "here" / "base"))
    assert why_other_base(store, version_on("b", model_in(tmp_path / "there" / "base")), champion) == ""


def test_another_model_is_named(store, version_on, tmp_path):
    champion = version_on("a", model_in(tmp_path / "base"))
    other = version_on("b", model_in(tmp_path / "other"), base_model="other")
    assert why_other_base(store, other, champion).startswith("it is of base model other, and the champion of base: ")


def test_of_weights_in_the_store_the_artifact_counts(store, tmp_path):
    first, second = publish_version(store, tmp_path, "a"), publish_version(store, tmp_path, "b")
    assert "is not what it was" in why_other_base(store, second, first)
    same = publish_version(store, tmp_path, "c", parents=[first.parent("model")])
    assert why_other_base(store, same, first) == ""
