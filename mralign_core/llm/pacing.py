"""When the next request to a model may start: limits a minute, and pauses that its endpoint asks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from mralign_core.config import EndpointConfig

CHECK_EVERY_S = 1.0


class Pace:
    """One model's time line: each request takes up the share of a minute that its limits give it.

    Requests are evenly spaced rather than sent in bursts, so a sliding window never holds more than the limit.
    A request's tokens are an estimate when it starts; :meth:`correct` takes the difference off later.
    """

    def __init__(self, endpoint: EndpointConfig) -> None:
        self._request_s = 60 / endpoint.requests_per_minute if endpoint.requests_per_minute else 0.0
        self._token_s = 60 / endpoint.tokens_per_minute if endpoint.tokens_per_minute else 0.0
        self._free_at = time.monotonic()
        self._turns = asyncio.Lock()

    async def admit(self, slots: asyncio.Semaphore, num_tokens: int, check: Callable[[], None]) -> None:
        """Wait for this model's turn and a slot, which is taken: first come, first served.

        A request that a limit holds back does not keep a slot from other models.

        Args:
            slots: the places for requests in flight.
            num_tokens: what the request takes of the limit of tokens, by estimate.
            check: raises when no request may start any more.
        """
        async with self._turns:
            check()
            await slots.acquire()
            while (wait := self._free_at - time.monotonic()) > 0:  # the endpoint may ask for a pause meanwhile
                slots.release()
                await asyncio.sleep(min(wait, CHECK_EVERY_S))
                check()
                await slots.acquire()
            self._free_at = time.monotonic() + max(self._request_s, num_tokens * self._token_s)

    def correct(self, num_tokens: int) -> None:
        """Take account of tokens that an admitted request used beyond its estimate (below it: negative)."""
        self._free_at += num_tokens * self._token_s

    def pause(self, seconds: float) -> None:
        """Let no request start for so many seconds."""
        self._free_at = max(self._free_at, time.monotonic() + seconds)
