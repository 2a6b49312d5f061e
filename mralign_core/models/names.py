"""Names of models that others are told: never a path of this machine, wherever the model is by now.

Apart from :mod:`mralign_core.models.locate`, whose code is in the keys of draws and adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mralign_core.config import ModelConfig
from mralign_core.models.locate import model_name

GGUF = ".gguf"


def told_model_name(section: ModelConfig) -> str:
    """The name of a config's model; of a folder or file that is gone the last part of its path too.

    Example:
        >>> told_model_name(ModelConfig(path="/gone/my-model")), told_model_name(ModelConfig(path="Qwen/Qwen3-8B"))
        ('my-model', 'Qwen/Qwen3-8B')
    """
    name = model_name(section)
    path = Path(name)
    is_hub_id = len(path.parts) <= 2 and name[:1] not in ("/", "~", ".")
    return name if is_hub_id and path.suffix.lower() != GGUF else _local_name(path, is_file=path.suffix.lower() == GGUF)


def stored_model_name(fingerprint: Mapping[str, Any]) -> str:
    """The name of a model by the values that decided its artifact, wherever its folder or file is by now."""
    if fingerprint["source"] != "hub":
        return str(fingerprint["source"])
    path, is_file = str(fingerprint["path"]), "file" in fingerprint
    return _local_name(Path(path), is_file=is_file) if is_file or "folder" in fingerprint else path.rstrip("/")


def _local_name(path: Path, *, is_file: bool) -> str:
    return path.stem if is_file else path.absolute().name
