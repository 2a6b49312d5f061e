"""One HTTP request under litellm: sent once, its reply bounded, and what it means when litellm gives none.

litellm reads replies of any size, unpacks them, follows redirects with the key in a header of its own name, sends again
by itself after a reset, and turns what went wrong into exceptions that don't say whether the request was sent. So its
transport is watched: an :class:`Exchange` that is :meth:`~Exchange.observed` takes part in each request of that task.
litellm's exceptions say what was wrong as far as litellm could tell; what the exchange saw goes before them
(:func:`attempt_error`).
Importing this imports litellm, which takes seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import httpx
from litellm.exceptions import ContentPolicyViolationError, ContextWindowExceededError, Timeout
from litellm.llms.custom_httpx import aiohttp_transport
from openai import OpenAIError

from mralign_core.llm.faults import REDIRECTS, AttemptError, Kind
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
MESSAGE_CHARS = 1000
"""So much of an error's text is shown and kept."""
REFUSALS = (ContentPolicyViolationError, ContextWindowExceededError)
REFUSING_STATUS = (400, 413, 422)
REFUSING_WORDS = re.compile(
    r"content exists risk|content[ _](filter|policy|management)|invalid_prompt|usage polic|flagged"
    r"|context[ _]length|(prompt|input) is too long|longer than the (maximum )?model",
    re.IGNORECASE,
)
"""How providers word that they refuse one request for its content, where litellm takes it for a bad request."""
OVERLOADED = (408, 425, 429, 502, 503, 504, 529)
TURNING_AWAY = (503, 529)
"""With a Retry-After header, an overloaded server says by these that it did not begin: an overload costs no budget."""
MAY_HAVE_RUN = (408, 409, 499)
"""Refusals that can come after the work was done: time-outs and conflicts with an earlier request of the same kind."""


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

    def beginning(self) -> str:
        """How the body begins, without the key."""
        # A character is at most four bytes, and a key may lie across the end.
        text = self.body[: 4 * KEPT_CHARS + 4096].decode("utf-8", "replace")
        return self.redacted(text)[:KEPT_CHARS]

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
aiohttp_transport.LiteLLMAiohttpTransport = WatchedTransport


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


def attempt_error(error: Exception, now: float, exchange: Exchange) -> AttemptError:
    """What an exception of litellm, and the exchange behind it, mean for a request.

    Raises:
        Exception: the one given, where it is a mistake of this program: nothing was sent, and litellm did not refuse.
    """
    status = exchange.status
    message = exchange.redacted(exchange.problem or _in_a_line(error))
    if not exchange.was_sent and _status_of(error) is None and not isinstance(error, TimeoutError):
        raise error
    kind, way = _meaning(error, exchange)
    return AttemptError(
        kind,
        way,
        message,
        status=status,
        may_be_billed=exchange.was_sent and not _is_plain_refusal(exchange),
        retry_after_s=retry_after_s(error, now),
        body=exchange.beginning(),
    )


def _meaning(error: Exception, exchange: Exchange) -> tuple[Kind, str]:
    status = exchange.status
    if not exchange.was_sent:
        is_local = not may_pass(error)  # litellm refused by itself
        return ("fatal", "not sent") if is_local else ("outage", "no connection")
    if isinstance(error, TimeoutError | Timeout) and not exchange.problem:
        return "lost", "no reply in time"
    if status is None:
        return "lost", "the connection was lost"
    if status in REDIRECTS:
        return "refused", f"HTTP {status}, a redirect"
    if status < 400 and exchange.problem == CUT_OFF:
        return "lost", CUT_OFF
    if status < 400:
        return "broken", f"HTTP {status} with a body that is no reply"
    return _meaning_of_status(error, status), f"HTTP {status}"


def _meaning_of_status(error: Exception, status: int) -> Kind:
    if _is_refusal(error):
        return "content"
    if status in OVERLOADED:
        return "outage" if may_pass(error) else "fatal"
    if status in (401, 402):
        return "fatal"
    if status in (403, 404):
        return "barred"
    return "broken" if status >= 500 else "refused"


def _is_plain_refusal(exchange: Exchange) -> bool:
    """Whether the other side said that it did not do the work."""
    status = exchange.status
    if status is None or status in MAY_HAVE_RUN:
        return False
    if not 400 <= status < 500 and not (status in TURNING_AWAY and "retry-after" in exchange.headers):
        return False
    parsed = exchange.parsed()
    return not (isinstance(parsed, dict) and {"usage", "choices"} & parsed.keys())


def _status_of(error: BaseException) -> int | None:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def _in_a_line(error: Exception) -> str:
    text = str(error) or repr(error)
    return " ".join(text[: 4 * MESSAGE_CHARS].split())[:MESSAGE_CHARS]


def may_pass(error: BaseException) -> bool:
    """Whether an error is of a kind that can pass: time-out, lost connection, rate limit, server error."""
    if isinstance(error, TimeoutError):
        return True
    if not isinstance(error, OpenAIError):
        return False
    status = _status_of(error)
    if status == 429 and "insufficient_quota" in str(error):  # an account without credit is not a rate limit
        return False
    return status is not None and (status in (408, 429) or status >= 500)


def _is_refusal(error: BaseException) -> bool:
    """Whether an error is about one request's content, so that another request may well succeed."""
    if isinstance(error, REFUSALS) or _status_of(error) == 413:
        return True
    return _status_of(error) in REFUSING_STATUS and bool(REFUSING_WORDS.search(str(error)))


def retry_after_s(error: BaseException, now: float) -> float:
    """Seconds that the endpoint asked to wait (header Retry-After, seconds or a date), 0 if it did not say.

    Args:
        error: what the attempt raised.
        now: seconds since the epoch.
    """
    headers: Mapping[str, Any] = getattr(error, "litellm_response_headers", None) or {}
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return 0.0
