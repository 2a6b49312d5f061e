"""Requests through a provider's batch API: collected, submitted once, waited for over restarts, kept one by one.

Requests to one endpoint gather until none has come for a while, and go as one batch. Before a batch is made, its
token and its requests are recorded, and then its id; the token is in the batch's metadata too. So whenever the
process dies, the next one finds the batch, submits none of its requests again, and waits for it. Every reply of a
batch is kept before anyone is told of it. Requests that it left without a reply, for a reason that can pass, go
into a next batch.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from mralign_core.config import EndpointConfig
from mralign_core.errors import UserError
from mralign_core.llm import batch_endpoint as batches
from mralign_core.llm.attempts import attempts_at
from mralign_core.llm.batch_endpoint import BatchStatus
from mralign_core.llm.batch_items import BatchItem, Gathering, RequestBatch
from mralign_core.llm.batch_lines import line_outcome, parse_line
from mralign_core.llm.exchange import may_pass, retry_after_s
from mralign_core.llm.faults import AttemptError, EndpointUnavailableError, user_error
from mralign_core.llm.ledger import Ledger
from mralign_core.llm.request import Request
from mralign_core.llm.store import KeepsRecords, KeepsReplies

logger = logging.getLogger("mralign_core.llm")

Result = TypeVar("Result")

LOG_STEPS = 10
"""A batch's progress is logged each time another such part of its requests is done."""


class BatchUnderWayError(EndpointUnavailableError):
    """A batch was left to itself; it is on record, and the same call, made later, waits for it."""


class BatchTransport:
    """Sends requests in batches, and waits for those of earlier runs.

    Args:
        store: where batches under way are recorded.
        replies: where replies are kept.
        ledger: the account they are paid from.
        first_pause_s: pause before the second attempt at a call, about doubled before each further one.
        stopped_by: says why the client sends nothing any more, if so; batches under way are then left to a rerun.
    """

    def __init__(
        self,
        store: KeepsRecords,
        replies: KeepsReplies,
        ledger: Ledger,
        *,
        first_pause_s: float,
        stopped_by: Callable[[], Exception | None],
    ) -> None:
        self._store, self._replies, self._ledger = store, replies, ledger
        self._first_pause_s = first_pause_s
        self._stopped_by = stopped_by
        self._gatherings: dict[EndpointConfig, Gathering] = {}
        self._earlier: dict[str, BatchItem] = {}
        self._finding: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._carrying: set[asyncio.Task[None]] = set()

    async def earlier_reply(self, request: Request, digest: str) -> dict[str, Any] | None:
        """The kept record of a reply that a batch of an earlier run brings; None when it has to be asked for.

        Raises:
            BatchUnderWayError: the batch stayed out of reach, or the client was stopped.
            UserError: the endpoint does not give the batch out.
        """
        endpoint = request.endpoint
        address = (endpoint.model, endpoint.api_base)
        if address not in self._finding:
            as_batch = endpoint.model_copy(update={"use_batch_api": True})
            self._finding[address] = asyncio.create_task(self._take_over_earlier(as_batch))
        await asyncio.shield(self._finding[address])
        item = self._earlier.get(digest)
        return await asyncio.shield(item.reply) if item else None

    async def ask(self, request: Request, item: BatchItem) -> dict[str, Any]:
        """The record of a reply, kept and on account, by the next batch.

        When this raises, ``item.in_batch`` tells whether a batch still answers for what was set aside.

        Raises:
            AttemptError: what a direct request would have raised.
            BatchUnderWayError: the batch stayed out of reach, or the client was stopped.
        """
        endpoint = request.endpoint
        item.line = batches.request_line(endpoint, item.digest, request.messages, request.params)
        reply = item.expect()
        if endpoint not in self._gatherings:
            self._gatherings[endpoint] = Gathering(endpoint, lambda items: self._start(endpoint, items))
        self._gatherings[endpoint].add(item)
        record = await reply
        assert record is not None, item
        return record

    def _start(self, endpoint: EndpointConfig, items: Sequence[BatchItem]) -> None:
        for item in items:
            item.in_batch = True
        self._carry(RequestBatch(endpoint, {item.digest: item for item in items}, uuid.uuid4().hex, time.time()))

    def _carry(self, batch: RequestBatch) -> None:
        task = asyncio.create_task(self._carried(batch))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _carried(self, batch: RequestBatch) -> None:
        """Submit a batch where that isn't done, and bring its replies home; errors go to those who wait."""
        try:
            if not batch.batch_id:
                await self._submit(batch)
            status = await self._wait(batch)
            lines = await self._lines(batch, status)
            outcomes = {digest: line_outcome(batch, status, digest, lines.get(digest)) for digest in batch.items}
            await self._keep(outcomes)
            await self._record(batch, "ended")
            _log_errors(batch, outcomes)
        except Exception as error:
            await self._leave(batch, error)
        else:
            await self._hand_out(batch, outcomes)

    async def _submit(self, batch: RequestBatch) -> None:
        """Make a batch of the requests, on record before and after."""
        self._check_running()
        lines = [item.line for item in batch.items.values()]
        file_id = await self._persist(batch, partial(batches.upload, batch.endpoint, lines))
        await self._record(batch, "intended")
        batch.may_exist = True
        try:
            batch.batch_id = await self._create(batch, file_id)
        except Exception as error:
            if not (may_pass(error) or isinstance(error, BatchUnderWayError)):  # the provider said no
                batch.may_exist = False
                await self._record(batch, "ended")
            raise
        await self._record(batch, "submitted")
        for item in batch.items.values():
            item.line = b""
        logger.info("%s: submitted", batch)

    async def _create(self, batch: RequestBatch, file_id: str) -> str:
        """The id of the batch, made once: after an attempt whose outcome is unknown it is looked for first."""
        attempts = 0

        async def create() -> str:
            nonlocal attempts
            attempts += 1
            found = await self._find(batch) if attempts > 1 else ""
            return found or await batches.create(batch.endpoint, file_id, batch.token)

        return await self._persist(batch, create)

    async def _find(self, batch: RequestBatch) -> str:
        """The id of a batch that may exist, empty when it does not."""
        try:
            return await batches.find(batch.endpoint, batch.token, batch.intended_at) or ""
        except Exception as error:
            if may_pass(error):
                raise
            raise BatchUnderWayError(f"{batch} may exist, but batches can't be listed: {error}") from error

    async def _wait(self, batch: RequestBatch) -> BatchStatus:
        """Poll until the batch has ended."""
        logged: tuple[Any, ...] = ()
        while True:
            status = await self._persist(batch, partial(batches.retrieve, batch.endpoint, batch.batch_id))
            news = (status.status, LOG_STEPS * (status.num_done + status.num_failed) // len(batch.items))
            if news != logged:
                counts = (status.num_done, len(batch.items), status.num_failed)
                logger.info("%s: %s, %d of %d done, %d failed", batch, status.status, *counts)
                logged = news
            if status.ended:
                return status
            self._check_running()
            await asyncio.sleep(batch.endpoint.batch_poll_s)

    async def _lines(self, batch: RequestBatch, status: BatchStatus) -> dict[str, dict[str, Any]]:
        """Lines of the output and error files by request; fetched again while some are broken or missing."""
        for attempt in range(batch.endpoint.max_attempts):
            if attempt:
                await asyncio.sleep(min(self._first_pause_s * 2**attempt, batch.endpoint.max_retry_after_s))
            lines, num_odd = await self._fetch(batch, status)
            num_missing = len(batch.items) - len(lines)
            if not num_odd and not (num_missing and status.status == "completed"):
                break
            logger.warning("%s: %d requests without a line, %d odd lines", batch, num_missing, num_odd)
        return lines

    async def _fetch(self, batch: RequestBatch, status: BatchStatus) -> tuple[dict[str, dict[str, Any]], int]:
        """Lines by request, the first of each, and how many are no use: not JSON, or of no request of the batch."""
        lines: dict[str, dict[str, Any]] = {}
        num_odd = 0
        for file_id in status.output_file_ids:
            content = await self._persist(batch, partial(batches.download, batch.endpoint, file_id, len(batch.items)))
            for text in content.splitlines():
                line = parse_line(text)
                digest = line.get("custom_id")
                if digest in batch.items:
                    if digest in lines:
                        logger.warning("%s: request %s has several lines; the first counts", batch, digest)
                    lines.setdefault(digest, line)
                elif text.strip():
                    num_odd += 1
        return lines, num_odd

    async def _keep(self, outcomes: Mapping[str, dict[str, Any] | Exception]) -> None:
        records = [(digest, outcome) for digest, outcome in outcomes.items() if isinstance(outcome, dict)]
        await asyncio.gather(*(asyncio.to_thread(self._replies.put, *record) for record in records))

    async def _hand_out(self, batch: RequestBatch, outcomes: Mapping[str, dict[str, Any] | Exception]) -> None:
        """Put replies, and the lack of one that none waits for, on account; then tell those who wait."""
        await asyncio.gather(*(self._settle(batch, item, outcomes[item.digest]) for item in batch.items.values()))
        for digest, item in batch.items.items():
            outcome = outcomes[digest]
            if isinstance(outcome, Exception):
                self._earlier.pop(digest, None)
            if item.reply.done():
                continue
            if isinstance(outcome, Exception) and not item.earlier:
                item.reply.set_exception(outcome)
            else:
                item.reply.set_result(outcome if isinstance(outcome, dict) else None)

    async def _settle(self, batch: RequestBatch, item: BatchItem, outcome: dict[str, Any] | Exception) -> None:
        model = batch.endpoint.model
        if isinstance(outcome, dict):
            await self._ledger.settle(model, item.most_usd, outcome)
        else:
            is_lost = isinstance(outcome, AttemptError) and outcome.may_be_billed
            await self._ledger.settle(model, item.most_usd, None, lost_usd=item.most_usd if is_lost else 0.0)

    async def _leave(self, batch: RequestBatch, error: Exception) -> None:
        """End the waiting for a batch; one that may exist stays on record, with what was set aside for it."""
        error = self._explained(batch, error)
        if not batch.may_exist:
            await self._hand_out(batch, dict.fromkeys(batch.items, error))
            return
        for item in batch.items.values():
            await self._ledger.settle(batch.endpoint.model, 0.0, None)
            if not item.reply.done():
                item.reply.set_exception(error)

    def _explained(self, batch: RequestBatch, error: Exception) -> Exception:
        if may_pass(error):
            if not batch.may_exist:
                return EndpointUnavailableError(f"{batch} could not be submitted ({error!r}); run again to go on")
            return BatchUnderWayError(f"{batch} is out of reach ({error!r}); it is on record, run again to wait for it")
        if batch.may_exist and isinstance(getattr(error, "status_code", None), int):
            return UserError(
                f"{batch} can't be read: {error}; use the API key and project that it was submitted with, or, to give "
                f"it up and pay for its requests again, remove record batches/{batch.token} from the store"
            )
        status = getattr(error, "status_code", None)
        return user_error(error, status, batch.endpoint) if isinstance(status, int) else error

    async def _take_over_earlier(self, endpoint: EndpointConfig) -> None:
        """Wait for what earlier runs left under way at an endpoint."""
        for token, record in (await asyncio.to_thread(self._store.read)).items():
            if (record["model"], record["api_base"]) == (endpoint.model, endpoint.api_base) and record["requests"]:
                await self._take_over(endpoint, token, record)

    async def _take_over(self, endpoint: EndpointConfig, token: str, record: Mapping[str, Any]) -> None:
        items = {
            digest: BatchItem(digest, digest_of_prompt, most_usd, earlier=True, in_batch=True)
            for digest, (digest_of_prompt, most_usd) in record["requests"].items()
        }
        batch = RequestBatch(endpoint, items, token, record["intended_at"], record["batch_id"], may_exist=True)
        await self._ledger.take_over(record["run"], endpoint.model, [item.most_usd for item in items.values()])
        for item in items.values():
            item.expect()
        try:
            batch.batch_id = batch.batch_id or await self._persist(batch, partial(self._find, batch))
        except Exception as error:
            await self._leave(batch, error)
            raise self._explained(batch, error) from error
        await self._record(batch, "submitted" if batch.batch_id else "ended")
        if batch.batch_id:
            logger.info("%s, submitted in run %s, is waited for", batch, record["run"])
            self._earlier |= items
            self._carry(batch)
        else:
            logger.info("%s of run %s was never made: its requests are sent now", batch, record["run"])
            await self._hand_out(batch, dict.fromkeys(items, EndpointUnavailableError("never submitted")))

    async def _persist(self, batch: RequestBatch, call: Callable[[], Awaitable[Result]]) -> Result:
        """The result of a call, tried again on what can pass, no sooner than the endpoint asks, up to its cap."""
        attempts = attempts_at(
            batch.endpoint,
            self._first_pause_s,
            can_pass=may_pass,
            asked_pause_s=lambda error: retry_after_s(error, time.time()),
            what=batch,
        )
        return await attempts(call)

    async def _record(self, batch: RequestBatch, status: str) -> None:
        await asyncio.to_thread(self._store.write, batch.token, batch.record(status, self._ledger.run))

    def _check_running(self) -> None:
        if (error := self._stopped_by()) is not None:
            raise error


def _log_errors(batch: RequestBatch, outcomes: Mapping[str, dict[str, Any] | Exception]) -> None:
    errors = [outcome for outcome in outcomes.values() if isinstance(outcome, Exception)]
    if errors:
        logger.warning("%s: %d requests without a reply, such as: %r", batch, len(errors), errors[0])
