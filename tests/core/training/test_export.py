"""Exported adapters and merged models load elsewhere and compute the same."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from mralign_core.config import ModelConfig, TrainConfig
from mralign_core.errors import ConfigError
from mralign_core.models.load import load_model_and_tokenizer
from mralign_core.models.lora import attach_lora, save_adapter
from mralign_core.training.card import model_card
from mralign_core.training.export import export_adapter, export_merged, merge
from tests.core.training.test_card import RUN
from tests.core.training.tiny import CONFIGS, make_model, make_tokenizer, randomise_adapter

IDS = torch.tensor([[5, 9, 3, 40, 22, 17, 8]])
SECTION = TrainConfig(lora_r=4, lora_alpha=8)


@pytest.fixture(scope="module", params=[*CONFIGS, "qwen3_moe with experts"])
def architecture(request):
    """Qwen3 has a tied head, the others have not."""
    return request.param


@pytest.fixture(scope="module")
def folders(architecture, tmp_path_factory):
    """A base model, its trained adapter, and what merging them in two precisions writes and tells."""
    folder = tmp_path_factory.mktemp(architecture)
    name, _, experts = architecture.partition(" with ")
    model = make_model(name)
    model.generation_config.temperature, model.generation_config.do_sample = 0.6, True
    model.save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    wanted = {"target_modules": f"all-linear, {experts}"} if experts else {}
    adapted = attach_lora(model, SECTION.model_copy(update=wanted), seed=0)
    randomise_adapter(adapted)
    write_adapter(adapted, folder / "adapter")
    for dtype in ("float32", "bfloat16"):
        (folder / f"{dtype}.txt").write_text(export(folder, "adapter", dtype))
    return folder


def write_adapter(model, folder):
    save_adapter(model, folder, base_model="org/base")
    text = model_card("org/base", "mr_align", SECTION, seed=0, rows=[], counts={}, facts={}, metrics=[]).render()
    (folder / "README.md").write_text(text)


def model_section(folders, dtype="float32"):
    return ModelConfig(source="hub", path=str(folders / "base"), dtype=dtype, device="cpu")


def export(folders, adapter, target, dtype=None):
    section = model_section(folders, dtype or target)
    return export_merged(folders / adapter, folders / target, folders / "base", section, "mr_align", RUN)


def logps(model):
    with torch.no_grad():
        return model(IDS).logits.float().log_softmax(-1)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def test_exported_adapter_is_the_same_files_with_a_longer_card(folders, tmp_path):
    export_adapter(folders / "adapter", tmp_path / "out", model_section(folders), "mr_align", RUN)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folders / "adapter" / name).read_bytes()
    assert "## Results" in (tmp_path / "out" / "README.md").read_text()
    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    trained, _ = load_model_and_tokenizer(folders / "base", "float32", "cpu", folders / "adapter")
    assert torch.equal(logps(PeftModel.from_pretrained(base, tmp_path / "out").eval()), logps(trained))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_folder_loads_with_the_same_logps(folders, dtype):
    loaded = load(folders / dtype)
    assert loaded.dtype == getattr(torch, dtype)
    adapted, _ = load_model_and_tokenizer(folders / "base", dtype, "cpu", folders / "adapter")
    separate = logps(adapted)
    assert isinstance(adapted, PeftModel)
    with adapted.disable_adapter():
        learnt = (logps(adapted) - separate).abs().mean()
    assert learnt > 0.3
    assert (logps(loaded) - separate).abs().mean() < learnt * {"float32": 1e-5, "bfloat16": 0.1}[dtype]
    assert torch.equal(logps(loaded), logps(merge(adapted).model))


def test_rounding_is_told_on_the_card(folders):
    shares = {}
    for dtype in ("float32", "bfloat16"):
        told = (folders / f"{dtype}.txt").read_text()
        assert told in (folders / dtype / "README.md").read_text()
        shares[dtype] = float(told.split("%")[0].split()[-1]) / 100
    assert shares["float32"] == 0
    assert 0 < shares["bfloat16"] < 0.02


def test_merged_folder_is_whole_and_has_no_path_of_this_machine(folders):
    loaded = load(folders / "float32")
    assert loaded.generation_config.temperature == 0.6
    assert loaded.config.tie_word_embeddings == (loaded.get_input_embeddings().weight is loaded.lm_head.weight)
    assert AutoTokenizer.from_pretrained(folders / "float32")("w5 w9")["input_ids"] == [5, 9]
    for path in (folders / "float32").iterdir():
        assert str(folders).encode() not in path.read_bytes()
    assert not (folders / "float32" / "adapter_config.json").exists()


def test_experts_are_saved_one_by_one_as_vllm_loads_them(folders, architecture):
    with safe_open(folders / "float32" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert ("model.layers.0.mlp.experts.3.gate_proj.weight" in names) == architecture.startswith("qwen3_moe")
    assert not any("lora" in name or "base_layer" in name for name in names)


def test_adapter_uses_nothing_that_vllm_refuses(folders, architecture):
    config = json.loads((folders / "adapter" / "adapter_config.json").read_text())
    refused = ("modules_to_save", "use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora")
    assert not any(config.get(name) for name in (*refused, "use_qalora", "rank_pattern", "alpha_pattern", "use_rslora"))
    assert (config["bias"], config["init_lora_weights"], config["r"]) == ("none", True, 4)
    with safe_open(folders / "adapter" / "adapter_model.safetensors", "pt") as file:
        shapes = {tuple(name.split(".")): file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    modules = {"q_proj", "k_proj", "v_proj", "o_proj"}
    if not architecture.startswith("qwen3_moe"):
        modules |= {"gate_proj", "up_proj", "down_proj"}
    if architecture.endswith("experts"):
        modules |= {"experts", "base_layer"}
        experts = ("base_model", "model", "model", "layers", "0", "mlp", "experts")
        # vLLM takes the inner pair for gate and up, the outer for down.
        assert shapes[*experts, "base_layer", "lora_B", "weight"][0] == 2 * 24
        assert shapes[*experts, "lora_A", "weight"][1] == 24
    assert {name[-3] for name in shapes} == modules
    assert {(*name[:2], name[-2]) for name in shapes} == {("base_model", "model", f"lora_{side}") for side in "AB"}


@pytest.mark.parametrize("architecture", ["qwen3"], indirect=True)
def test_update_too_small_for_bfloat16_is_a_warning(folders, caplog):
    model, _ = load_model_and_tokenizer(folders / "base", "bfloat16", "cpu")
    adapted = attach_lora(model, SECTION, seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.fill_(1e-3)
    write_adapter(adapted, folders / "small")
    told = export(folders, "small", "small-merged", "bfloat16")
    assert "took 9" in told  # 9x.xx %
    assert "Serve the adapter instead" in caplog.text
    export(folders, "small", "small-exact", "float32")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("architecture", ["qwen3"], indirect=True)
def test_folder_with_files_is_refused(folders, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    for target in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ConfigError, match="not empty"):
            export_adapter(folders / "adapter", target, model_section(folders), "mr_align", RUN)
        with pytest.raises(ConfigError, match="not empty"):
            export(folders, "adapter", target, "float32")
    with pytest.raises(ConfigError, match="can't be made"):
        export_adapter(folders / "adapter", tmp_path / "mine.txt" / "in", model_section(folders), "mr_align", RUN)
