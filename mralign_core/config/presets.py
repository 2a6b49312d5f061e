"""The configs that ship with the project."""

from __future__ import annotations

from pathlib import Path

PRESETS = Path(__file__).resolve().parents[2] / "deployments" / "configs"
"""Their folder: a YAML file each."""


def preset_names() -> list[str]:
    """Their names: the two that need nothing first, then by the alphabet."""
    first = ("pocket", "smoke")
    names = {path.stem for path in PRESETS.glob("*.yaml")}
    return [name for name in first if name in names] + sorted(names - set(first))
