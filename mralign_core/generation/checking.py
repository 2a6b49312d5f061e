"""Whether a model is what a run needs, found out before anything is spent on it.

Weights are looked at once, when a local model is pinned down (:func:`check_weights`); how it is asked, at the start of
every run (:func:`check_tokens`, :mod:`.check_template`), because that depends on the config too. Nothing of a model's
folder is executed but its chat template, in a sandbox, and that first in a process that is bounded
(:mod:`.template_probe`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from mralign_core.errors import ConfigError
from mralign_core.generation.control_tokens import end_token_ids
from mralign_core.models.families import Family
from mralign_core.models.load import load_model_config, loading_problem, require_all_weights, stored_configs
from mralign_core.models.locate import ModelLocation

logger = logging.getLogger("mralign_core.models.locate")

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
MUCH_UNUSED = 0.1
"""Share of a model's rows that a tokenizer of its own leaves unused at most."""


def check_weights(folder: Path) -> None:
    """Refuse a folder whose weights are missing, damaged, not finite, or not those of its configuration.

    Every weight is read once; none is kept.

    Raises:
        ConfigError: names the folder, the file or the tensor, and the remedy.
    """
    _check_files(folder, _weight_files(folder))
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(_no_causal_model(folder, error)) from error
    require_all_weights(folder, loaded[1])


def check_tokens(location: ModelLocation, tokenizer: PreTrainedTokenizerBase, family: Family) -> None:
    """Refuse a tokenizer that gives tokens for which the model has no row, or does not know the model's end tokens.

    Tokens that can't come into a prompt or a completion may lie beyond the rows, as Gemma's image token does.

    Args:
        location: where the model is.
        tokenizer: its tokenizer.
        family: how the model thinks.

    Raises:
        ConfigError: names the tokens, both sizes and the remedy.
    """
    path, configs = location.path, stored_configs(location.path, location.revision)
    if not set(tokenizer.get_vocab().values()) - tokenizer.added_tokens_decoder.keys():
        raise ConfigError(
            f"model.path {str(path)!r} has no tokenizer that can write text: put the model's tokenizer.json beside it"
        )
    try:
        rows = num_rows(load_model_config(path, location.revision))
    except (ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(_no_causal_model(path, error)) from error
    beyond = [(number, name) for name, number in tokenizer.get_vocab().items() if number >= rows]
    without = sorted((number, name) for number, name in beyond if _is_used(tokenizer, number, name, family))
    if without:
        named = ", ".join(f"{name!r} ({number})" for number, name in without[:5])
        raise ConfigError(
            f"model.path {str(path)!r}: its tokenizer has {len(without)} token(s) without a row in the model: {named}; "
            f"the tokenizer has {len(tokenizer)} tokens, the embedding {rows} rows. Resize the embeddings "
            "(model.resize_token_embeddings(len(tokenizer)), save both, train the new rows), or put the model's own "
            "tokenizer beside it"
        )
    ends = end_token_ids(tokenizer, family, *configs)
    if unknown := sorted(end for end in ends if end >= rows or tokenizer.convert_ids_to_tokens(end) is None):
        raise ConfigError(
            f"model.path {str(path)!r}: end token(s) {unknown} of its configuration are none of its tokenizer's "
            f"{len(tokenizer)} tokens, or beyond its {rows} rows: put the model's own tokenizer beside it, or correct "
            "eos_token_id in config.json and generation_config.json"
        )
    if len(tokenizer) < rows * (1 - MUCH_UNUSED):
        logger.warning(
            "model.path %s: its tokenizer has %d tokens, and the model rows for %d: is it the model's own?",
            path,
            len(tokenizer),
            rows,
        )


def _no_causal_model(path: str | Path, error: Exception) -> str:
    return f"model.path {path} holds no causal language model that can be loaded: {loading_problem(error)}"


def num_rows(config: Any) -> int:
    """Tokens that a model has both an input and an output row for."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return min(int(layer.weight.shape[0]) for layer in layers if layer is not None)


def _is_used(tokenizer: PreTrainedTokenizerBase, number: int, name: str, family: Family) -> bool:
    """Whether a prompt or a completion can hold a token: special ones only where somebody writes them."""
    token = tokenizer.added_tokens_decoder.get(number)
    if token is None or not token.special:
        return True
    written = f"{tokenizer.chat_template or ''}{''.join(family.tags)}{family.layout}"
    return name in written or name in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, as transformers chooses them: one, or else those of the index."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    index = folder / WEIGHTS_INDEX
    if not index.exists():
        pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
        raise ConfigError(
            f"model.path {folder} has no weights in safetensors"
            + (f", only {pickled[0]}, which could execute code and is not loaded: convert it" if pickled else "")
            + f". Name a folder with {WEIGHTS}"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"model.path {folder}: {WEIGHTS_INDEX} can't be read ({error}): download it again") from error
    gone = [name for name in names if not (folder / str(name)).is_file()]
    if gone:
        raise ConfigError(
            f"model.path {folder}: {len(gone)} of {len(names)} files of weights are missing, such as {gone[0]}: "
            "download the model again"
        )
    return [folder / str(name) for name in names]


def _check_files(folder: Path, files: list[Path]) -> None:
    for file in files:
        try:
            bad = next(_not_finite(file), None)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"model.path {folder}: {file.name} is damaged ({error}): download it again") from error
        if bad:
            raise ConfigError(
                f"model.path {folder}: tensor {bad!r} in {file.name} holds NaN or infinite weights, so that nothing "
                "can be computed: export or download it again"
            )


def _not_finite(file: Path) -> Iterator[str]:
    """Names of the tensors with values that are no numbers."""
    with safe_open(str(file), framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            tensor = tensors.get_tensor(name)
            if tensor.is_floating_point() and tensor.element_size() > 1 and not bool(tensor.isfinite().all()):
                yield name
