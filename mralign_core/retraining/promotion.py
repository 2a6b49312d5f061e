"""What the gate decided, as its artifact keeps it, and the held-out comparisons that were decided so far."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from mralign_core.retraining.gate import GateDecision, GateVerdict
from mralign_core.schemas.checks import is_null
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.artifact import DIGEST_CHARS

PROMOTION_FILE = "promotion.json"
COMPARISONS = "comparisons"
SHARED = 0.1
"""Of its questions, what a set shares with one that counts as the same."""
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
    is_final: bool = True
    """Whether the same answers would be decided on so again; not where some are still to be asked for."""
    num_comparisons: int = 0
    """That the same held-out questions had decided before."""

    @classmethod
    def of(
        cls,
        decision: GateDecision,
        challenger: str,
        champion: str,
        gains: pd.DataFrame | None = None,
        *,
        num_comparisons: int = 0,
        is_final: bool = True,
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
            is_final=is_final,
        )


class HeldOutUse:
    """Which comparisons held-out questions have decided: a record each, so that none counts twice.

    A comparison counts for every set of questions that shares :data:`SHARED` of its own with it: a set to which one
    question is added is not fresh.

    Args:
        store: where the records are kept.
        questions: digests of the held-out questions.
    """

    def __init__(self, store: ArtifactStore, questions: Collection[str]) -> None:
        self._store = store
        self._questions = set(questions)

    def others(self, comparison: str) -> int:
        """How many comparisons they have decided beside this one; a record that can't be read counts."""
        decided = self._store.list_any_json(COMPARISONS)
        return sum(
            record is None or self._shares(record.get("questions", ()))
            for name, record in decided.items()
            if name != comparison
        )

    def _shares(self, questions: Collection[str]) -> bool:
        return len(self._questions.intersection(questions)) >= SHARED * len(self._questions)

    def note(self, comparison: str) -> None:
        """Note that they decide it; before anyone reads what they say."""
        self._store.put_json(f"{COMPARISONS}/{comparison}", {"questions": sorted(self._questions)})


def comparison_name(challenger: ArtifactRef, champion: ArtifactRef) -> str:
    """What tells a comparison from others: the answers of both.

    Args:
        challenger: its scores.
        champion: those of the other.
    """
    return f"{challenger.sha256[:DIGEST_CHARS]}.{champion.sha256[:DIGEST_CHARS]}"
