"""Take a trained adapter out of the store: as it is, or merged into its base model.

Merging into bfloat16 can cost most of what was learnt: an update smaller than half a step of the weight's own grid is
rounded away. So the loss is measured, told, and written on the card; an adapter that is served beside its model keeps
its updates.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from transformers import PreTrainedModel

from mralign_core.config import ModelConfig, Variant
from mralign_core.errors import ConfigError
from mralign_core.models.load import load_model_and_tokenizer
from mralign_core.models.names import told_model_name
from mralign_core.training.card import Card
from mralign_core.training.export_card import RunFacts, adapter_card, merged_card

logger = logging.getLogger("mralign_core.training")

CARD = "README.md"
MUCH_ROUNDED = 0.1
"""Share of an update; losing more of it is worth a warning."""


class Merged(NamedTuple):
    """A model without adapter, and the share of the adapter's update that rounding took: ‖kept − update‖ / ‖update‖."""

    model: PreTrainedModel
    rounding: float


def export_adapter(adapter: Path, directory: Path, model_section: ModelConfig, variant: Variant, run: RunFacts) -> None:
    """Copy an adapter, with its card completed.

    Args:
        adapter: folder of the adapter's artifact.
        directory: a new or empty folder.
        model_section: names the base model.
        variant: what was trained.
        run: what the run knows of it.

    Raises:
        ConfigError: the folder has files already.
    """
    _claim(directory)
    shutil.copytree(adapter, directory, dirs_exist_ok=True)
    base_model = told_model_name(model_section)
    card = adapter_card(_read_card(adapter), base_model, variant, run, adapter_config=read_adapter_config(adapter))
    (directory / CARD).write_text(card.render(), encoding="utf-8")


def export_merged(
    adapter: Path,
    directory: Path,
    model_path: str | Path,
    model_section: ModelConfig,
    variant: Variant,
    run: RunFacts,
    *,
    revision: str = "",
) -> str:
    """Write the base model with the adapter merged into it: weights, tokenizer, generation config and card.

    Args:
        adapter: folder of the adapter's artifact.
        directory: a new or empty folder.
        model_path: folder or hub id of the base model.
        model_section: its name, its precision, which the merged weights get too, and the device to merge on.
        variant: what was trained.
        run: what the run knows of it.
        revision: hub revision of the base model.

    Returns:
        What merging cost, in words.

    Raises:
        ConfigError: the folder has files already.
    """
    _claim(directory)
    adapted, tokenizer = load_model_and_tokenizer(
        model_path, model_section.dtype, model_section.device, adapter, revision=revision
    )
    merged = merge(adapted)
    merged.model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    rounding = (
        f"Rounding the merged weights to {model_section.dtype} took {merged.rounding:.2%} of the adapter's update."
    )
    if merged.rounding > MUCH_ROUNDED:
        logger.warning("%s Serve the adapter instead, or merge with --set model.dtype=float32", rounding)
    base_model = told_model_name(model_section)
    card = merged_card(_read_card(adapter), base_model, variant, run, dtype=model_section.dtype, rounding=rounding)
    (directory / CARD).write_text(card.render(), encoding="utf-8")
    return rounding


@torch.no_grad()
def merge(model: Any) -> Merged:
    """Add the adapter's update to the weights, in float32, and round the sum once.

    Args:
        model: a PEFT model with one LoRA adapter; it is changed.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> layers = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
        >>> adapted = get_peft_model(layers, LoraConfig(r=1, target_modules=["0"], init_lora_weights=False))
        >>> before = adapted(torch.eye(2))
        >>> merged = merge(adapted)
        >>> torch.allclose(merged.model(torch.eye(2)), before), merged.rounding < 1e-6
        (True, True)
    """
    lost = learnt = 0.0
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        weight = layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight
        update = layer.get_delta_weight(model.active_adapter).float()
        before = weight.float()
        merged = (before + update).to(weight.dtype)
        lost += float((merged.float() - before - update).square().sum())
        learnt += float(update.square().sum())
        weight.copy_(merged)
    return Merged(model.unload(), math.sqrt(lost / learnt) if learnt else 0.0)


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """PEFT's description of the adapter in a folder."""
    values: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    return values


def _read_card(adapter: Path) -> Card:
    return Card.parse((adapter / CARD).read_text(encoding="utf-8"))


def _claim(directory: Path) -> None:
    """Make the folder; refuse one that has files, or that can't be made."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"export to {directory}: it is there and not empty; name a new folder")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"export to {directory}: the folder can't be made ({error}); name another") from error
