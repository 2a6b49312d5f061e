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
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

from mralign_core.config import EndpointConfig
from mralign_core.errors import UserError
from mralign_core.llm.asking import Asking
from mralign_core.llm.attempts import attempts_at
from mralign_core.llm.batch_items import BatchItem
from mralign_core.llm.endpoint import Bounds, ChatCompletions
from mralign_core.llm.endpoint_state import EndpointState, Failure
from mralign_core.llm.faults import (
    AttemptError,
    EndpointUnavailableError,
    failing_error,
    unavailable_error,
    unreadable_error,
    user_error,
)
from mralign_core.llm.ledger import Ledger
from mralign_core.llm.offline import is_offline
from mralign_core.llm.request import (
    OFFERED,
    UNANSWERED,
    Received,
    Request,
    kept_record,
    prompt_digest,
    received,
)
from mralign_core.llm.store import KeepsRecords, KeepsReplies, MemoryRecords

if TYPE_CHECKING:
    from mralign_core.llm.batch import BatchTransport
    from mralign_core.llm.exchange import Exchange

logger = logging.getLogger("mralign_core.llm")


class Service(Protocol):
    """What a client asks for, one attempt at a time: chat completions, or embeddings."""

    def count_tokens(self, request: Request) -> int:
        """Tokens of what is sent, by estimate."""
        ...

    def bounds_of(self, request: Request, longest: int = 0) -> Bounds:
        """Bounds of what an attempt takes; ``longest`` is the longest reply so far, in tokens."""
        ...

    def exchange_for(self, request: Request, bounds: Bounds) -> Exchange | None:
        """What watches one attempt; None where nothing is sent."""
        ...

    async def attempt(
        self, request: Request, params: Mapping[str, Any], bounds: Bounds, exchange: Exchange | None
    ) -> dict[str, Any]:
        """Make one attempt and read what came; raises ``AttemptError``."""
        ...


class Client(Protocol):
    """Something that has a reply to a request, and keeps it; ``admission`` is for callers to take a place in."""

    admission: asyncio.Semaphore
    replies: KeepsReplies

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
        service: what is asked for; chat completions when None.
    """

    def __init__(
        self,
        replies: KeepsReplies,
        *,
        concurrency: int,
        ledger: Ledger | None = None,
        batches: KeepsRecords | None = None,
        first_pause_s: float = 1.0,
        service: Service | None = None,
    ) -> None:
        self._service = service or ChatCompletions()
        self.replies = replies
        self._slots = asyncio.Semaphore(concurrency)
        self._states: dict[tuple[str, str], EndpointState] = {}
        self.admission = asyncio.Semaphore(2 * concurrency)
        """For callers: pieces of work (traces) under way at once, first come first served. Enough to fill all
        slots, and no more, so that callers who share a client finish one after another."""
        self.ledger = ledger or Ledger()
        self._first_pause_s = first_pause_s
        self._under_way: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._asked: set[str] = set()
        self._failed: set[str] = set()
        self.stopped_by: Exception | None = None
        self._batch_records = batches or MemoryRecords()

    @cached_property
    def _batches(self) -> BatchTransport:
        from mralign_core.llm.batch import BatchTransport  # imports litellm, which takes seconds

        return BatchTransport(
            self._batch_records,
            self.replies,
            self.ledger,
            first_pause_s=self._first_pause_s,
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
        if is_offline(request.endpoint.model):  # costs nothing, and its code may change
            return received(await self._buy(request, digest), cached=False)
        lock = self._under_way.setdefault(digest, asyncio.Lock())
        async with lock:
            kept = await asyncio.to_thread(kept_record, self.replies, digest)
            has_failed = kept is not None and kept["finish_reason"] == UNANSWERED
            if kept is not None and (digest in self._asked or not (ask_again or has_failed)):
                self.ledger.count_kept(request.endpoint.model)
                return received(kept, cached=True)
            try:
                record = await self._buy(request, digest, kept)
            except Exception as error:
                self.stopped_by = self.stopped_by or error
                raise
            self._asked.add(digest)
        return received(record, cached=False)

    def report_readable(self, endpoint: EndpointConfig) -> None:
        """Tell that a new reply of an endpoint could be used."""
        self._state(endpoint).health.contents.succeed()

    def report_unreadable(self, endpoint: EndpointConfig, way: str, beginning: str) -> None:
        """Tell that a new reply of an endpoint could not be used.

        Args:
            endpoint: what sent it.
            way: why not, in a word or two that are the same for the same reason.
            beginning: how the reply begins.

        Raises:
            UserError: the first ``stop_after_failures`` replies, or several times as many in a row, were all of no use.
        """
        contents = self._state(endpoint).health.contents
        contents.failures.append(Failure(way, beginning))
        if verdict := contents.verdict():
            self.stopped_by = self.stopped_by or unreadable_error(endpoint, verdict)
            self._check_running()

    def _state(self, endpoint: EndpointConfig) -> EndpointState:
        address = endpoint.model, endpoint.api_base
        if address not in self._states:
            self._states[address] = EndpointState(endpoint)
        return self._states[address]

    async def _buy(self, request: Request, digest: str, kept: dict[str, Any] | None = None) -> dict[str, Any]:
        """A new reply, kept, on account, in place of what is ``kept``."""
        self._check_running()
        if not is_offline(request.endpoint.model):
            earlier = await self._batches.earlier_reply(request, digest)
            if earlier is not None:
                return earlier
        asking = Asking(request, digest, self._state(request.endpoint).health, kept)
        if request.endpoint.use_batch_api:
            return await self._attempts(asking, partial(self._attempt_in_batch, asking))
        try:
            record = await self._attempts(asking, partial(self._attempt, asking))
        except Exception as error:
            self.stopped_by = self.stopped_by or error
            raise
        finally:
            await asking.health.end(asking.number)
        return record

    async def _attempts(self, asking: Asking, attempt: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """The record of a new reply; a request that was refused, or failed by itself, has one without text."""
        endpoint = asking.request.endpoint
        try:
            return await attempts_at(
                endpoint,
                self._first_pause_s,
                can_pass=lambda error: isinstance(error, AttemptError) and error.can_pass,
                what=None if endpoint.use_batch_api else f"model {endpoint.model}",
            )(attempt)
        except AttemptError as fault:
            if asking.error:
                raise asking.error from fault
            record = asking.record_of(fault)
            if fault.can_pass:
                self._failed.add(asking.digest)
            if fault.kind != "content":
                logger.warning("a request to model %s failed: %s", endpoint.model, fault)
            if not asking.kept or asking.kept["finish_reason"] == UNANSWERED:  # no failure in place of a reply
                await asyncio.to_thread(self.replies.put, asking.digest, record)
            return record

    async def _attempt(self, asking: Asking) -> dict[str, Any]:
        """One attempt, on account: what it may cost is set aside, and then paid, lost or given back."""
        endpoint = asking.request.endpoint
        bounds = self._bounds(asking.request)
        await self._take_place(asking, bounds)
        asking.exchange = None
        reading, lost_usd = None, 0.0
        try:
            reading = await self._in_slot(asking, bounds)
            asking.health.succeed(asking.number)
            state = self._state(endpoint)
            state.longest_reply = max(state.longest_reply, reading["completion_tokens"])
            record = asking.record(reading)
            if not is_offline(endpoint.model):
                await asyncio.to_thread(self.replies.put, asking.digest, record)
        except BaseException as error:
            was_sent = asking.exchange is not None and asking.exchange.was_sent
            may_be_billed = error.may_be_billed if isinstance(error, AttemptError) else was_sent
            lost_usd = bounds.usd if may_be_billed and reading is None else 0.0
            if isinstance(error, AttemptError):  # before others get a turn, while the account is settled
                self._judge(asking, error)
            raise
        finally:
            await self.ledger.settle(endpoint.model, bounds.usd, reading, lost_usd=lost_usd)
        return record

    async def _take_place(self, asking: Asking, bounds: Bounds) -> None:
        """Wait for room on the account and for a slot, and while older requests show if the endpoint is to be asked.

        Nothing is held meanwhile that those need.
        """
        endpoint, health = asking.request.endpoint, asking.health
        while True:
            if not asking.number:
                await health.decided()
                if verdict := health.verdict():
                    self.stopped_by = self.stopped_by or failing_error(endpoint, verdict)
            self._check_running()
            await self.ledger.set_aside(endpoint.model, bounds.usd)
            is_admitted = False
            try:
                await self._state(endpoint).pace.admit(
                    self._slots, self._num_tokens(asking.request), self._check_running
                )
                is_admitted = bool(asking.number) or not health.is_in_doubt
                if is_admitted:
                    asking.number = asking.number or health.begin()
                    return
                self._slots.release()
            finally:
                if not is_admitted:
                    await self.ledger.settle(endpoint.model, bounds.usd, None)

    async def _attempt_in_batch(self, asking: Asking) -> dict[str, Any]:
        """One attempt by a batch, which keeps its reply and puts it on account; it takes no slot while it waits."""
        endpoint = asking.request.endpoint
        bounds = self._bounds(asking.request)
        await self.ledger.set_aside(endpoint.model, bounds.usd)
        item = BatchItem(asking.digest, prompt_digest(asking.request), bounds.usd)
        try:
            params = await self._params(asking.request)
            record = await self._batches.ask(asking.request._replace(params=params), item)
        except BaseException as error:
            if isinstance(error, AttemptError):
                self._judge(asking, error)
            if not item.in_batch:
                await self.ledger.settle(endpoint.model, bounds.usd, None)
            raise
        asking.health.succeed(asking.number)
        return record

    async def _params(self, request: Request) -> dict[str, Any]:
        """The parameters to send: with the JSON schema that is offered, where the server says it knows such."""
        params = {name: value for name, value in request.params.items() if name != OFFERED}
        if OFFERED in request.params and await self._state(request.endpoint).knows_schemas():
            params["response_format"] = request.params[OFFERED]
        return params

    async def _in_slot(self, asking: Asking, bounds: Bounds) -> dict[str, Any]:
        """What one attempt brings, in the slot it has: pauses between attempts leave the slot to others."""
        endpoint = asking.request.endpoint
        try:
            self._check_running()
            reading = await self._sent(asking, bounds)
        except AttemptError as error:
            # The endpoint speaks of all its requests, so the model pauses, not this request alone.
            self._state(endpoint).pace.pause(min(error.retry_after_s, endpoint.max_retry_after_s))
            raise
        finally:
            self._slots.release()
        num_tokens = reading["prompt_tokens"] + reading["completion_tokens"]
        self._state(endpoint).pace.correct(num_tokens - self._num_tokens(asking.request))
        return reading

    def _num_tokens(self, request: Request) -> int:
        """Tokens of a prompt, by estimate, where they are limited."""
        return self._service.count_tokens(request) if request.endpoint.tokens_per_minute else 0

    async def _sent(self, asking: Asking, bounds: Bounds) -> dict[str, Any]:
        """What one attempt brings; where a schema that was only offered is refused, without it."""
        asking.sent_s = min(asking.sent_s, time.monotonic())
        params = await self._params(asking.request)
        try:
            return await self._exchanged(asking, params, bounds)
        except AttemptError as fault:
            is_offered = OFFERED in asking.request.params and "response_format" in params
            if not is_offered or fault.kind != "refused" or fault.may_be_billed:
                raise
        plain = {name: value for name, value in params.items() if name != "response_format"}
        reading = await self._exchanged(asking, plain, bounds)
        logger.warning("model %s refuses a JSON schema: it is asked without one", asking.request.endpoint.model)
        self._state(asking.request.endpoint).refuses_schemas = True
        return reading

    async def _exchanged(self, asking: Asking, params: dict[str, Any], bounds: Bounds) -> dict[str, Any]:
        asking.exchange = self._service.exchange_for(asking.request, bounds)
        return await self._service.attempt(asking.request, params, bounds, asking.exchange)

    def _judge(self, asking: Asking, fault: AttemptError) -> None:
        """Decide, after the last attempt, what a fault means: for this request alone, or for all of them."""
        endpoint, health = asking.request.endpoint, asking.health
        asking.num_attempts += 1
        if fault.can_pass and asking.num_attempts < endpoint.max_attempts:
            health.doubt(asking.number)
            return
        if fault.kind == "content":
            return
        if not asking.is_its_own(fault):
            asking.error = (
                unavailable_error(fault, endpoint) if fault.can_pass else user_error(fault, fault.status, endpoint)
            )
        elif not asking.has_failed_before and not (fault.kind == "refused" and health.has_answered):
            health.fail(asking.number, asking.failure(fault))
            if verdict := health.verdict():
                asking.error = failing_error(endpoint, verdict)
        self.stopped_by = self.stopped_by or asking.error

    def _bounds(self, request: Request) -> Bounds:
        return self._service.bounds_of(request, self._state(request.endpoint).longest_reply)

    def reopen(self) -> None:
        """Let requests start again after an error that ended them, once a caller tries anew.

        Raises:
            UserError: requests are still under way that the user's mistake will end.
        """
        if isinstance(self.stopped_by, UserError) and not self.ledger.is_idle:
            self._check_running()
        if isinstance(self.stopped_by, EndpointUnavailableError):  # it may have been the outage that failed them
            self._asked -= self._failed
        has_stopped, self.stopped_by = self.stopped_by is not None, None
        for state in list(self._states.values()):
            failed = state.health.reset()
            if has_stopped:  # else they were told as failures of their own, which the next client asks again
                self._asked -= failed

    def _check_running(self) -> None:
        if self.stopped_by is not None:
            # Raised many times: each adds its frames to the traceback, which is printed at the end.
            raise self.stopped_by.with_traceback(None)
