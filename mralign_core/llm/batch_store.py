"""A request that goes by a batch."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any


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
