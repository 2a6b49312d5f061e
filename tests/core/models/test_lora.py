import importlib.util

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from mralign_core.errors import ConfigError
from mralign_core.models.load import load_model_and_tokenizer
from mralign_core.models.lora import (
    adapter_autocast,
    attach_lora,
    enable_recomputation,
    save_adapter,
    target_modules,
    target_parameters,
)
from mralign_core.training.footprint import measure_pass
from tests.core.training.tiny import make_model, make_tokenizer, randomise_adapter

ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]
ARCHITECTURES = ["qwen3", "qwen3_moe", "llama"]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="package bitsandbytes is not installed"
)


def logits_of(model):
    with adapter_autocast(model):
        return model(input_ids=torch.arange(40)[None], use_cache=False).logits


def gradients(model):
    """Gradient of each trained parameter, from a pass in training mode."""
    model.train().zero_grad()
    logits_of(model).float().log_softmax(-1)[0, :, 3].sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def with_experts(section):
    return section.model_copy(update={"target_modules": "all-linear, experts"})


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("qwen3", ["down_proj", "gate_proj", *ATTENTION, "up_proj"]),
        ("llama", ["down_proj", "gate_proj", *ATTENTION, "up_proj"]),
        ("qwen3_moe", ATTENTION),
    ],
)
def test_all_linear_takes_every_linear_module_but_the_head(architecture, expected):
    assert target_modules(make_model(architecture), "all-linear") == sorted(expected)


def test_experts_that_get_no_adapter_are_logged(caplog):
    target_modules(make_model("qwen3_moe"), "all-linear")
    assert "stacked experts" in caplog.text
    caplog.clear()
    target_modules(make_model("qwen3_moe"), "all-linear, experts")
    assert not caplog.text


def test_a_target_that_matches_nothing_names_the_modules_there_are(section):
    model = make_model("qwen3")
    with pytest.raises(ConfigError, match=r"no linear module 'query'; it has down_proj, .*'all-linear'"):
        attach_lora(model, section.model_copy(update={"target_modules": "q_proj, query"}), seed=0)
    with pytest.raises(ConfigError, match=r"no linear module 'experts'"):
        target_modules(model, "experts")


def test_only_the_adapter_is_trained(section):
    model = attach_lora(make_model("llama"), section.model_copy(update={"target_modules": "q_proj"}), seed=0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 4
    assert all("q_proj.lora_" in name for name in trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recomputation_changes_no_gradient_and_keeps_less(section, architecture, dtype):
    model = attach_lora(make_model(architecture).to(dtype), section, seed=0)
    randomise_adapter(model)
    plain, plain_cost = gradients(model), measure_pass(model, lambda tokens: logits_of(model))
    enable_recomputation(model)
    again = gradients(model)
    assert all(torch.equal(plain[name], again[name]) and plain[name].any() for name in plain)
    assert measure_pass(model, lambda tokens: logits_of(model)).fixed_bytes < plain_cost.fixed_bytes / 2


def test_a_float32_adapter_on_bfloat16_keeps_no_float32_copy_of_its_inputs(section):
    """The inputs of q, k and v are one tensor, those of gate and up another; PEFT alone copies each for each."""
    model = attach_lora(make_model("llama").to(torch.bfloat16), section, seed=0)
    assert {one.dtype for one in model.parameters() if one.requires_grad} == {torch.float32}

    def run(tokens):
        with adapter_autocast(model):
            return model(input_ids=torch.arange(tokens)[None] % 60, use_cache=False).logits

    ours = measure_pass(model, run).bytes_per_token
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            setattr(module, "cast_input_dtype_enabled", True)
    peft_alone = measure_pass(model, run).bytes_per_token
    layers, bfloat16, hidden = 2, 2, 32
    # Two copies more for q, k and v, one for gate and up; and one for o, where attention keeps its input anyway.
    assert peft_alone - ours >= layers * bfloat16 * 3 * hidden


def test_adapted_experts_train_merge_and_load(with_experts, tmp_path):
    model = attach_lora(make_model("qwen3_moe"), with_experts, seed=0)
    untrained = logits_of(make_model("qwen3_moe"))
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    assert target_parameters(base, "q_proj") == []
    assert torch.equal(logits_of(model), untrained)
    randomise_adapter(model)
    by_name = gradients(model)
    assert sum("experts" in name for name in by_name) == 2 * 2 * 2
    assert all(gradient.any() for gradient in by_name.values())
    expected = logits_of(model.eval())
    with model.disable_adapter():
        assert torch.equal(logits_of(model), untrained)
    save_adapter(model, tmp_path, base_model="base")
    loaded = PeftModel.from_pretrained(make_model("qwen3_moe"), str(tmp_path)).eval()
    assert torch.equal(logits_of(loaded), expected)
    assert torch.allclose(logits_of(loaded.merge_and_unload()), expected, atol=1e-4)


def test_gradients_of_adapted_experts_are_the_slopes(with_experts):
    base = make_model("qwen3_moe").double()
    base.set_experts_implementation("eager")  # the grouped kernel has no float64
    model = attach_lora(base, with_experts, seed=0)
    randomise_adapter(model)
    name, slope = next((name, slope) for name, slope in gradients(model).items() if "experts" in name)
    parameter, step = model.get_parameter(name), 1e-3  # norms and router are float32
    place = slope.abs().flatten().argmax()

    def value(change):
        with torch.no_grad():
            parameter.view(-1)[place] += change
            found = logits_of(model).log_softmax(-1)[0, :, 3].sum().item()
            parameter.view(-1)[place] -= change
        return found

    assert (value(step) - value(-step)) / (2 * step) == pytest.approx(slope.flatten()[place].item(), rel=0.01)


def test_experts_and_dropout_do_not_go_together(with_experts):
    with pytest.raises(ConfigError, match="lora_dropout has no meaning on stacked experts"):
        attach_lora(make_model("qwen3_moe"), with_experts.model_copy(update={"lora_dropout": 0.1}), seed=0)


def test_four_bits_without_the_package_name_the_command(model_dir, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        load_model_and_tokenizer(model_dir, "bfloat16", "cpu", load_in_4bit=True)


@needs_bitsandbytes
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_four_bits_train_as_their_dequantised_weights_do(section, architecture, tmp_path):
    import bitsandbytes

    make_model(architecture).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    quantised, _ = load_model_and_tokenizer(tmp_path, "bfloat16", "cpu", load_in_4bit=True)
    plain, _ = load_model_and_tokenizer(tmp_path, "bfloat16", "cpu")
    num_quantised = 0
    for name, module in quantised.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data = weight.to(torch.bfloat16)
            num_quantised += 1
    assert num_quantised == 2 * 7
    found = []
    for base in (quantised, plain):
        model = attach_lora(base, section, seed=0).eval()
        randomise_adapter(model)
        with torch.no_grad():
            logits_of(model)  # the reference pass, after which bitsandbytes would repack a CPU's weights
        found.append(gradients(model))
    assert all(torch.allclose(found[0][name], found[1][name], rtol=0.05, atol=1e-2) for name in found[1])
