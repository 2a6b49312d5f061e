"""Requests on their way through a batch: one, those that gather, and those that are submitted together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mralign_core.config import EndpointConfig

MOST_BYTES = 190_000_000
"""Of one input file; OpenAI's limit is 200 MB."""


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


@dataclass(eq=False)
class RequestBatch:
    """Requests that are submitted together.

    ``may_exist`` tells that the provider may bill it; ``batch_id`` is empty until the provider has given one.
    """

    endpoint: EndpointConfig
    items: dict[str, BatchItem]
    token: str
    intended_at: float
    batch_id: str = ""
    may_exist: bool = False

    def record(self, status: str, run: str) -> dict[str, Any]:
        """What the store keeps of it."""
        entries = {item.digest: [item.prompt_digest, item.most_usd] for item in self.items.values()}
        return {
            "status": status,
            "model": self.endpoint.model,
            "api_base": self.endpoint.api_base,
            "batch_id": self.batch_id,
            "intended_at": self.intended_at,
            "run": run,
            "num_requests": len(entries),
            "requests": {} if status == "ended" else entries,
        }

    def __str__(self) -> str:
        return f"batch {self.batch_id or '(no id yet)'} of {len(self.items)} requests to {self.endpoint.model}"


class Gathering:
    """Requests to one endpoint that wait to be submitted, until none has come for ``batch_window_s`` seconds."""

    def __init__(self, endpoint: EndpointConfig, submit: Callable[[list[BatchItem]], None]) -> None:
        self._endpoint, self._submit = endpoint, submit
        self._items: list[BatchItem] = []
        self._num_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: BatchItem) -> None:
        """Add a request; a full batch goes at once."""
        if self._num_bytes + len(item.line) > MOST_BYTES:
            self._close()
        self._items.append(item)
        self._num_bytes += len(item.line)
        if len(self._items) == self._endpoint.batch_max_requests:
            self._close()
        else:
            self._restart_timer()

    def _restart_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._endpoint.batch_window_s, self._close)

    def _close(self) -> None:
        if self._timer:
            self._timer.cancel()
        items = [item for item in self._items if not item.reply.done()]  # else its caller was cancelled
        self._items, self._num_bytes = [], 0
        if items:
            self._submit(items)
