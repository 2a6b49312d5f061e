"""One HTTP request under litellm: sent once, its reply bounded, and what is known of it when litellm gives none.

litellm reads replies of any size, unpacks them, follows redirects with the key in a header of its own name, sends again
by itself after a reset, and turns what went wrong into exceptions that don't say whether the request was sent. So its
transport is watched: an :class:`Exchange` that is :meth:`~Exchange.observed` takes part in each request of that task.
Importing this imports litellm, which takes seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx
from litellm.llms.custom_httpx import aiohttp_transport

from mralign_core.llm.faults import REDIRECTS
from mralign_core.llm.tidying import tidied
from mralign_core.redaction import REDACTED, redact

KEPT_CHARS = 16_384
"""So much of a body that could not be read is kept."""
NEVER_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""What aiohttp raises when there is no connection, so that nothing was sent."""
CUT_OFF = "the reply was cut off"
SECRET_HEADERS = ("authorization", "api-key", "x-api-key", "x-goog-api-key")
SHORTEST_SECRET = 6
"""In characters: a shorter key is a word like any other, such as the ``unused`` of a server of one's own."""


class BrokenReplyError(httpx.ReadError):
    """A reply that is not to be read on."""


@dataclass
class Exchange:
    """What happened to one request.

    Args:
        most_bytes: longest body that is read, unpacked.
        is_tidied: put right what litellm stumbles over.

    ``was_sent`` tells that the request may have reached the other side; ``status`` is None until a reply has begun;
    ``problem`` says why a reply could not be read, and is empty where that has not failed.
    """

    most_bytes: int
    is_tidied: bool = True
    was_sent: bool = False
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    problem: str = ""
    _secrets: set[str] = field(default_factory=set)

    @contextlib.contextmanager
    def observed(self) -> Iterator[None]:
        """Take part in what this task, and those it starts, send."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def begin(self, request: httpx.Request) -> None:
        """Note a request that is about to be sent.

        Raises:
            BrokenReplyError: it was sent before; a second time is another attempt, which must have room on the account.
        """
        if self.was_sent:
            raise BrokenReplyError(self.problem or "the connection was lost before a reply came")
        for name in SECRET_HEADERS:
            value = request.headers.get(name, "").removeprefix("Bearer ")
            if len(value) > SHORTEST_SECRET:
                self._secrets.add(value)
        self.was_sent = True
        request.headers["accept-encoding"] = "identity"

    async def receive(self, request: httpx.Request, response: httpx.Response) -> httpx.Response:
        """The response with its whole body, unpacked and bounded.

        Raises:
            BrokenReplyError: it is too long, cut off, in an encoding that was not asked for, or leads elsewhere, to
                where the key must not go.
        """
        self.status, self.headers = response.status_code, response.headers
        if self.status in REDIRECTS:
            there = request.url.join(response.headers.get("location", ""))
            self.problem = f"the endpoint redirects to {there.scheme}://{there.netloc.decode()}{there.path}"
            raise BrokenReplyError(self.problem)
        body = bytearray()
        try:
            async for chunk in _unpacked(response, self.most_bytes):
                body += chunk
                if len(body) > self.most_bytes:
                    raise BrokenReplyError(f"the reply is longer than {self.most_bytes:,} bytes")
        except (httpx.HTTPError, zlib.error) as error:
            self.problem = str(error) if isinstance(error, BrokenReplyError) else CUT_OFF
            raise BrokenReplyError(self.problem) from error
        finally:
            self.body = bytes(body[: self.most_bytes])
            await response.aclose()
        dropped = ("content-encoding", "content-length", "transfer-encoding")
        headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in dropped]
        content = await self._tidied() if self.is_tidied and self.status == 200 else self.body
        return httpx.Response(response.status_code, headers=headers, content=content, request=request)

    async def _tidied(self) -> bytes:
        """The body with what litellm stumbles over put right, where it is JSON."""
        try:
            try:
                return tidied(self.body)
            except RecursionError:  # a thread of its own has all its stack left
                return await asyncio.to_thread(tidied, self.body)
        except RecursionError:
            self.problem = "the reply is nested too deeply"
            raise BrokenReplyError(self.problem) from None

    def beginning(self, num_chars: int = KEPT_CHARS) -> str:
        """How the body begins, without the key."""
        # A character is at most four bytes, and a key may lie across the end.
        text = self.body[: 4 * num_chars + 4096].decode("utf-8", "replace")
        return self.redacted(text)[:num_chars]

    def redacted(self, text: str) -> str:
        """A text without the key that was sent, which some servers send back, and without any other."""
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return redact(text)

    def parsed(self) -> Any:
        """The body as JSON values; None where it is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


class WatchedTransport(aiohttp_transport.LiteLLMAiohttpTransport):
    """litellm's transport, with the exchange of the running task in between."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        exchange = _current.get()
        if exchange is None:
            return await super().handle_async_request(request)
        exchange.begin(request)
        try:
            response = await super().handle_async_request(request)
        except httpx.HTTPError as error:
            if isinstance(error.__cause__, NEVER_CONNECTED):
                exchange.was_sent = False
            raise
        return await exchange.receive(request, response)


# litellm makes its transports by this name, and offers no other way to put one's own under all of its providers.
aiohttp_transport.LiteLLMAiohttpTransport = WatchedTransport  # type: ignore[misc]


async def _unpacked(response: httpx.Response, most_bytes: int) -> AsyncIterator[bytes]:
    """The chunks of a body, of which none unpacks to much more than ``most_bytes``."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise BrokenReplyError(f"the reply is encoded as {encoding[:20]!r}, which was not asked for")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding not in ("identity", "") else None
    async for chunk in response.aiter_raw():
        yield unpack.decompress(chunk, most_bytes + 1) if unpack else chunk
    if unpack and not unpack.eof:
        raise BrokenReplyError(CUT_OFF)
