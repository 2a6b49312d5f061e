"""What the gate decided, as its artifact keeps it, and the held-out comparisons that were decided so far."""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from mralign_core.retraining.gate import GateDecision, GateVerdict
from mralign_core.schemas.checks import is_null
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.artifact import DIGEST_CHARS

PROMOTION_FILE = "promotion.json"
BASE_MODEL = "the base model"
"""Whom a challenger is compared with before there is a champion."""


class Promotion(BaseModel):
    """A decision, whom it is about, and the figures behind it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    verdict: GateVerdict
    """Whether the challenger takes the champion's place, the champion stays, or the challenger must not."""
    reasons: list[str]
    """A sentence each."""
    challenger: str
    """The version, by its id."""
    champion: str
    """The version that it was compared with, by its id; empty for the base model."""
    gains: list[dict[str, Any]] = []
    """Rows of :data:`~mralign_core.retraining.gate.GAIN_COLUMNS`, in shares; null where not defined."""
    num_comparisons: int = 0
    """That the same held-out questions had decided before."""

    @classmethod
    def of(
        cls, decision: GateDecision, challenger: str, champion: str, gains: pd.DataFrame | None, num_comparisons: int
    ) -> Promotion:
        """The record of a decision; ``gains`` are missing where the two could not be compared."""
        rows = gains.to_dict("records") if gains is not None else []
        return cls(
            verdict=decision.verdict,
            reasons=decision.reasons,
            challenger=challenger,
            champion=champion,
            gains=[{str(name): None if is_null(value) else value for name, value in row.items()} for row in rows],
            num_comparisons=num_comparisons,
        )


class HeldOutUse:
    """Which comparisons a set of held-out questions has decided: a record each, so that none counts twice.

    Models are named by the digests of their adapters, "" for the base model.

    Args:
        store: where the records are kept.
        questions: the held-out questions.
    """

    def __init__(self, store: ArtifactStore, questions: ArtifactRef) -> None:
        self._store = store
        self._folder = f"comparisons/{questions.sha256}"

    def others(self, challenger: str, champion: str) -> int:
        """How many comparisons they have decided beside one of these two."""
        decided = self._store.list_any_json(self._folder)
        return len(decided.keys() - {_name(challenger, champion)})

    def note(self, challenger: str, champion: str) -> None:
        """Note that they decide between two models; before anyone reads what they say."""
        self._store.put_json(f"{self._folder}/{_name(challenger, champion)}", {"with": champion, "of": challenger})


def _name(challenger: str, champion: str) -> str:
    return f"{challenger[:DIGEST_CHARS]}.{champion[:DIGEST_CHARS] or 'base'}"
