"""A PEFT adapter as files: what they say, read without loading its model, and the name under which it is served."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from mralign_core.errors import ConfigError

VLLM_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM makes room for."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SERVED_DIGEST_CHARS = 12
"""Of an artifact's digest, in the name under which it is served."""


class StoredAdapter(NamedTuple):
    """An adapter of this run."""

    variant: str
    sha256: str
    """Digest of its content."""
    folder: Path
    """Its files, as PEFT writes them."""

    @property
    def name(self) -> str:
        """Under which it is served."""
        return served_name(self.variant, self.sha256)


def served_name(name: str, sha256: str) -> str:
    """A name that no other weights are served under.

    Args:
        name: of a model, or a variant.
        sha256: digest of what is served.

    Example:
        >>> served_name("mr_align", "0123456789abcdef")
        'mr_align-0123456789ab'
    """
    return f"{re.sub('[^A-Za-z0-9._-]+', '-', name).strip('-')}-{sha256[:SERVED_DIGEST_CHARS]}"


def vllm_lora_room(rank: int) -> int:
    """The ``max_lora_rank`` with which vLLM takes adapters of a rank.

    Raises:
        ConfigError: there is none.
    """
    if rank > VLLM_LORA_RANKS[-1]:
        raise ConfigError(f"train.lora_r is {rank}; vLLM takes adapters up to rank {VLLM_LORA_RANKS[-1]}")
    return next(room for room in VLLM_LORA_RANKS if room >= rank)


def rank_for_vllm(adapter_dir: Path) -> int:
    """The rank of an adapter that vLLM is to load.

    Raises:
        ConfigError: vLLM loads no such adapter.
    """
    settings = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    if settings.get("target_parameters"):
        raise ConfigError(
            "train.target_modules includes experts, whose adapters vLLM does not load: set evaluate.sampler to "
            "'transformers'"
        )
    return int(settings["r"])


def changes_nothing(adapter_dir: Path) -> bool:
    """Whether an adapter leaves its model as it is: every B of its products B·A is zero, as before the first step."""
    from safetensors import safe_open

    with safe_open(adapter_dir / ADAPTER_WEIGHTS, framework="pt") as weights:
        names = [name for name in weights.keys() if ".lora_A." not in name]  # noqa: SIM118 (it is no mapping)
        return not any(weights.get_tensor(name).any() for name in names)
