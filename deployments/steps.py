"""Build steps of ``prefect.yaml``: what a deployment's template is filled with when it is deployed."""

from __future__ import annotations

import os
from pathlib import Path

from mralign_core import __version__

CHECKOUT = Path(__file__).resolve().parent.parent
CHECKOUT_OF_WORKERS = "MRALIGN_CHECKOUT_OF_WORKERS"
"""Environment variable of `prefect deploy`: this project's folder where runs work, if it is not this one."""


def checkout() -> dict[str, str]:
    """``checkout``, the folder that workers work in, and the ``version`` of the package."""
    return {"checkout": os.environ.get(CHECKOUT_OF_WORKERS) or str(CHECKOUT), "version": __version__}
