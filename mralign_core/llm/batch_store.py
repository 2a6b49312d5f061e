"""A request that goes by a batch, and where batches under way are recorded, so that none is submitted twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class BatchStore(Protocol):
    """Keeps one record a batch, by its token. Called from several threads at once."""

    def read(self) -> Mapping[str, dict[str, Any]]:
        """The records of all batches."""
        ...

    def write(self, token: str, record: dict[str, Any], /) -> None:
        """Put a batch's record in place of the one before; it is durable when this returns."""
        ...


class MemoryBatchStore:
    """Records kept for the life of the process."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}

    def read(self) -> Mapping[str, dict[str, Any]]:
        """The records of all batches."""
        return dict(self.records)

    def write(self, token: str, record: dict[str, Any]) -> None:
        """Put a batch's record in place of the one before."""
        self.records[token] = record


@dataclass(eq=False)
class BatchItem:
    """One request on its way through a batch, and what waits for its reply.

    ``in_batch`` tells that a batch answers for what was set aside for it. ``earlier`` tells that an earlier run
    submitted it; its reply may then be None, when it has to be asked for anew.
    """

    digest: str
    prompt_digest: str
    most_usd: float
    earlier: bool = False
    line: bytes = b""
    in_batch: bool = False
    reply: asyncio.Future[dict[str, Any] | None] = field(init=False)

    def expect(self) -> asyncio.Future[dict[str, Any] | None]:
        """Wait anew."""
        self.reply = asyncio.get_running_loop().create_future()
        self.reply.add_done_callback(lambda reply: reply.cancelled() or reply.exception())  # it may have no reader
        return self.reply
