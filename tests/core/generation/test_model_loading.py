import pytest
import torch
from random_models import build_model

from mralign_core.errors import ConfigError
from mralign_core.models.load import load_model_and_tokenizer, load_tokenizer, resolve_device


def test_a_saved_model_comes_back_in_the_asked_precision(tmp_path, bpe, model):
    model.save_pretrained(tmp_path)
    bpe.save_pretrained(tmp_path)
    loaded, tokenizer = load_model_and_tokenizer(tmp_path, "float32", "cpu")
    assert type(loaded) is type(model) and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert tokenizer.encode("Wait, let me") == bpe.encode("Wait, let me")
    assert load_model_and_tokenizer(tmp_path, "bfloat16", "cpu")[0].dtype == torch.bfloat16


def test_weights_that_could_run_code_are_refused(tmp_path, bpe):
    model = build_model("qwen3", len(bpe))
    model.config.save_pretrained(tmp_path)
    bpe.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        load_model_and_tokenizer(tmp_path, "float32", "cpu")


def test_a_folder_without_model_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        load_tokenizer(tmp_path / "gone")


def test_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="no GPU"):
        resolve_device("cuda")
