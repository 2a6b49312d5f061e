"""How the requests to one endpoint end: tells one bad request from an endpoint that answers none.

A request that fails while others are answered is that request's failure. When the first ones all fail in one way, it is
the endpoint, or what it is asked: nothing more is sent, and the user is told which way. Requests count in the order in
which they were begun, because refusals come back sooner than replies: as long as an older one is under way, it may
still be answered, and new ones wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

LATER_FACTOR = 4
"""Once an endpoint has answered, so many times more failures in a row mean that it does no more."""
MIXED_FACTOR = 2
"""So many times more failures in a row mean the same where each fails in its own way."""


class Failure(NamedTuple):
    """One request that failed: the way, short and stable, and how its reply began; its digest and its HTTP status, as
    far as there are any, and whether an outage may have been the cause.
    """

    way: str
    beginning: str
    digest: str = ""
    status: int | None = None
    can_pass: bool = False


class Verdict(NamedTuple):
    """Failures in a row that are enough to stop: how many, and the last of the commonest way."""

    num_failures: int
    failure: Failure


@dataclass
class Streak:
    """Failures since the last success.

    Args:
        limit: so many in one way, before any success, are enough to stop.
    """

    limit: int
    num_good: int = 0
    failures: list[Failure] = field(default_factory=list)

    def succeed(self) -> None:
        """Count a success."""
        self.num_good += 1
        self.failures.clear()

    def verdict(self) -> Verdict | None:
        """The failures in a row, when they are enough to stop."""
        if not self.failures:
            return None
        limit = self.limit * (LATER_FACTOR if self.num_good else 1)
        way, num_alike = Counter(failure.way for failure in self.failures).most_common(1)[0]
        if num_alike < limit and len(self.failures) < MIXED_FACTOR * limit:
            return None
        return Verdict(len(self.failures), next(f for f in reversed(self.failures) if f.way == way))


class Health:
    """An endpoint's streaks: of requests without a reply, and of replies that could not be used.

    Args:
        limit: :attr:`mralign_core.config.EndpointConfig.stop_after_failures`.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.requests, self.contents = Streak(limit), Streak(limit)
        self._under_way: set[int] = set()
        self._doubted: set[int] = set()
        self._last_failed = self._num_begun = 0
        self._answered_at = -1.0
        self._changed = asyncio.Condition()

    @property
    def is_in_doubt(self) -> bool:
        """Whether requests under way will show if the endpoint is to be asked at all."""
        if not self.has_answered and len(self._doubted) + len(self.requests.failures) >= self.limit:
            return bool(self._doubted) or self._is_open
        return self._is_open

    async def decided(self) -> None:
        """Wait until that has shown."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.is_in_doubt)

    def begin(self) -> int:
        """The number of a new request."""
        self._num_begun += 1
        self._under_way.add(self._num_begun)
        return self._num_begun

    async def end(self, number: int) -> None:
        """Take a request off those under way."""
        self._under_way.discard(number)
        self._doubted.discard(number)
        async with self._changed:
            self._changed.notify_all()

    def succeed(self, number: int) -> None:
        """A reply came."""
        self._doubted.discard(number)
        self._answered_at = time.monotonic()
        self.requests.succeed()

    def doubt(self, number: int) -> None:
        """An attempt at a request failed, and another one follows."""
        self._doubted.add(number)

    def fail(self, number: int, failure: Failure) -> None:
        """A request failed, and is under way no more."""
        self._under_way.discard(number)
        self._doubted.discard(number)
        self._last_failed = max(self._last_failed, number)
        self.requests.failures.append(failure)

    @property
    def has_answered(self) -> bool:
        """Whether any reply came."""
        return bool(self.requests.num_good)

    def has_answered_since(self, moment_s: float) -> bool:
        """Whether a reply came after a moment of the monotonic clock."""
        return self._answered_at > moment_s

    def verdict(self) -> Verdict | None:
        """The requests in a row that failed, when they are enough to stop and none that was begun before can help."""
        return None if self._is_open else self.requests.verdict()

    @property
    def _is_open(self) -> bool:
        is_older_under_way = bool(self._under_way) and min(self._under_way) < self._last_failed
        return is_older_under_way and self.requests.verdict() is not None

    def reset(self) -> set[str]:
        """Forget the failures, as a caller tries anew; the digests of the requests that failed."""
        digests = {failure.digest for failure in self.requests.failures}
        self.requests.failures.clear()
        self.contents.failures.clear()
        return digests
