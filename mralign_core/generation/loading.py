"""Load a causal language model and its tokenizer: safetensors only, never code from the model's folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from mralign_core.errors import ArtifactError, ConfigError

# A bar for every model that is loaded or saved would drown the project's own progress.
transformers_logging.disable_progress_bar()
# peft 0.21 reads a property that transformers 5 deprecates, each time it merges an adapter.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def resolve_device(device: str) -> str:
    """``auto`` is a GPU where there is one; anything else is taken as it is.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"model.device is {device!r}, but no GPU is visible: set it to 'cpu' or 'auto'")
    return device


def load_model_and_tokenizer(
    path: str | Path,
    dtype: str,
    device: str = "auto",
    adapter: str | Path | None = None,
    *,
    revision: str = "",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, an adapter on top of it if there is one, and the tokenizer.

    Args:
        path: hub id, local directory, or a GGUF file. A local path is never looked up on the hub.
        dtype: precision of the weights: ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu`` or ``cuda``.
        adapter: PEFT adapter directory with safetensors weights.
        revision: hub revision; empty for the newest.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        ConfigError: ``path`` holds no model that can be loaded, or the device is not there.
        ArtifactError: the adapter directory has no safetensors weights.
    """
    target = resolve_device(device)
    tokenizer = load_tokenizer(path, revision)
    source, options = _source(path, revision)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path {str(path)!r} holds no causal language model with safetensors weights: {error}"
        ) from error
    model = model.to(target)
    if adapter is not None:
        model = _with_adapter(model, Path(adapter))
    return model.eval(), tokenizer


def load_tokenizer(path: str | Path, revision: str = "") -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; arguments as in :func:`load_model_and_tokenizer`.

    Raises:
        ConfigError: ``path`` holds no tokenizer.
    """
    source, options = _source(path, revision)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path {str(path)!r} holds no tokenizer that transformers can load: {error}") from error


def _source(path: str | Path, revision: str) -> tuple[str, dict[str, Any]]:
    local = Path(path)
    if local.suffix == ".gguf":
        return str(local.parent), {"gguf_file": local.name, "local_files_only": True}
    if local.is_dir():
        return str(local), {"local_files_only": True}
    if local.is_absolute():
        raise ConfigError(f"model.path {str(path)!r} does not exist: name a folder with a model, or a hub id")
    return str(path), {"revision": revision} if revision else {}


def _with_adapter(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    if not (adapter / "adapter_model.safetensors").is_file():
        raise ArtifactError(f"adapter {adapter} has no adapter_model.safetensors; train again to write it")
    return PeftModel.from_pretrained(model, str(adapter))
