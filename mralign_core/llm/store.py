"""Where replies and accounts are kept, so that no reply is paid for twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class KeepsReplies(Protocol):
    """Keeps each reply under the digest of its request. Called from several threads at once."""

    def get(self, request_digest: str, /) -> dict[str, Any] | None:
        """The record kept for a request, or None."""
        ...

    def put(self, request_digest: str, record: dict[str, Any], /) -> None:
        """Keep a record of JSON values; it is durable when this returns."""
        ...


class KeepsRecords(Protocol):
    """Keeps accounts by run, or batches under way by token. Called from several threads at once."""

    def read(self) -> Mapping[str, Any]:
        """All records, by name; one that is damaged may be of any form."""
        ...

    def write(self, name: str, record: dict[str, Any], /) -> None:
        """Put a record in place of the one before; it is durable when this returns."""
        ...


class MemoryRecords:
    """Records kept for the life of the process."""

    def __init__(self) -> None:
        self.records: dict[str, Any] = {}

    def read(self) -> Mapping[str, Any]:
        """All records, by name."""
        return dict(self.records)

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Put a record in place of the one before."""
        self.records[name] = record
