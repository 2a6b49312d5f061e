import pytest

from mralign_core.errors import ConfigError
from mralign_core.training.lora import attach_lora, target_modules
from tests.core.training.tiny import make_model

ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]


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


def test_a_target_that_matches_nothing_names_the_modules_there_are(section):
    model = make_model("qwen3")
    with pytest.raises(ConfigError, match=r"no linear module 'query'; it has down_proj, .*'all-linear'"):
        attach_lora(model, section.model_copy(update={"target_modules": "q_proj, query"}), seed=0)


def test_only_the_adapter_is_trained(section):
    model = attach_lora(make_model("llama"), section.model_copy(update={"target_modules": "q_proj"}), seed=0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 4
    assert all("q_proj.lora_" in name for name in trained)
