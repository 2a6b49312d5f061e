"""Turns at an endpoint that several runs ask: together they keep to the limit that its owner gives.

The limit is a global concurrency limit of the Prefect server, named ``endpoint HOST`` (:func:`limit_name`): how many
requests all runs of that server together may have in flight there. A run takes as many of its places as it may have
requests in flight, while shards are under way; a turn is all that begin within :data:`TURN_S`, at once or one after
another, and then others have theirs. So it is asked once or a few times a turn, not once a request. What a run took
comes back when no shard is under way, and when it is lost, :data:`LEASE_S` later. A limit of 0 is a pause, which is
waited for. Where no limit is set, and without a server, nothing is waited for.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectNotFound, PrefectException

from mralign_core.config import EndpointConfig

logger = logging.getLogger("mralign_core.endpoints")
Answer = TypeVar("Answer")

TURN_S = 120.0
"""From the first shard of a turn: those that begin later wait for the end of those under way, then for a new turn."""
LEASE_S = 60.0
"""After which places of a run that was lost are free again; Prefect takes 60 s or more."""
RENEW_S = 15.0
AGAIN_S = 3.0
"""Between two looks for free places. A turn is followed by a pause of two, so that a run that waits looks meanwhile."""
PATIENCE_S = 300.0
"""For a server of Prefect's that is out, as while it is started again; beyond, the run fails."""


def limit_name(endpoint: EndpointConfig) -> str:
    """The name of the limit of an endpoint's server: by its address, else by the provider of its model.

    Example:
        >>> limit_name(EndpointConfig(model="hosted_vllm/q", api_base="http://10.0.0.5:8000/v1"))
        'endpoint 10.0.0.5:8000'
        >>> limit_name(EndpointConfig(model="deepseek/deepseek-chat"))
        'endpoint deepseek'
    """
    return f"endpoint {urlsplit(endpoint.api_base).netloc or endpoint.model.partition('/')[0]}"


class Turns:
    """The turns of one client, which asks some endpoints.

    Args:
        endpoints: what it asks.
        concurrency: requests that it may have in flight.
    """

    def __init__(self, endpoints: Iterable[EndpointConfig], concurrency: int) -> None:
        self._names = sorted({limit_name(endpoint) for endpoint in endpoints}) if _has_server() else []
        limits = self._open_limits()
        self.places = min([concurrency, *limits.values()])
        """Requests that the client may have in flight under the limits, as they were when this was made."""
        for name, limit in limits.items():
            logger.info("%s: at most %d requests at once of all runs, %d of them of this one", name, limit, self.places)
        self._changed = threading.Condition()
        self._num_shards = 0
        self._until = math.inf
        self._lease: _Lease | None = None

    @contextlib.contextmanager
    def shard(self) -> Iterator[None]:
        """Ask for a shard in a turn, which is waited for."""
        with self._changed:
            while self._num_shards and time.monotonic() > self._until:
                self._changed.wait()
            if not self._num_shards and self._names:
                self._begin()
            self._num_shards += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_shards -= 1
                if not self._num_shards and self._lease:
                    self._lease.end()
                    self._lease = None
                self._changed.notify_all()

    def _begin(self) -> None:
        """Take the places, which goes on a turn that is not over, or begins one."""
        if time.monotonic() > self._until:
            time.sleep(2 * AGAIN_S)
            self._until = math.inf
        has_told = False
        while limits := self._open_limits():
            places = min([self.places, *limits.values()])
            if places < self.places:
                logger.warning("a limit was lowered to %d, but this run goes on with %d", places, self.places)
            self._lease = _Lease.take(list(limits), places)
            if self._lease:
                self._until = min(self._until, time.monotonic() + TURN_S)
                return
            self._until = math.inf  # others have theirs
            if not has_told:
                has_told = True
                logger.info("other runs have the places at %s: waiting for a turn", " and ".join(limits))
            time.sleep(AGAIN_S)
        self._until = math.inf  # nothing is limited any more

    def _open_limits(self) -> dict[str, int]:
        """The limits, when none of them is 0: until then it is waited."""
        has_told = False
        while True:
            limits = self._limits()
            closed = [name for name, limit in limits.items() if limit == 0]
            if not closed:
                return limits
            if not has_told:
                has_told = True
                logger.warning(
                    "paused: the limit of %s is 0. Raise it to go on (Concurrency → Global, or prefect gcl update)",
                    " and ".join(map(repr, closed)),
                )
            time.sleep(AGAIN_S)

    def _limits(self) -> dict[str, int]:
        """The limits that are set and switched on, by name."""
        found: dict[str, int] = {}
        for name in self._names:
            with contextlib.suppress(ObjectNotFound):
                limit = _patiently(partial(_read_limit, name))
                if limit.active:
                    found[name] = int(limit.limit)
        return found


class _Lease:
    """Places that are held, until :meth:`end`; a thread tells the server meanwhile that they are.

    Args:
        lease: its id.
    """

    def __init__(self, lease: UUID) -> None:
        self._id = lease
        self._ended = threading.Event()
        renew = partial(copy_context().run, self._renew)  # of the same server
        self._thread = threading.Thread(target=renew, name="endpoint places", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, names: list[str], places: int) -> _Lease | None:
        """So many places of each limit; None where one has not so many left."""
        try:
            return cls(_patiently(partial(_take_places, names, places)))
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.LOCKED:
                raise
            return None

    def end(self) -> None:
        """Give them back."""
        self._ended.set()
        self._thread.join(RENEW_S)
        _try("given back", lambda client: client.release_concurrency_slots_with_lease(self._id))

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            _try("kept", lambda client: client.renew_concurrency_lease(self._id, LEASE_S))


def _has_server() -> bool:
    return (TaskRunContext.get() or FlowRunContext.get()) is not None


def _read_limit(name: str, client: SyncPrefectClient) -> GlobalConcurrencyLimitResponse:
    return client.read_global_concurrency_limit_by_name(name)


def _take_places(names: list[str], places: int, client: SyncPrefectClient) -> UUID:
    reply = client.increment_concurrency_slots_with_lease(names, places, "concurrency", LEASE_S)
    return UUID(reply.json()["lease_id"])


def _patiently(ask: Callable[[SyncPrefectClient], Answer]) -> Answer:
    """What the server answers, which is asked again for :data:`PATIENCE_S` while it is out."""
    until, has_told = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            with get_client(sync_client=True) as client:
                return ask(client)
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            if not _may_pass(error):
                raise
            if time.monotonic() > until:
                error.add_note(f"Prefect's server was out for {PATIENCE_S:.0f} s: start it, and run again to go on")
                raise
            if not has_told:
                has_told = True
                logger.warning("Prefect's server can't be asked for places at an endpoint: %r; trying again", error)
        time.sleep(AGAIN_S)


def _may_pass(error: httpx.HTTPError) -> bool:
    return not isinstance(error, httpx.HTTPStatusError) or error.response.is_server_error


def _try(what: str, tell: Callable[[SyncPrefectClient], object]) -> None:
    """Tell the server; one that can't be told does not stop the work: it takes the places back by itself."""
    try:
        with get_client(sync_client=True) as client:
            tell(client)
    except (httpx.HTTPError, PrefectException) as error:
        logger.warning("places at an endpoint were not %s: %r", what, error)
