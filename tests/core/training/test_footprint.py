import doctest
import re

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, Qwen3Config

from mralign_core.config import TrainConfig
from mralign_core.errors import ConfigError
from mralign_core.models import out_of_memory
from mralign_core.models.lora import adapter_autocast, attach_lora, enable_recomputation
from mralign_core.training import footprint
from mralign_core.training import memory as memory_module
from mralign_core.training.footprint import (
    TrainingLoad,
    check_weights_fit,
    free_memory,
    measure_pass,
    plan_passes,
)
from mralign_core.training.fused import fuse
from mralign_core.training.logps import CompletionLogps
from mralign_core.training.memory import PassSize, out_of_memory_message
from tests.core.training.tiny import CONFIGS, make_model

CPU = torch.device("cpu")
LENGTHS = {"t0": 30, "t1": 50, "t2": 40}


def larger_model(architecture, dtype):
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6, "layer_types": None}
    config = type(CONFIGS[architecture])(**{**CONFIGS[architecture].to_dict(), **sizes})
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def one_row(model, tokens):
    with adapter_autocast(model):
        return model(input_ids=torch.arange(tokens)[None] % 60, logits_to_keep=1, use_cache=False).logits


def peak_bytes(step):
    """Most bytes that PyTorch's allocator held at one time during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    )
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


@pytest.fixture
def load():
    return TrainingLoad(lengths=LENGTHS, device=CPU, rows_per_epoch=3)


@pytest.fixture
def model(section):
    return attach_lora(make_model("qwen3"), section, seed=0)


@pytest.fixture
def memory(monkeypatch):
    """Sets the memory that the device seems to have free."""
    return lambda num_bytes: monkeypatch.setattr(footprint, "free_memory", lambda *_: num_bytes)


def test_each_kept_storage_counts_once_and_parameters_do_not(model):
    parameter = next(model.parameters())

    def run(tokens):
        row = torch.ones(tokens, 8, requires_grad=True)
        exponential = row.exp()  # 8 float32 a token, kept by exp and by both products
        return exponential * exponential + exponential[:, :1] * parameter[0, 0]

    assert measure_pass(model, run).bytes_per_token == 32


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "targets"),
    [("qwen3", "all-linear"), ("llama", "q_proj"), ("qwen3_moe", "all-linear"), ("qwen3_moe", "all-linear, experts")],
)
def test_the_estimate_is_near_the_measured_peak(section, architecture, targets, dtype, recompute):
    section = section.model_copy(update={"target_modules": targets})
    model = attach_lora(larger_model(architecture, dtype), section, seed=0).train()
    assert fuse(model)
    cost = measure_pass(model, lambda tokens: one_row(model, tokens))
    if recompute:
        enable_recomputation(model)
    one_row(model, 64).sum().backward()  # the gradients are there from now on
    estimate = cost.activation_bytes(512, recompute)
    peak = peak_bytes(lambda: one_row(model, 512).sum().backward())
    assert 1.0 < estimate / peak < 1.5


def test_a_job_that_fits_runs_as_configured(section, model, load, caplog):
    caplog.set_level("INFO", "mralign_core.training")
    plan = plan_passes(section, model, load)
    assert plan.passes == (section.tokens_per_forward, False)
    assert plan.footprint.adapter == 16 * sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert plan.footprint.weights == 4 * sum(one.numel() for one in model.parameters() if not one.requires_grad)
    assert plan.footprint.total < plan.footprint.memory
    assert plan.footprint.seconds > 0
    assert re.search(r"model .* MB, adapter and Adam .* of .* GB; about 1 s for 2 epoch", caplog.text)


def test_passes_shrink_before_activations_are_recomputed(section, model, load, memory):
    def plan_with(share_of_longest):
        """As much memory as activations of so many times the longest row take, beside everything else."""
        rest = sum(held[:2]) + held.head - footprint._bytes_on(model, CPU) * footprint.USABLE_SHARE
        memory((rest + cost.activation_bytes(round(50 * share_of_longest), False)) / footprint.USABLE_SHARE)
        return plan_passes(section, model, load)

    cost = measure_pass(model, lambda tokens: one_row(model, tokens))
    held = plan_passes(section, model, load).footprint
    assert plan_with(3).passes == (section.tokens_per_forward, False)
    assert plan_with(1.5).passes == (75, False)
    tokens, recompute = plan_with(0.9).passes
    assert recompute and tokens >= 50


def test_config_decides_over_recomputation(section, model, load):
    plan = plan_passes(section.model_copy(update={"gradient_checkpointing": "always"}), model, load)
    assert plan.passes.recompute


def test_a_row_that_never_fits_is_named_with_what_to_change(section, model, load, memory):
    memory(1000)
    with pytest.raises(
        ConfigError,
        match=r"trace t1, 50 tokens.*max_length below 50.*load_in_4bit.*accelerate_config .train.engine 'own'",
    ):
        plan_passes(section, model, load)
    with pytest.raises(ConfigError, match="gradient_checkpointing to 'always'"):
        plan_passes(section.model_copy(update={"gradient_checkpointing": "never"}), model, load)


def test_shards_take_less_and_more_processes_are_faster(section, model, load, monkeypatch):
    monkeypatch.setattr(footprint, "_seconds_per_token", lambda *_: 0.25)  # two measurements on a busy machine differ
    alone = plan_passes(section, model, load).footprint
    many = plan_passes(section, model, load._replace(num_processes=4, is_sharded=True)).footprint
    copies = plan_passes(section, model, load._replace(num_processes=4)).footprint
    in_layers = sum(
        4 * one.numel() for name, one in model.named_parameters() if ".layers." in name and not one.requires_grad
    )
    # A quarter is held; both layers, and embeddings with the norm, are gathered during a pass.
    assert many.weights == alone.weights // 4 + in_layers + (alone.weights - in_layers)
    assert copies.weights == alone.weights
    assert copies.seconds == pytest.approx(alone.seconds / 4)


def test_measuring_leaves_random_numbers_and_gradients_alone(section, load):
    model = attach_lora(make_model("qwen3"), section.model_copy(update={"lora_dropout": 0.5}), seed=0).train()
    before = torch.get_rng_state()
    plan_passes(section, model, load, CompletionLogps(model).made_up_pass)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3_moe", "llama"])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_weights_are_sized_without_loading_them(tmp_path, architecture, dtype, size):
    model = make_model(architecture)
    model.config.save_pretrained(tmp_path)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert check_weights_fit(tmp_path, dtype, "cpu") == size * num_parameters
    assert check_weights_fit(tmp_path, dtype, "cpu", num_shards=2) == size * num_parameters // 2


def test_four_bits_are_for_linear_layers_but_the_head(tmp_path):
    Qwen3Config(**{**CONFIGS["llama"].to_dict(), "model_type": "qwen3"}).save_pretrained(tmp_path)
    model = make_model("qwen3")
    in_layers = sum(one.numel() for name, one in model.named_parameters() if "proj" in name)
    saved = check_weights_fit(tmp_path, "bfloat16", "cpu") - check_weights_fit(
        tmp_path, "bfloat16", "cpu", load_in_4bit=True
    )
    assert saved == pytest.approx(in_layers * (2 - footprint.NF4_BYTES), abs=1)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    config = Qwen3Config(hidden_size=65_536, intermediate_size=262_144, num_hidden_layers=100)
    config.save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"model.path '{tmp_path}' in float32: its weights take .* GB .*load_in_4bit"
    ):
        check_weights_fit(tmp_path, "float32", "cpu")


def test_limits_of_control_groups_count(tmp_path, monkeypatch):
    monkeypatch.setattr(footprint, "CGROUPS", tmp_path)
    (tmp_path / "memory").mkdir()
    for folder, limit, usage in (
        (tmp_path, "memory.max", "memory.current"),
        (tmp_path / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        (folder / limit).write_text("5000000\n")
        (folder / usage).write_text("3000000\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 1000000\n")
    assert free_memory(CPU) == 3_000_000
    assert free_memory(CPU, num_processes=2) == 1_500_000


@pytest.mark.parametrize("module", [memory_module, out_of_memory])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


def test_out_of_memory_names_the_pass_and_what_to_change():
    message = out_of_memory_message(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
        {"t7": 900, "t9": 1100},
        TrainConfig(on_out_of_memory="stop"),
        PassSize(4096),
    )
    assert "2 row(s), 2000 tokens, the longest 1100 (traces t7, t9; tokens_per_forward 4096" in message
    for way in ("on_out_of_memory", "tokens_per_forward below 2000", "gradient_checkpointing", "max_length below 1100"):
        assert way in message
    assert message.endswith("Tried to allocate 2 GiB.")
