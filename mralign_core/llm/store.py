"""Where replies are kept, so that no reply is paid for twice."""

from __future__ import annotations

from typing import Any, Protocol


class KeepsReplies(Protocol):
    """Keeps each reply under the digest of its request. Called from several threads at once."""

    def get(self, request_digest: str, /) -> dict[str, Any] | None:
        """The record kept for a request, or None."""
        ...

    def put(self, request_digest: str, record: dict[str, Any], /) -> None:
        """Keep a record of JSON values; it is durable when this returns."""
        ...


class MemoryReplyStore:
    """Replies kept for the life of the process."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}

    def get(self, request_digest: str) -> dict[str, Any] | None:
        """The record kept for a request, or None."""
        return self.records.get(request_digest)

    def put(self, request_digest: str, record: dict[str, Any]) -> None:
        """Keep a record."""
        self.records[request_digest] = record
