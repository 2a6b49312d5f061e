"""Adapted modules computed as one operation: values and gradients are those of PEFT's and transformers' own."""

import copy
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    SeedOssConfig,
    SeedOssForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from mralign_core.models.lora import HALF, adapter_autocast, attach_lora
from mralign_core.training.fused import fuse
from tests.core.generation.random_models import build_model
from tests.core.training.tiny import CONFIGS, SIZES, make_model, randomise_adapter

IDS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 8, 7, 1, 2, 3]])
"""Few tokens: an adapter's product is added to that of its map."""
MANY = IDS.repeat(1, 6)
"""Enough for maps to be added up with their adapters before the tokens are multiplied."""


def adapted(architecture, section, dtype=torch.float64, **wanted):
    model = make_model(architecture) if architecture in CONFIGS else build_model(architecture, 62)
    model = attach_lora(model.to(dtype), section.model_copy(update=wanted), seed=0)
    randomise_adapter(model)
    return model


def logits_and_gradients(model, ids=IDS):
    """Of a weighted sum of the logits."""
    model.zero_grad()
    with adapter_autocast(model):
        logits = model(input_ids=ids).logits
    (logits.double() * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    assert all(each is not None for each in gradients.values())
    return logits.detach(), {name: each.clone() for name, each in gradients.items()}


def assert_same(logits, expected, found, gradients, tolerance=1e-6):
    """To what norms leave of float64: transformers computes them in float32."""
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    for name, gradient in gradients.items():
        limit = tolerance * gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, rtol=10 * tolerance, atol=limit, msg=name)


def kinds_of(modules):
    return {type(module).__name__ for module in modules}


@pytest.mark.parametrize("ids", [IDS, MANY], ids=["few tokens", "many tokens"])
@pytest.mark.parametrize(
    ("architecture", "kinds"),
    [
        ("qwen3", {"Qwen3MLP", "Linear", "Qwen3RMSNorm"}),
        ("llama", {"LlamaMLP", "Linear", "LlamaRMSNorm"}),
        ("mistral", {"MistralMLP", "Linear", "MistralRMSNorm"}),
        ("qwen3_moe", {"Linear", "Qwen3MoeRMSNorm"}),
        ("gemma3", {"Linear"}),
    ],
)
def test_values_and_gradients_are_those_of_the_modules(architecture, kinds, ids, section):
    is_moe = architecture == "qwen3_moe"  # experts know no float64
    model = adapted(architecture, section, torch.float32 if is_moe else torch.float64)
    expected, gradients = logits_and_gradients(model, ids)
    changed = fuse(model)
    assert kinds_of(changed) == kinds
    logits, found = logits_and_gradients(model, ids)
    assert_same(logits, expected, found, gradients, tolerance=1e-4 if is_moe else 1e-6)
    assert fuse(model) == []


def test_one_map_in_single_precision_inside_a_model_in_half_of_it(section):
    model = adapted("llama", section, torch.bfloat16)
    for layer in model.get_base_model().model.layers:
        layer.self_attn.o_proj.base_layer.float()
    expected, gradients = logits_and_gradients(model, MANY)
    fuse(model)
    logits, found = logits_and_gradients(model, MANY)
    gradients, found = {**gradients, "logits": expected}, {**found, "logits": logits}
    assert all((found[name] - each).norm() < 0.05 * each.norm() for name, each in gradients.items())


def test_no_tokens_give_no_values(section):
    model = adapted("llama", section)
    fuse(model)
    layer = model.get_base_model().model.layers[0]
    empty = torch.zeros(2, 0, 32, dtype=torch.float64)
    assert layer.mlp(empty).shape == (2, 0, 32) and layer.self_attn.k_proj(empty).shape == (2, 0, 16)


def test_where_products_are_rounded_a_map_and_its_adapter_are_not_added_up(section):
    model = adapted("llama", section, torch.float32)
    fuse(model)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    inputs = torch.randn(64, 32)
    added_up = layer(inputs)
    torch.set_float32_matmul_precision("high")
    try:
        apart = layer(inputs)
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(added_up, apart)
    assert not torch.equal(added_up, apart)


def test_a_model_that_no_one_uses_any_more_is_freed_at_once(section):
    model = make_model("llama")
    layer = model.model.layers[0]
    fuse(attach_lora(model, section, seed=0))
    gone = weakref.ref(layer.mlp), weakref.ref(layer.self_attn.q_proj), weakref.ref(layer.input_layernorm)
    layer.mlp = layer.self_attn.q_proj = layer.input_layernorm = None
    assert [each() for each in gone] == [None, None, None]


@pytest.mark.parametrize("ids", [IDS, MANY], ids=["few tokens", "many tokens"])
def test_a_map_may_have_a_bias(ids, section):
    model = adapted("llama", section)
    for layer in model.get_base_model().model.layers:
        layer.self_attn.q_proj.base_layer.bias = torch.nn.Parameter(torch.randn(32).double(), requires_grad=False)
        layer.mlp.up_proj.base_layer.bias = torch.nn.Parameter(torch.randn(48).double(), requires_grad=False)
    expected, gradients = logits_and_gradients(model, ids)
    assert kinds_of(fuse(model)) == {"Linear", "LlamaRMSNorm"}  # the MLP's maps one by one
    logits, found = logits_and_gradients(model, ids)
    assert_same(logits, expected, found, gradients)


@pytest.mark.parametrize("dtype", HALF)
def test_in_half_precision_it_is_no_further_from_the_truth(dtype, section):
    """The mean error of all gradients beside that of the modules, both against the same weights in float64."""
    model = adapted("qwen3", section, dtype)
    _, true = logits_and_gradients(adapted("qwen3", section, dtype).double(), MANY)
    errors = []
    for _ in range(2):
        _, gradients = logits_and_gradients(model, MANY)
        assert {each.dtype for each in gradients.values()} == {torch.float32}
        errors.append(sum(((gradients[name] - each).norm() / each.norm()).item() for name, each in true.items()))
        fuse(model)
    assert 0 < errors[1] < 1.1 * errors[0]


@pytest.mark.parametrize("size", [1e-6, 1e-3])
def test_in_single_precision_what_a_small_adapter_changes_is_not_blurred(size, section):
    """Log-ratios to the base model: their error beside that of the modules, both against float64."""

    def log_ratios(dtype, fused):
        model = adapted("qwen3", section, dtype)
        generator = torch.Generator().manual_seed(1)
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.data = size * torch.randn(each.shape, generator=generator, dtype=torch.float64).to(dtype)
        if fused:
            fuse(model)
        with torch.no_grad():
            mine = model(input_ids=MANY).logits.log_softmax(-1)
            with model.disable_adapter():
                return (mine - model(input_ids=MANY).logits.log_softmax(-1)).double()

    truth = log_ratios(torch.float64, fused=False)
    errors = [(log_ratios(torch.float32, fused) - truth).square().mean().sqrt() for fused in (True, False)]
    assert 0 < errors[0] < 2 * errors[1]


def test_without_its_adapter_it_is_the_base_model(section):
    model = adapted("qwen3", section)
    with model.disable_adapter():
        expected = model(input_ids=IDS).logits
    fuse(model)
    with model.disable_adapter():
        found = model(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(model(input_ids=IDS).logits, expected)


def test_what_is_more_than_a_linear_map_and_its_adapter_stays(section):
    with_dropout = adapted("llama", section, lora_dropout=0.5)
    assert kinds_of(fuse(with_dropout)) == {"LlamaRMSNorm"}
    for is_dora in (True, False):
        config = LoraConfig(
            r=4, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=is_dora, lora_bias=not is_dora
        )
        assert kinds_of(fuse(get_peft_model(make_model("llama"), config))) == {"LlamaRMSNorm"}
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", modules_to_save=["norm"])
    trained_norms = get_peft_model(make_model("llama"), config)
    changed = fuse(trained_norms)
    assert not any("modules_to_save" in name for name, module in trained_norms.named_modules() if module in changed)
    assert fuse(make_model("llama").train()) == []  # nothing is frozen


class LoudMLP(LlamaMLP):
    """Has the parts of an MLP with a gate, and does more with them."""

    def forward(self, x):
        return 3 * super().forward(x)


def test_what_looks_alike_and_computes_something_else_stays(section):
    loud = adapted("llama", section)
    for layer in loud.get_base_model().model.layers:
        layer.mlp.__class__ = LoudMLP
    seed_oss = SeedOssForCausalLM(SeedOssConfig(**SIZES, residual_dropout=0.1))  # drops behind the last map
    olmo = Olmo2ForCausalLM(Olmo2Config(**SIZES))  # multiplies by the norm's weight before it rounds
    for model, kinds in (
        (loud, {"Linear", "LlamaRMSNorm"}),
        (attach_lora(seed_oss, section, seed=0), {"Linear", "SeedOssRMSNorm"}),
        (attach_lora(olmo, section, seed=0), {"Linear", "Olmo2MLP"}),
    ):
        assert kinds_of(fuse(model)) == kinds


def test_a_model_may_change_what_a_map_gives_in_place(section):
    """OLMo clips queries, keys and values so."""
    torch.manual_seed(0)
    model = attach_lora(OlmoForCausalLM(OlmoConfig(**SIZES, clip_qkv=0.5)).double(), section, seed=0)
    randomise_adapter(model)
    expected, gradients = logits_and_gradients(model)
    assert kinds_of(fuse(model)) == {"OlmoMLP", "Linear"}
    logits, found = logits_and_gradients(model)
    assert_same(logits, expected, found, gradients)


def test_what_peft_does_with_a_model_afterwards_still_works(section):
    model = adapted("llama", section)
    expected = model(input_ids=IDS).logits
    with model.disable_adapter():
        base = model(input_ids=IDS).logits
    fuse(model)
    model.add_adapter("other", model.peft_config["default"])
    torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-6, atol=1e-6)
    model.set_adapter("other")  # a fresh one changes nothing
    torch.testing.assert_close(model(input_ids=IDS).logits, base, rtol=1e-6, atol=1e-6)
    model.set_adapter("default")
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)


def kept_bytes(model):
    """Of distinct storages that the backward pass needs, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=IDS.repeat(1, 20))
    return sum(size for place, (size, _) in kept.items() if place not in own)


def test_less_is_kept_for_the_backward_pass(section):
    """Of each MLP at least the activation and its product with the other map."""
    model = adapted("qwen3", section, torch.float32)
    config = model.get_base_model().config
    before = kept_bytes(model)
    fuse(model)
    tokens = 20 * IDS.numel()
    assert before - kept_bytes(model) >= 2 * tokens * config.intermediate_size * config.num_hidden_layers * 4
