"""What a client learns of one endpoint: when the next request may start, whether it answers, what it knows.

A request that fails while others are answered is that request's failure. When the first ones all fail in one way, it is
the endpoint, or what it is asked: nothing more is sent, and the user is told which way. Requests count in the order in
which they were begun, because refusals come back sooner than replies: as long as an older one is under way, it may
still be answered, and new ones wait for it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx

from mralign_core.config import EndpointConfig

LATER_FACTOR = 4
"""Once an endpoint has answered, so many times more failures in a row mean that it does no more."""
MIXED_FACTOR = 2
"""So many times more failures in a row mean the same where each fails in its own way."""
CHECK_EVERY_S = 1.0
"""Between two looks of a request that waits for its turn."""
SCHEMA_PROBE_TIMEOUT_S = 2.0
MOST_PROBE_BYTES = 4 * 1024 * 1024


class EndpointState:
    """What is known of an endpoint at one address, for as long as a client lives.

    Args:
        endpoint: its config.
    """

    def __init__(self, endpoint: EndpointConfig) -> None:
        self.pace = Pace(endpoint)
        self.health = Health(endpoint.stop_after_failures)
        self.longest_reply = 0
        """Tokens, of the replies so far: some servers don't keep to ``max_output_tokens``."""
        self.refuses_schemas = False
        """Whether it refused a JSON schema that was only offered."""
        self._api_base = endpoint.api_base
        self._probe: asyncio.Task[bool] | None = None

    async def knows_schemas(self) -> bool:
        """Whether it says of itself that it keeps replies to a JSON schema, and has not refused one; asked once."""
        if self.refuses_schemas:
            return False
        if self._probe is None:
            self._probe = asyncio.create_task(says_it_knows_schemas(self._api_base))
        return await asyncio.shield(self._probe)


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


class Failure(NamedTuple):
    """One request that failed: the way, short and stable, and how its reply began; its digest and its HTTP status, as
    far as there are any, and whether an outage may have been the cause.
    """

    way: str
    beginning: str
    digest: str = ""
    status: int | None = None
    can_pass: bool = False


class HealthVerdict(NamedTuple):
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

    def verdict(self) -> HealthVerdict | None:
        """The failures in a row, when they are enough to stop."""
        if not self.failures:
            return None
        limit = self.limit * (LATER_FACTOR if self.num_good else 1)
        way, num_alike = Counter(failure.way for failure in self.failures).most_common(1)[0]
        if num_alike < limit and len(self.failures) < MIXED_FACTOR * limit:
            return None
        return HealthVerdict(len(self.failures), next(f for f in reversed(self.failures) if f.way == way))


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

    def verdict(self) -> HealthVerdict | None:
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


def _is_version(least: tuple[int, int], below: tuple[int, int] = (999, 0)) -> Callable[[Any], bool]:
    def check(answer: Any) -> bool:
        version = answer.get("version") if isinstance(answer, dict) else None
        found = re.match(r"v?(\d+)\.(\d+)", version) if isinstance(version, str) else None
        return found is not None and least <= (int(found[1]), int(found[2])) < below

    return check


SAYINGS: dict[str, Callable[[Any], bool]] = {
    "/openapi.json": lambda answer: "json_schema" in json.dumps(answer.get("components", answer)),  # vLLM, SGLang
    "/version": _is_version((0, 6), below=(1, 0)),  # vLLM, which is no other in this way
    "/props": lambda answer: "default_generation_settings" in answer,  # llama.cpp
    "/api/version": _is_version((0, 5)),  # Ollama
    "/api/v0/models": lambda answer: "compatibility_type" in json.dumps(answer),  # LM Studio
    "/get_model_info": lambda answer: "model_path" in answer,  # SGLang
}
"""Path of a server, below its root → whether its answer is that of a server that knows JSON schemas."""


async def says_it_knows_schemas(api_base: str) -> bool:
    """Ask a server, by what it says of itself; no key is sent, and nothing is asked of any other host.

    Args:
        api_base: base URL of its OpenAI-compatible part, such as ``http://127.0.0.1:8000/v1``.
    """
    root = re.sub(r"(/openai)?(/v1)?/*$", "", api_base)
    limits = httpx.Timeout(SCHEMA_PROBE_TIMEOUT_S)
    try:
        async with (
            asyncio.timeout(SCHEMA_PROBE_TIMEOUT_S),
            httpx.AsyncClient(timeout=limits, follow_redirects=False) as client,
        ):
            answers = await asyncio.gather(*(_says(client, root + path, says) for path, says in SAYINGS.items()))
    except TimeoutError:
        return False
    return any(answers)


async def _says(client: httpx.AsyncClient, url: str, says: Callable[[Any], bool]) -> bool:
    try:
        async with client.stream("GET", url, headers={"accept-encoding": "identity"}) as response:
            body = b""
            async for chunk in response.aiter_raw():
                body += chunk
                if response.status_code != 200 or len(body) > MOST_PROBE_BYTES:
                    return False
        return bool(says(json.loads(body)))
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, TypeError, AttributeError, RecursionError):
        return False  # whatever it is, it does not say so
