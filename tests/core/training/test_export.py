"""Exported adapters and merged models load elsewhere and compute the same."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from mralign_core.config import ModelConfig, TrainConfig
from mralign_core.errors import ConfigError
from mralign_core.generation.loading import load_model_and_tokenizer
from mralign_core.training.card import model_card
from mralign_core.training.export import export_adapter, export_merged, merge
from mralign_core.training.lora import attach_lora, save_adapter
from tests.core.training.test_card import RUN
from tests.core.training.tiny import CONFIGS, make_model, make_tokenizer, randomise_adapter

IDS = torch.tensor([[5, 9, 3, 40, 22, 17, 8]])
SECTION = TrainConfig(lora_r=4, lora_alpha=8)


@pytest.fixture(params=[*CONFIGS, "qwen3_moe_tied"])
def architecture(request):
    return request.param


@pytest.fixture
def folders(architecture, tmp_path, monkeypatch):
    """A base model, with tied and untied heads, and a trained adapter."""
    name = architecture.removesuffix("_tied")
    if architecture != name:
        monkeypatch.setattr(CONFIGS[name], "tie_word_embeddings", True)
    model = make_model(name)
    model.generation_config.temperature, model.generation_config.do_sample = 0.6, True
    model.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    adapted = attach_lora(model, SECTION, seed=0)
    randomise_adapter(adapted)
    save_adapter(adapted, tmp_path / "adapter", base_model="org/base")
    text = model_card("org/base", "mr_align", SECTION, seed=0, rows=[], counts={}, facts={})
    (tmp_path / "adapter" / "README.md").write_text(text)
    return tmp_path


def model_section(folders, dtype="float32"):
    return ModelConfig(source="hub", path=str(folders / "base"), dtype=dtype, device="cpu")


def logps(model):
    with torch.no_grad():
        return model(IDS).logits.float().log_softmax(-1)


def export_and_load(folders, dtype="float32"):
    told = export_merged(
        folders / "adapter", folders / "out", folders / "base", model_section(folders, dtype), "mr_align", RUN
    )
    return AutoModelForCausalLM.from_pretrained(folders / "out", dtype="auto").eval(), told


def test_exported_adapter_is_the_same_files_with_a_longer_card(folders):
    command = export_adapter(folders / "adapter", folders / "out", model_section(folders), "mr_align", RUN)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folders / "out" / name).read_bytes() == (folders / "adapter" / name).read_bytes()
    assert "## Results" in (folders / "out" / "README.md").read_text()
    assert command.endswith(f"--max-lora-rank 8 --lora-modules mr_align={folders / 'out'}")
    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    trained, _ = load_model_and_tokenizer(folders / "base", "float32", "cpu", folders / "adapter")
    assert torch.equal(logps(PeftModel.from_pretrained(base, folders / "out").eval()), logps(trained))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_folder_loads_with_the_same_logps(folders, dtype):
    loaded, told = export_and_load(folders, dtype)
    assert loaded.dtype == getattr(torch, dtype)
    adapted, _ = load_model_and_tokenizer(folders / "base", dtype, "cpu", folders / "adapter")
    separate = logps(adapted)
    assert torch.equal(logps(loaded), logps(merge(adapted).model))
    if dtype == "float32":
        assert torch.allclose(logps(loaded), separate, atol=2e-5)
        assert "0.00%" in told
    else:
        assert (logps(loaded) - separate).abs().mean() < 0.1
    plain = AutoModelForCausalLM.from_pretrained(folders / "base", dtype=loaded.dtype).eval()
    assert (logps(plain) - separate).abs().mean() > 0.3


def test_merged_folder_is_whole_and_has_no_path_of_this_machine(folders):
    loaded, _ = export_and_load(folders)
    assert loaded.generation_config.temperature == 0.6
    assert loaded.config.tie_word_embeddings == (loaded.get_input_embeddings().weight is loaded.lm_head.weight)
    assert AutoTokenizer.from_pretrained(folders / "out")("w5 w9")["input_ids"] == [5, 9]
    for path in (folders / "out").iterdir():
        assert str(folders).encode() not in path.read_bytes()
    assert not (folders / "out" / "adapter_config.json").exists()


def test_experts_are_saved_one_by_one_as_vllm_loads_them(folders, architecture):
    export_and_load(folders)
    with safe_open(folders / "out" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    expert = "model.layers.0.mlp.experts.3.gate_proj.weight"
    assert (expert in names) == architecture.startswith("qwen3_moe")
    assert not any("lora" in name or "base_layer" in name for name in names)


def test_adapter_uses_nothing_that_vllm_refuses(folders, architecture):
    config = json.loads((folders / "adapter" / "adapter_config.json").read_text())
    refused = ("modules_to_save", "use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora")
    assert not any(config.get(name) for name in (*refused, "use_qalora", "rank_pattern", "alpha_pattern", "use_rslora"))
    assert (config["bias"], config["init_lora_weights"], config["r"]) == ("none", True, 4)
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    dense = set() if architecture.startswith("qwen3_moe") else {"gate_proj", "up_proj", "down_proj"}
    with safe_open(folders / "adapter" / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert {name.split(".")[-3] for name in names} == attention | dense
    assert {name.split(".", 2)[:2] == ["base_model", "model"] for name in names} == {True}
    assert {name.rsplit(".", 2)[1] for name in names} == {"lora_A", "lora_B"}


@pytest.mark.parametrize("architecture", ["qwen3"], indirect=True)
def test_update_too_small_for_bfloat16_is_told(folders, caplog):
    model, _ = load_model_and_tokenizer(folders / "base", "bfloat16", "cpu")
    adapted = attach_lora(model, SECTION, seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.fill_(1e-3)
    save_adapter(adapted, folders / "adapter", base_model="org/base")
    _, told = export_and_load(folders, "bfloat16")
    assert "Serve the adapter instead" in caplog.text
    assert told in (folders / "out" / "README.md").read_text()
    share = float(told.split()[-6].rstrip("%")) / 100
    assert 0.8 < share < 1.2


@pytest.mark.parametrize("architecture", ["qwen3"], indirect=True)
def test_folder_with_files_is_refused(folders):
    (folders / "out").mkdir()
    (folders / "out" / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="not empty"):
        export_adapter(folders / "adapter", folders / "out", model_section(folders), "mr_align", RUN)
    with pytest.raises(ConfigError, match="not empty"):
        export_and_load(folders)
