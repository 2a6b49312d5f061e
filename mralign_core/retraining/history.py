"""What the retrainings of a config's name came to: a record each, beside the runs that they are."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mralign_core.storage import ArtifactStore
from mralign_core.storage.records import parse_record

logger = logging.getLogger("mralign_core.retraining")

RetrainingEnd = Literal["promoted", "held", "rejected", "nothing-new", "over-budget"]

DECIDED = ("promoted", "held", "rejected")


class Retraining(BaseModel):
    """One retraining that came to its end."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    run: str
    """Which run."""
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """When it ended (UTC)."""
    outcome: RetrainingEnd
    """What it came to."""
    version: str = ""
    """The version that was trained, or found, by its id; empty where none was."""
    compared_with: str = ""
    """The champion that it was compared with, by its id; empty for the base model, or where nothing was compared."""
    gate: str = ""
    """Digest of the margins that it was decided by."""
    is_final: bool = True
    """Whether nothing that the decision needs was missing."""
    champion: str = ""
    """What the alias named at its end, by its id; empty for none."""
    reasons: list[str] = []
    """Why, a sentence each."""


class Retrainings:
    """The records of one config's name.

    Args:
        store: where they are kept.
        name: the config's.
    """

    def __init__(self, store: ArtifactStore, name: str) -> None:
        self._store = store
        self._folder = f"retrainings/{name}"

    def all(self) -> list[Retraining]:
        """All of them, the oldest first."""
        records = self._store.list_json(self._folder)
        found = [parse_record(Retraining, record, f"the record of retraining {run}") for run, record in records.items()]
        return sorted(filter(None, found), key=lambda one: one.at)

    def add(self, one: Retraining) -> None:
        """Note one."""
        self._store.put_json(f"{self._folder}/{one.run}", one.model_dump(mode="json"))

    def decided_on(self, version: str) -> list[Retraining]:
        """Those that decided on a version, the oldest first."""
        return [one for one in self.all() if one.version == version and one.outcome in DECIDED]

    def versions_since(self, champion: str) -> list[str]:
        """Ids of the versions that were compared with a champion, each once, the oldest first.

        Args:
            champion: its id; empty for the base model.
        """
        return list(dict.fromkeys(one.version for one in self.all() if one.version and one.compared_with == champion))

    def num_quiet(self) -> int:
        """How many of the last ones, in a row, had nothing new."""
        outcomes = [one.outcome for one in reversed(self.all())]
        return next((number for number, one in enumerate(outcomes) if one != "nothing-new"), len(outcomes))
