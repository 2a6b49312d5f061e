"""Chat requests to annotators: bounded, paced, retried where that helps; each reply is kept, then read.

The policy on errors: what can pass (429, 5xx, time-outs, lost connections) is tried again with growing
pauses; when it does not pass, :class:`EndpointUnavailableError` ends the run, and a rerun goes on from the
replies that are kept. What can't pass (a wrong key, model or parameter) is a
:class:`~mralign_core.errors.UserError` at once. After either no new request is sent, while those under way
are still received and kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from mralign_core.annotation.cue import is_cue
from mralign_core.annotation.prompts import Message, prompt_digest
from mralign_core.annotation.store import ReplyStore

logger = logging.getLogger("mralign_core.annotation")

MAX_RETRY_AFTER_S = 60.0
"""An endpoint that asks for a longer pause is asked again after this one."""
RECORD_VERSION = 1


class EndpointUnavailableError(ConnectionError):
    """An endpoint stayed out of reach for all attempts; the same call, made later, goes on from here."""


class Request(NamedTuple):
    """One chat request; ``turn`` tells apart requests that are otherwise alike (0, or 1 for a repair)."""

    model: str
    messages: Sequence[Message]
    params: dict[str, Any]
    api_base: str
    turn: int

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of all that can change the reply."""
        return hashlib.sha256(json.dumps(self, sort_keys=True).encode()).hexdigest()


class Received(NamedTuple):
    """A kept reply. ``cached`` tells that no request was sent for it."""

    request_digest: str
    model: str
    reply: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    cached: bool


class LLMClient:
    """Sends chat requests through litellm.

    Args:
        replies: where replies are kept and looked up.
        concurrency: most requests in flight at once.
        requests_per_minute: most requests a minute and model, evenly spaced; 0 sets no limit.
        timeout_s: seconds for one attempt.
        max_attempts: attempts for one request.
        first_pause_s: pause before the second attempt, about doubled before each further one.
    """

    def __init__(
        self,
        replies: ReplyStore,
        *,
        concurrency: int,
        requests_per_minute: int,
        timeout_s: float,
        max_attempts: int,
        first_pause_s: float = 1.0,
    ) -> None:
        from mralign_core.annotation import endpoint  # takes seconds: see its docstring

        self._endpoint = endpoint
        self._replies = replies
        self._slots = asyncio.Semaphore(concurrency)
        self._interval_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next_start: dict[str, float] = {}
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._backoff = wait_exponential_jitter(initial=first_pause_s, max=MAX_RETRY_AFTER_S, jitter=first_pause_s)
        self._under_way: dict[str, asyncio.Lock] = {}
        self._stopped_by: Exception | None = None
        self._unpriced: set[str] = set()

    async def complete(self, request: Request) -> Received:
        """The reply to a request: the kept one, else a new one, kept before it is returned.

        Raises:
            UserError: the endpoint refuses requests like this one, which repeating can't help.
            EndpointUnavailableError: no attempt got through.
        """
        digest = request.digest
        async with self._under_way.setdefault(digest, asyncio.Lock()):
            record = await asyncio.to_thread(self._replies.get, digest)
            if record is not None:
                return _received(record, cached=True)
            async with self._slots:
                if self._stopped_by is not None:
                    raise self._stopped_by
                try:
                    record = await self._ask(request, digest)
                    await asyncio.to_thread(self._replies.put, digest, record)
                except Exception as error:
                    self._stopped_by = error
                    raise
        return _received(record, cached=False)

    async def _ask(self, request: Request, digest: str) -> dict[str, Any]:
        """The record of a new reply; a refusal of this one request's content is a record without text."""
        started = time.monotonic()
        try:
            response = await self._attempts(request)
        except self._endpoint.REFUSALS as error:
            reading = {"finish_reason": "content_filter", "response": str(error)}
        else:
            reading = self._reading(request, response)
        return _blank_record(request, digest) | reading | {"latency_s": time.monotonic() - started}

    async def _attempts(self, request: Request) -> Any:
        retrying = AsyncRetrying(
            retry=retry_if_exception(self._endpoint.can_pass),
            stop=stop_after_attempt(self._max_attempts),
            wait=self._pause_s,
            before_sleep=lambda state: _log_retry(request.model, state),
            reraise=True,
        )
        try:
            return await retrying(self._attempt, request)
        except self._endpoint.REFUSALS:
            raise
        except Exception as error:
            if self._endpoint.can_pass(error):
                raise EndpointUnavailableError(
                    f"annotator model {request.model!r} gave no reply in {self._max_attempts} attempt(s) "
                    f"({error!r}); replies so far are kept, run again to go on"
                ) from error
            if isinstance(getattr(error, "status_code", None), int):
                raise self._endpoint.user_error(error, request.model, request.api_base) from error
            raise

    async def _attempt(self, request: Request) -> Any:
        await self._wait_for_turn(request.model)
        return await self._endpoint.send(
            request.model,
            list(request.messages),
            request.params,
            api_base=request.api_base,
            timeout_s=self._timeout_s,
        )

    async def _wait_for_turn(self, model: str) -> None:
        """Space the requests to a model evenly, retries among them."""
        now = time.monotonic()
        start = max(now, self._next_start.get(model, now))
        self._next_start[model] = start + self._interval_s
        await asyncio.sleep(start - now)

    def _pause_s(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = min(self._endpoint.retry_after_s(error, time.time()), MAX_RETRY_AFTER_S)
        return max(asked, self._backoff(state))

    def _reading(self, request: Request, response: Any) -> dict[str, Any]:
        choice = response.choices[0] if response.choices else None
        cost = self._endpoint.cost_usd(response)
        if cost is None and not is_cue(request.model) and request.model not in self._unpriced:
            self._unpriced.add(request.model)
            logger.warning("no price known for model %s: its replies are entered at 0 dollars", request.model)
        usage = getattr(response, "usage", None)
        return {
            "response": response.model_dump(mode="json", warnings=False),
            "reply": _as_utf8((choice.message.content or "") if choice else ""),
            "finish_reason": (choice.finish_reason or "") if choice else "",
            "prompt_tokens": (usage.prompt_tokens or 0) if usage else 0,
            "completion_tokens": (usage.completion_tokens or 0) if usage else 0,
            "cost_usd": cost or 0.0,
        }


def _blank_record(request: Request, digest: str) -> dict[str, Any]:
    return {
        "version": RECORD_VERSION,
        "request_digest": digest,
        "prompt_digest": prompt_digest(request.messages),
        "model": request.model,
        "reply": "",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "cost_usd": 0.0,
    }


def _as_utf8(text: str) -> str:
    """The text with lone surrogates escaped: JSON can bring them, but no table or request can hold them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _received(record: dict[str, Any], *, cached: bool) -> Received:
    fields = {name: record[name] for name in Received._fields if name != "cached"}
    return Received(**fields, cached=cached)


def _log_retry(model: str, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    pause = state.next_action.sleep if state.next_action else 0.0
    logger.warning("model %s, attempt %d: %r; next in %.1f s", model, state.attempt_number, error, pause)
