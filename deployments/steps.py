"""Build steps of ``prefect.yaml``: what a deployment's template is filled with when it is deployed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mralign_core import __version__
from mralign_core.config import load_config

CHECKOUT = Path(__file__).resolve().parent.parent
CONFIGS = CHECKOUT / "deployments" / "configs"
CHECKOUT_OF_WORKERS = "MRALIGN_CHECKOUT_OF_WORKERS"
"""Environment variable of `prefect deploy`: this project's folder where runs work, if it is not this one."""


def read_config(name: str, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a run config in full, defaults included, so that the form of a deployment comes filled in.

    Args:
        name: a file of ``deployments/configs``, without its suffix.
        overrides: dotted field name → value, in place of the file's.

    Returns:
        ``config``, JSON values by section; ``checkout``, the folder that runs work in; ``version`` of the
        package.

    Raises:
        ConfigError: the file is missing or not a valid config.

    Example:
        >>> read_config("pocket", {"train.where": "deployment"})["config"]["train"]["where"]
        'deployment'
    """
    config = load_config(CONFIGS / f"{name}.yaml", overrides)
    checkout = os.environ.get(CHECKOUT_OF_WORKERS) or str(CHECKOUT)
    return {"config": config.model_dump(mode="json"), "checkout": checkout, "version": __version__}
