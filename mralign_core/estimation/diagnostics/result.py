"""What every part of the diagnostics is: a frozen model that goes to JSON and back."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Result(BaseModel):
    """Base of the parts: frozen, JSON both ways."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
