"""Chat requests to language models: paced, bounded, paid from a budget, retried where that helps, kept, then read.

The policy on errors: what can pass (429, 5xx, time-outs, lost connections) is tried again with growing
pauses; when it does not pass, :class:`EndpointUnavailableError` ends the run, and a rerun goes on from the
replies that are kept. What can't pass (a wrong key, model or parameter, a budget that is used up) is a
:class:`~mralign_core.errors.UserError` at once. After either no new request is sent, while those under way
are still received and kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol
from weakref import WeakValueDictionary

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from mralign_core.config import EndpointConfig
from mralign_core.errors import UserError
from mralign_core.llm.batch_store import BatchItem, BatchStore, MemoryBatchStore
from mralign_core.llm.health import Failure, Health, unreadable_error
from mralign_core.llm.ledger import Ledger
from mralign_core.llm.pacing import Pace
from mralign_core.llm.request import (
    FAILED,
    EndpointUnavailableError,
    Received,
    Request,
    any_record,
    blank_record,
    prompt_digest,
    received,
)
from mralign_core.llm.store import ReplyStore

logger = logging.getLogger("mralign_core.llm")


class Client(Protocol):
    """Something that has a reply to a request; ``admission`` is for callers to take a place in."""

    admission: asyncio.Semaphore

    async def complete(self, request: Request, *, ask_again: bool = False) -> Received:
        """The reply to a request; ``ask_again`` for one whose kept reply is of no use."""
        ...

    def report_readable(self, endpoint: EndpointConfig) -> None:
        """Tell that a new reply of an endpoint could be used."""
        ...

    def report_unreadable(self, endpoint: EndpointConfig, way: str, beginning: str) -> None:
        """Tell that a new reply of an endpoint could not be used."""
        ...


class LLMClient:
    """Sends chat requests through litellm; one client serves any number of models, in one event loop.

    Args:
        replies: where replies are kept and looked up.
        concurrency: most requests in flight at once, over all models.
        ledger: the account they are paid from; without one, nothing is limited.
        batches: where batches under way are recorded, for endpoints that use a batch API.
        first_pause_s: pause before the second attempt, about doubled before each further one.
    """

    def __init__(
        self,
        replies: ReplyStore,
        *,
        concurrency: int,
        ledger: Ledger | None = None,
        batches: BatchStore | None = None,
        first_pause_s: float = 1.0,
    ) -> None:
        from mralign_core.llm import batch, endpoint  # takes seconds: see their docstrings

        self._api = endpoint
        self._replies = replies
        self._slots = asyncio.Semaphore(concurrency)
        self._paces: dict[tuple[str, str], Pace] = {}
        self.admission = asyncio.Semaphore(2 * concurrency)
        """For callers: pieces of work (traces) under way at once, first come first served. Enough to fill all
        slots, and no more, so that callers who share a client finish one after another."""
        self.ledger = ledger or Ledger()
        self._first_pause_s = first_pause_s
        self._under_way: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._asked: set[str] = set()
        self._healths: dict[tuple[str, str], Health] = {}
        self.stopped_by: Exception | None = None
        self._batches = batch.BatchTransport(
            batches or MemoryBatchStore(),
            replies,
            self.ledger,
            first_pause_s=first_pause_s,
            stopped_by=lambda: self.stopped_by,
        )

    async def complete(self, request: Request, *, ask_again: bool = False) -> Received:
        """The reply to a request: the kept one, else a new one, kept before it is returned.

        A request that the other side failed to answer while it answers others gives a :class:`Received` that says so
        (``failed``). It is kept too, and asked again by the next client, but not by this one.

        Args:
            request: what to ask.
            ask_again: put a new reply in place of the kept one, unless this client has asked for that one already.

        Raises:
            UserError: the endpoint refuses requests like this one, which repeating can't help, or the budget is
                used up.
            EndpointUnavailableError: no attempt got through.
        """
        digest = request.digest
        if self._api.is_offline(request.endpoint.model):  # costs nothing, and its code may change
            return received(await self._buy(request, digest), cached=False)
        lock = self._under_way.setdefault(digest, asyncio.Lock())
        async with lock:
            record = await asyncio.to_thread(any_record, self._replies, digest)
            is_finished = digest in self._asked or not (ask_again or (record and record["finish_reason"] == FAILED))
            if record is not None and is_finished:
                self.ledger.count_kept(request.endpoint.model)
                return received(record, cached=True)
            try:
                record = await self._buy(request, digest)
            except Exception as error:
                self.stopped_by = self.stopped_by or error
                raise
            self._asked.add(digest)
        return received(record, cached=False)

    def report_readable(self, endpoint: EndpointConfig) -> None:
        """Tell that a new reply of an endpoint could be used."""
        self._health(endpoint).contents.succeed()

    def report_unreadable(self, endpoint: EndpointConfig, way: str, beginning: str) -> None:
        """Tell that a new reply of an endpoint could not be used.

        Args:
            endpoint: what sent it.
            way: why not, in a word or two that are the same for the same reason.
            beginning: how the reply begins.

        Raises:
            UserError: the first ``stop_after_failures`` replies, or several times as many in a row, were all of no use.
        """
        contents = self._health(endpoint).contents
        contents.failures.append(Failure(way, beginning))
        if verdict := contents.verdict():
            self.stopped_by = self.stopped_by or unreadable_error(endpoint, verdict)
            self._check_running()

    def _health(self, endpoint: EndpointConfig) -> Health:
        address = (endpoint.model, endpoint.api_base)
        return self._healths.setdefault(address, Health(endpoint.stop_after_failures))

    async def _buy(self, request: Request, digest: str) -> dict[str, Any]:
        """A new reply, kept, on account."""
        self._check_running()
        earlier = await self._batches.earlier_reply(request, digest)
        if earlier is not None:
            return earlier
        model = request.endpoint.model
        price = self._api.price_of(request.endpoint)
        needs_size = bool(price.output_usd or price.input_usd or request.endpoint.tokens_per_minute)
        num_tokens = self._api.count_tokens(request.endpoint, request.messages, request.params) if needs_size else 0
        most_usd = price.cost_usd(num_tokens, request.endpoint.max_output_tokens)
        await self.ledger.set_aside(model, most_usd)
        if request.endpoint.use_batch_api:
            return await self._buy_in_batch(request, BatchItem(digest, prompt_digest(request), most_usd))
        record = None
        try:
            record = await self._ask(request, digest, num_tokens, most_usd)
            if not self._api.is_offline(model):
                await asyncio.to_thread(self._replies.put, digest, record)
        except Exception as error:
            self.stopped_by = self.stopped_by or error  # before others get a turn, while the account is settled
            raise
        finally:
            await self.ledger.settle(model, most_usd, record)
        return record

    async def _buy_in_batch(self, request: Request, item: BatchItem) -> dict[str, Any]:
        """A new reply by a batch, which keeps it and puts it on account; it takes no slot while it waits."""
        try:
            record: dict[str, Any] = await self._attempts(request.endpoint, partial(self._batches.ask, request, item))
        except BaseException:
            if not item.in_batch:
                await self.ledger.settle(request.endpoint.model, item.most_usd, None)
            raise
        return record

    async def _ask(self, request: Request, digest: str, num_tokens: int, most_usd: float) -> dict[str, Any]:
        """The record of a new reply; a refusal of this one request's content is a record without text."""
        started = time.monotonic()
        try:
            response = await self._attempts(request.endpoint, partial(self._attempt, request, num_tokens, most_usd))
        except Exception as error:
            if not self._api.is_refusal(error):
                raise
            reading = {"finish_reason": "content_filter", "response": str(error)}
        else:
            reading = self._api.read(request.endpoint, response, most_usd)
        blank = blank_record(request.endpoint.model, digest, prompt_digest(request))
        return blank | reading | {"latency_s": time.monotonic() - started}

    async def _attempts(self, endpoint: EndpointConfig, attempt: Callable[[], Awaitable[Any]]) -> Any:
        retrying = AsyncRetrying(
            retry=retry_if_exception(self._api.can_pass),
            stop=stop_after_attempt(endpoint.max_attempts),
            wait=wait_exponential_jitter(
                initial=self._first_pause_s, max=endpoint.max_retry_after_s, jitter=self._first_pause_s
            ),
            before_sleep=None if endpoint.use_batch_api else partial(_log_retry, endpoint.model),
            reraise=True,
        )

        try:
            return await retrying(attempt)
        except Exception as error:
            if self._api.is_refusal(error):
                raise
            if self._api.can_pass(error):
                raise EndpointUnavailableError(
                    f"model {endpoint.model!r} gave no reply in {endpoint.max_attempts} attempt(s) ({error!r}); "
                    "replies so far are kept, run again to go on"
                ) from error
            if isinstance(getattr(error, "status_code", None), int):
                raise self._api.user_error(error, endpoint) from error
            raise

    async def _attempt(self, request: Request, num_tokens: int, most_usd: float) -> Any:
        """One attempt, in a slot of its own: pauses between attempts leave the slot to others."""
        endpoint = request.endpoint
        pace = self._paces.setdefault((endpoint.model, endpoint.api_base), Pace(endpoint))
        await pace.admit(self._slots, num_tokens, self._check_running)
        try:
            self._check_running()
            self.ledger.check(endpoint.model)
            response = await self._api.send(endpoint, list(request.messages), request.params)
        except BaseException as error:
            if self._api.may_be_billed(error):
                self.ledger.write_off(endpoint.model, most_usd)
            # The endpoint speaks of all its requests, so the model pauses, not this request alone.
            pace.pause(min(self._api.retry_after_s(error, time.time()), endpoint.max_retry_after_s))
            raise
        finally:
            self._slots.release()
        if endpoint.tokens_per_minute:
            pace.correct(self._api.tokens_of(response) - num_tokens)
        return response

    def reopen(self) -> None:
        """Let requests start again after an error that ended them, once a caller tries anew.

        Raises:
            UserError: requests are still under way that the user's mistake will end.
        """
        if isinstance(self.stopped_by, UserError) and not self.ledger.is_idle:
            self._check_running()
        self.stopped_by = None
        for health in self._healths.values():
            health.reset()

    def _check_running(self) -> None:
        if self.stopped_by is not None:
            # Raised many times: each adds its frames to the traceback, which is printed at the end.
            raise self.stopped_by.with_traceback(None)


def _log_retry(model: str, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    pause = state.next_action.sleep if state.next_action else 0.0
    logger.warning("model %s, attempt %d: %r; next in %.1f s", model, state.attempt_number, error, pause)
