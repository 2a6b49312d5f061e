"""Attach a LoRA adapter, and write it so that the same weights are the same bytes on every machine.

Departure from the paper: in a mixture of experts whose experts are one stacked parameter (Qwen3-MoE in
transformers 5) ``all-linear`` reaches the linear modules only, that is attention. A warning says so.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from mralign_core.config import TrainConfig
from mralign_core.errors import ConfigError
from mralign_core.generation.loading import load_config

logger = logging.getLogger("mralign_core.training")


def attach_lora(model: PreTrainedModel, section: TrainConfig, *, seed: int) -> PeftModel:
    """Wrap a model in a freshly initialised LoRA adapter; the global random state is left as it was.

    Args:
        model: the base model, changed in place (its linear layers are wrapped).
        section: rank, alpha, dropout and target modules.
        seed: seed of the adapter's initial weights.

    Raises:
        ConfigError: a name in ``target_modules`` is no linear module of the model.
    """
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=section.lora_r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=target_modules(model, section.target_modules),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft_model = get_peft_model(model, config)
    if model.dtype != torch.float32:
        # PEFT would copy the input of every adapted module to float32; under adapter_autocast none is copied.
        for module in peft_model.modules():
            if isinstance(module, BaseTunerLayer):
                module.cast_input_dtype_enabled = False
    return peft_model


def adapter_autocast(model: PreTrainedModel | PeftModel) -> torch.autocast:
    """The context of every forward pass in training: a float32 adapter computes in its base model's precision.

    Args:
        model: the base model or the model with its adapter; nothing changes where it is float32.
    """
    return torch.autocast(model.device.type, dtype=model.dtype, enabled=model.dtype != torch.float32)


def enable_recomputation(peft_model: PeftModel) -> None:
    """Keep only the hidden states before the layers and compute the rest again in the backward pass.

    Works in training mode only. The gradients are those of the plain backward pass.

    Args:
        peft_model: the model with its adapter, changed in place.
    """
    with warnings.catch_warnings():
        # transformers 5.23 renamed it, 5.20 has this name only; may go with the lower bound.
        warnings.filterwarnings("ignore", "`gradient_checkpointing_enable`", FutureWarning)
        peft_model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})


def target_modules(model: PreTrainedModel, wanted: str) -> list[str]:
    """Short names of the linear modules to adapt, such as ``q_proj``.

    Args:
        model: the base model.
        wanted: ``all-linear`` (every linear module but the output head), or names separated by commas.

    Raises:
        ConfigError: a name matches no linear module; the message lists those there are.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    if wanted == "all-linear":
        _log_stacked_experts(model)
        return sorted(linear)
    names = sorted({name.strip() for name in wanted.split(",")})
    unknown = [name for name in names if name not in linear]
    if unknown:
        raise ConfigError(
            f"train.target_modules {wanted!r}: the model has no linear module "
            f"{', '.join(map(repr, unknown))}; it has {', '.join(sorted(linear))}; or write 'all-linear'"
        )
    return names


def check_target_modules(path: str | Path, wanted: str, *, revision: str = "") -> None:
    """Refuse names that the model does not have, from its configuration alone, without its weights.

    Args:
        path: folder or hub id of the base model.
        wanted: as in :func:`target_modules`.
        revision: hub revision of the base model.

    Raises:
        ConfigError: see :func:`target_modules`.
    """
    if wanted == "all-linear":
        return
    with torch.device("meta"):
        target_modules(AutoModelForCausalLM.from_config(load_config(path, revision)), wanted)


def save_adapter(model: PeftModel, directory: Path, *, base_model: str) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``, and nothing else.

    Args:
        model: the trained model.
        directory: where to; made if it is not there.
        base_model: name recorded as the base model; a path would differ between machines.
    """
    config = model.peft_config[model.active_adapter]
    config.base_model_name_or_path = base_model
    model.save_pretrained(str(directory), save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    path = directory / "adapter_config.json"
    values = json.loads(path.read_text())
    # PEFT writes its set of names in hash order, which differs from one process to the next.
    values["target_modules"] = sorted(values["target_modules"])
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _log_stacked_experts(model: PreTrainedModel) -> None:
    stacked = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if ".experts." in name and parameter.dim() == 3
    )
    if stacked:
        logger.warning("all-linear leaves %d parameters of stacked experts without an adapter", stacked)
