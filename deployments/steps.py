"""Build steps of ``prefect.yaml``: what a deployment's template is filled with when it is deployed."""

from __future__ import annotations

from pathlib import Path

from mralign_core import __version__

CHECKOUT = Path(__file__).resolve().parent.parent
CONFIGS = CHECKOUT / "deployments" / "configs"


def checkout() -> dict[str, str]:
    """``checkout``, the folder that runs work in, and the ``version`` of the package."""
    return {"checkout": str(CHECKOUT), "version": __version__}
