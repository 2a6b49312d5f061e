"""Records of paid requests in the artifact store: replies, what runs paid, batches under way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mralign_core.storage.store import ArtifactStore


class ReplyStore:
    """LLM replies, one object each, by the digest of their request: what was paid for survives a crash."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def get(self, digest: str) -> dict[str, Any] | None:
        """The reply to a request, or None when it was never made."""
        return self._store.get_json(_reply_name(digest))

    def put(self, digest: str, record: Mapping[str, Any]) -> None:
        """Keep a reply. It is not flushed to disk: losing power may lose it, losing the process can't."""
        self._store.put_json(_reply_name(digest), record, durable=False)


class LedgerRecords:
    """What each run paid for one piece of work, a record a run."""

    def __init__(self, store: ArtifactStore, work: str) -> None:
        self._store = store
        self._folder = f"ledgers/{work}"

    def read(self) -> dict[str, dict[str, Any]]:
        """The records of all runs."""
        return self._store.list_json(self._folder)

    def write(self, run: str, record: Mapping[str, Any]) -> None:
        """Put a run's record in place of the one before."""
        self._store.put_json(f"{self._folder}/{run}", record, durable=False)


class BatchRecords:
    """Batches under way at providers, a record a batch: what was submitted is found again after a crash."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def read(self) -> dict[str, dict[str, Any]]:
        """The records of all batches."""
        return self._store.list_json("batches")

    def write(self, token: str, record: Mapping[str, Any]) -> None:
        """Put a batch's record in place of the one before; it survives a loss of power."""
        self._store.put_json(f"batches/{token}", record)


def _reply_name(digest: str) -> str:
    return f"replies/{digest[:2]}/{digest}"
