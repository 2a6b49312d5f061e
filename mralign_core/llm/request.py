"""A request, and the record that is kept of its reply."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mralign_core.config import EndpointConfig
from mralign_core.llm.offline import Message
from mralign_core.llm.store import KeepsReplies
from mralign_core.redaction import redacted

logger = logging.getLogger("mralign_core.llm")

RECORD_VERSION = 2
OFFERED = "offered_response_format"
"""Parameter that is sent, as ``response_format``, where the server says that it knows such. It is not in the digest, so
that a reply is found again whatever the server says by then."""
UNANSWERED = "failed"
"""Finish reason of a request that the other side failed to answer; its record is kept, but not finished."""


class Reach(NamedTuple):
    """Where a server is now, and the key it takes, where the config says neither: it was started for this run.

    ``last_words`` says how it ended; an empty text while it runs.
    """

    api_base: str
    api_key: str
    last_words: Callable[[], str]


class Request(NamedTuple):
    """One chat request; ``turn`` tells apart requests that are otherwise alike (0, or 1 for a repair).

    ``reach`` goes before the endpoint's address. It is not in the digest: a server that is started anew is elsewhere.
    """

    endpoint: EndpointConfig
    messages: Sequence[Message]
    params: dict[str, Any]
    turn: int = 0
    reach: Reach | None = None

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of all that can change the reply and is known before it is sent."""
        params = {name: value for name, value in self.params.items() if name != OFFERED}
        return _sha256([self.endpoint.model, self.messages, params, self.endpoint.api_base, self.turn])


class Received(NamedTuple):
    """A kept reply. ``response`` is the whole of it, raw; ``cached`` tells that no request was sent for it."""

    request_digest: str
    prompt_digest: str
    model: str
    reply: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    response: Any
    cached: bool

    @property
    def failed(self) -> bool:
        """Whether no reply came, by the other side's fault and for this one request; a later client asks again."""
        return self.finish_reason == UNANSWERED

    @property
    def problem(self) -> str:
        """Why it failed, in a line; empty where it did not."""
        return str(self.response["problem"]) if self.failed else ""


def kept_record(replies: KeepsReplies, digest: str) -> dict[str, Any] | None:
    """The record kept for a request, of a failure too; None when there is none that this version wrote."""
    record = replies.get(digest)
    if record is not None and not _is_whole(record):
        logger.warning("the kept reply to request %s is damaged or of another version: asking again", digest)
        return None
    return record


def _is_whole(record: dict[str, Any]) -> bool:
    return record.get("version") == RECORD_VERSION and set(Received._fields) - {"cached"} <= record.keys()


def received(record: dict[str, Any], *, cached: bool) -> Received:
    """What a kept record says."""
    fields = {name: redacted(record[name]) for name in Received._fields if name != "cached"}  # as it is kept
    return Received(**fields, cached=cached)


def prompt_digest(request: Request) -> str:
    """SHA-256, in hex, of the messages alone."""
    return _sha256(request.messages)


def reply_record(
    model: str, digest: str, digest_of_prompt: str, reading: Mapping[str, Any], latency_s: float
) -> dict[str, Any]:
    """The record of a reply, or of why there is none.

    Args:
        model: what was asked.
        digest: of the request.
        digest_of_prompt: of its messages.
        reading: what the reply says: ``finish_reason``, ``response``, and what else is known of it.
        latency_s: seconds until it came.
    """
    return {
        "version": RECORD_VERSION,
        "request_digest": digest,
        "prompt_digest": digest_of_prompt,
        "model": model,
        "reply": "",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "cost_usd": 0.0,
        **reading,
        "latency_s": latency_s,
    }


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
