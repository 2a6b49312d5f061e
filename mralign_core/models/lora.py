"""Attach a LoRA adapter, and write it so that the same weights are the same bytes on every machine.

Departure from the paper, whose model is dense: where the experts of a mixture are one stacked parameter (Qwen3-MoE
in transformers 5), ``all-linear`` reaches attention only, and a warning says so. ``all-linear, experts`` adapts them
too. Each expert has a low-rank pair of its own, which PEFT adds to the whole stack in every pass: without
recomputation a second copy of all experts is kept for the backward pass, and their gradient is formed in full.

A base model in 4 bits needs nothing here: its norms and head stay in ``model.dtype``, and float32 is where the
objective and the adapter's weights are.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from mralign_core.config import TrainConfig
from mralign_core.errors import ConfigError
from mralign_core.models.load import load_model_config

logger = logging.getLogger("mralign_core.training")

ALL_LINEAR = "all-linear"
EXPERTS = "experts"
HALF = (torch.bfloat16, torch.float16)


def attach_lora(model: PreTrainedModel, section: TrainConfig, *, seed: int) -> PeftModel:
    """Wrap a model in a freshly initialised LoRA adapter; the global random state is left as it was.

    Args:
        model: the base model, changed in place (its linear layers are wrapped).
        section: rank, alpha, dropout and target modules.
        seed: seed of the adapter's initial weights.

    Returns:
        The model with its adapter, all passes of which belong inside :func:`adapter_autocast`.

    Raises:
        ConfigError: a name in ``target_modules`` is no linear module of the model, or dropout is asked for on experts.
    """
    experts = target_parameters(model, section.target_modules)
    if experts and section.lora_dropout:
        raise ConfigError("train.lora_dropout has no meaning on stacked experts: set it to 0, or leave 'experts' out")
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=section.lora_r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=target_modules(model, section.target_modules),
        target_parameters=experts or None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft_model = get_peft_model(model, config)
    if model.dtype in HALF:
        # PEFT would copy the input of every adapted module to float32; under adapter_autocast none is copied.
        adapted: list[Any] = [module for module in peft_model.modules() if isinstance(module, BaseTunerLayer)]
        for module in adapted:
            module.cast_input_dtype_enabled = False
    return peft_model


def adapter_autocast(model: PreTrainedModel | PeftModel) -> torch.autocast:
    """The context of every forward pass in training: a float32 adapter computes in its half-precision base's type.

    Args:
        model: the base model or the model with its adapter; nothing changes where it is float32 or float64.
    """
    is_half = model.dtype in HALF
    return torch.autocast(model.device.type, dtype=model.dtype if is_half else None, enabled=is_half)


def enable_recomputation(model: PeftModel | PreTrainedModel) -> None:
    """Keep only the hidden states before the layers and compute the rest again in the backward pass.

    Works in training mode only. The gradients are those of the plain backward pass.

    Args:
        model: the model with its adapter, changed in place.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    with warnings.catch_warnings():
        # transformers 5.23 renamed it, 5.20 has this name only; may go with the lower bound.
        warnings.filterwarnings("ignore", "`gradient_checkpointing_enable`", FutureWarning)
        base.gradient_checkpointing_enable({"use_reentrant": False})


def target_modules(model: PreTrainedModel, wanted: str) -> list[str]:
    """Short names of the linear modules to adapt, such as ``q_proj``.

    Args:
        model: the base model.
        wanted: names separated by commas; ``all-linear`` is every linear module but the output head, and ``experts``
            is left to :func:`target_parameters`.

    Raises:
        ConfigError: a name matches no linear module; the message lists those there are.
    """
    head = model.get_output_embeddings()
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    names, experts = _names(wanted), _stacked_experts(model)
    known = {ALL_LINEAR, *linear, *([EXPERTS] if experts else [])}
    unknown = sorted(names - known)
    if unknown:
        raise ConfigError(
            f"train.target_modules {wanted!r}: the model has no linear module {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(sorted(known - {ALL_LINEAR}))}; or write {ALL_LINEAR!r}"
        )
    if ALL_LINEAR not in names:
        return sorted(names & linear)
    if experts and EXPERTS not in names:
        logger.warning(
            "%s leaves %d parameters of stacked experts without an adapter; add %r to train.target_modules for one",
            ALL_LINEAR,
            sum(experts.values()),
            EXPERTS,
        )
    return sorted(linear)


def target_parameters(model: PreTrainedModel, wanted: str) -> list[str]:
    """Short names of the stacked experts to adapt, such as ``experts.down_proj``; none unless ``experts`` is wanted.

    Args:
        model: the base model.
        wanted: as in :func:`target_modules`.
    """
    if EXPERTS not in _names(wanted):
        return []
    return sorted({".".join(name.split(".")[-2:]) for name in _stacked_experts(model)})


def check_target_modules(path: str | Path, wanted: str, *, revision: str = "") -> None:
    """Refuse names that the model does not have, from its configuration alone, without its weights.

    Args:
        path: folder or hub id of the base model.
        wanted: as in :func:`target_modules`.
        revision: hub revision of the base model.

    Raises:
        ConfigError: see :func:`target_modules`.
    """
    if wanted == ALL_LINEAR:
        return
    with torch.device("meta"):
        target_modules(AutoModelForCausalLM.from_config(load_model_config(path, revision)), wanted)


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


def _names(wanted: str) -> set[str]:
    return {name.strip() for name in wanted.split(",")}


def _stacked_experts(model: PreTrainedModel) -> dict[str, int]:
    """Size of each parameter that holds a matrix for every expert, by name."""
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if ".experts." in name and parameter.dim() == 3
    }
