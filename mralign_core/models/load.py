"""Load a causal language model and its tokenizer: safetensors only, never code from the model's folder."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
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
    load_in_4bit: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, an adapter on top of it if there is one, and the tokenizer.

    Args:
        path: hub id or local directory. A local path is never looked up on the hub.
        dtype: precision of the weights: ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu`` or ``cuda``.
        adapter: PEFT adapter directory with safetensors weights.
        revision: hub revision; empty for the newest.
        load_in_4bit: hold the linear layers but the head in 4 bits (NF4, its scales quantised too); they compute in
            ``dtype``.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        ConfigError: ``path`` holds no model that can be loaded, the device is not there, or 4 bits are asked for
            without bitsandbytes.
        ArtifactError: the adapter directory has no safetensors weights.
    """
    target = resolve_device(device)
    tokenizer = load_tokenizer(path, revision)
    source, options = _source(path, revision)
    if load_in_4bit:
        options |= {"quantization_config": _four_bits(dtype), "device_map": {"": target}}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ConfigError(
            f"model.path {str(path)!r} holds no causal language model with safetensors weights: "
            f"{loading_problem(error)}"
        ) from error
    model, found = loaded
    require_all_weights(path, found)
    model = _keep_layout(model) if load_in_4bit else model.to(target)
    if adapter is not None:
        model = _with_adapter(model, Path(adapter))
    return model.eval(), tokenizer


def require_all_weights(path: str | Path, found: Any) -> None:
    """Refuse weights that transformers would make up, from what it says of its loading.

    Raises:
        ConfigError: names the first of them.
    """
    missing = [f"{name!r} is in no file" for name in sorted(found["missing_keys"])]
    other = [f"{name!r} is {list(of)}, not {list(wanted)}" for name, of, wanted in sorted(found["mismatched_keys"])]
    if missing or other:
        raise ConfigError(
            f"model.path {str(path)!r}: {len(missing + other)} weight(s) are not those of the model that config.json "
            f"describes, such as {(other or missing)[0]}: download the model again, or correct config.json"
        )


def loading_problem(error: Exception) -> str:
    """What to tell of an error of transformers, which advises on what this project never does."""
    if "custom code" in str(error) or "trust_remote_code" in str(error):
        return (
            "it needs code of its own, and none from a model's folder is executed; name a model that transformers knows"
        )
    return f"{error!s:.500}"


def load_tokenizer(path: str | Path, revision: str = "") -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; arguments as in :func:`load_model_and_tokenizer`.

    Raises:
        ConfigError: ``path`` holds no tokenizer.
    """
    return _read(AutoTokenizer, path, revision, "tokenizer that transformers can load")


def load_model_config(path: str | Path, revision: str = "") -> PreTrainedConfig:
    """Load a model's configuration, without its weights; arguments as in :func:`load_model_and_tokenizer`.

    Raises:
        ConfigError: ``path`` holds no configuration.
    """
    return _read(AutoConfig, path, revision, "model configuration")


def stored_configs(path: str | Path, revision: str = "") -> list[object]:
    """The generation config and the text config of a model, as far as it has them, without loading it."""
    found: list[object] = []
    with contextlib.suppress(OSError):  # a model need not have a generation config
        found.append(GenerationConfig.from_pretrained(str(path), revision=revision or "main"))
    with contextlib.suppress(ConfigError):  # nor, behind an endpoint, more than a tokenizer
        found.append(load_model_config(path, revision).get_text_config())
    return found


def _read(kind: Any, path: str | Path, revision: str, what: str) -> Any:
    source, options = _source(path, revision)
    try:
        return kind.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path {str(path)!r} holds no {what}: {loading_problem(error)}") from error


def _source(path: str | Path, revision: str) -> tuple[str, dict[str, Any]]:
    local = Path(path)
    if local.is_dir():
        return str(local), {"local_files_only": True}
    if local.is_absolute():
        raise ConfigError(f"model.path {str(path)!r} does not exist: name a folder with a model, or a hub id")
    return str(path), {"revision": revision} if revision else {}


def _four_bits(dtype: str) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "train.load_in_4bit needs the package bitsandbytes: run `pip install bitsandbytes`, or set it to false"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def _keep_layout(model: Any) -> Any:
    # bitsandbytes 0.50 repacks CPU weights for good in the first pass without gradient, and has no gradient for the
    # packed form: training would go on with wrong ones. May go when it has.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _with_adapter(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    if not (adapter / "adapter_model.safetensors").is_file():
        raise ArtifactError(f"adapter {adapter} has no adapter_model.safetensors; train again to write it")
    return PeftModel.from_pretrained(model, str(adapter))
