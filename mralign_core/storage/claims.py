"""Claims: who is making what, so that two runs that start at once pay for it once.

A claim is a small file ``claims/<kind>/<name>.<generation>`` in the store, created only if it is not there: by a hard
link in a folder (also a network folder), by ``If-None-Match: *`` on S3. Its owner rewrites it with a counter, its beat,
while the work goes on, and removes it at the end. Whoever finds a claim waits, then finds the work done.

An owner is given up when its beat has stood still for its lease on the *waiter's* monotonic clock, since hosts' clocks
may differ by minutes, and time in which the waiter itself did not look, as during an outage of the store, does not
count. Requests about claims have time-outs far below the lease, so one that hangs is sent again in time. An owner on
this machine whose process is gone is given up at once. The next generation is then created, again only if it is not
there, so exactly one waiter takes over. Numbers begin anew when nobody holds a claim, so a server needs no conditions
on replacing and removing.

Claims save money and time; they are no lock on which the content of the store depends. Artifacts are named by their
content, so work that is done twice is wasteful and harmless: a claim that can't be made is said once and done without,
and an owner that was stopped for longer than its lease finishes what it began. Nobody waits for a claim while holding
one (:data:`_holding`), so there is no circle of waiters.

Some S3-compatible servers ignore the condition. The first claim of a process finds that out by creating one file twice;
there, each claimant puts in a bid, waits :data:`SETTLE_S` for those of others to be listed, and the first name wins.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Generic, NamedTuple, TypeVar

import psutil

from mralign_core.config import StorageConfig
from mralign_core.errors import StorageError, StoreUnavailableError
from mralign_core.processes.boot import boot_id
from mralign_core.storage.filesystem import StoreFiles
from mralign_core.storage.patience import is_stopping

logger = logging.getLogger("mralign_core.storage")
Found = TypeVar("Found")

FOLDER = "claims"
BEATS_PER_LEASE = 4
BRIEF = 1 / 6
"""Of a lease: for a request about a claim, so that one that hangs is sent again long before the lease is over."""
SHORTEST_BRIEF_S = 1.0
SHORTEST_LEASE_S, LONGEST_LEASE_S = 1.0, 3600.0
"""Of a claim that names a shorter or longer one."""
FIRST_POLL_S, LONGEST_POLL_S = 0.1, 2.0
LONGEST_GAP_S = 10.0
"""Of the time between two looks at a claim no more counts towards its lease, nor more than the time between two beats:
the store may have been away."""
RELEASE_S = 5.0
"""For removing a claim at the end; where the store takes longer, it lapses instead."""
SETTLE_S = 1.0
DEAD_AFTER_S = 86_400.0

_holding: ContextVar[bool] = ContextVar("holding", default=False)
"""Whether what runs here holds a claim already."""


@dataclass(frozen=True)
class Holder:
    """What a claim says about its owner."""

    run: str = "unknown"
    """The owner's run, for messages."""
    host: str = "an unknown host"
    """Its machine."""
    pid: int = 0
    """Its process."""
    lease_s: float = 60.0
    """Seconds without a beat after which it is given up."""
    owner: str = ""
    """Unique to the claim."""
    place: str = ""
    """Where ``pid`` means something: this start of this machine, and the processes' name space."""
    reads: tuple[str, ...] = ()
    """Paths in the store of what its work is made from."""

    @classmethod
    def read(cls, data: bytes) -> Holder:
        """The owner that a claim names; one of the defaults where it is not readable, or not written whole yet."""
        try:
            values = {"reads": (), **json.loads(data)}  # written by none of this version's forerunners
            holder = cls(**{name: type(getattr(cls, name))(values[name]) for name in cls.__dataclass_fields__})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return cls()
        return cls() if math.isnan(holder.lease_s) else holder

    @property
    def is_gone(self) -> bool:
        """Whether its process is known to be gone: it was on this machine, and is no more."""
        if not self.place or self.place != _place():
            return False
        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except (psutil.Error, ValueError, OverflowError):
            return False

    @property
    def patience_s(self) -> float:
        """Its lease, or the nearest that is waited for."""
        return min(max(self.lease_s, SHORTEST_LEASE_S), LONGEST_LEASE_S)

    def __str__(self) -> str:
        return f"run {self.run!r} (process {self.pid} on {self.host})"


class Turn(NamedTuple, Generic[Found]):
    """How a wait for a claim ended: ``found`` is there, or it is this caller's turn to make it."""

    found: Found | None
    claim: Claim | None
    """None where claims do not work, or the caller holds one already."""

    @property
    def is_alone(self) -> bool:
        """Whether nobody else can have begun to make the same meanwhile."""
        return self.claim is not None and not self.claim.is_lost


class _NoClaimsError(Exception):
    """The store takes no claims."""


class Claims:
    """The claims of one store.

    Args:
        section: where the store is; after ``claim_lease_s`` without a beat, others give up the owner of a claim made
            here.
        run: what this run is called in the messages of those who wait.
    """

    def __init__(self, section: StorageConfig, run: str) -> None:
        self.lease_s = section.claim_lease_s
        self.files = StoreFiles(section, brief_s=max(BRIEF * self.lease_s, SHORTEST_BRIEF_S))
        self.run = run
        self._patience_s = section.patience_s

    @contextlib.contextmanager
    def hold(
        self,
        name: str,
        find: Callable[[], Found | None],
        on_wait: Callable[[Holder], None] | None = None,
        reads: Sequence[str] = (),
    ) -> Iterator[Turn[Found]]:
        """Inside the ``with``, the caller makes what ``name`` stands for, unless it was found.

        Args:
            name: ``kind/name`` of the work.
            find: looks for the finished work; asked again and again while another makes it.
            on_wait: called at each look while another makes it.
            reads: paths in the store of what it is made from, which nobody may remove meanwhile.

        Raises:
            InterruptedError: the process came to its end while this waited in a thread.
            StoreUnavailableError: the store was away for longer than its patience, and another may be making it.
        """
        if _holding.get():
            yield Turn(None, None)
            return
        turn = self._wait(Contest(self, name, reads), find, on_wait)
        token = _holding.set(True)
        try:
            yield turn
        finally:
            _holding.reset(token)
            if turn.claim:
                turn.claim.release()

    def _wait(
        self, contest: Contest, find: Callable[[], Found | None], on_wait: Callable[[Holder], None] | None
    ) -> Turn[Found]:
        pause_s = FIRST_POLL_S
        try:
            while (claim := self._attempt(contest)) is None:
                if on_wait and contest.holder:
                    on_wait(contest.holder)
                time.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(1.5 * pause_s, LONGEST_POLL_S, self.lease_s / 8)
                if is_stopping():
                    raise InterruptedError("the process ends")
                if (found := find()) is not None:
                    contest.clear()
                    return Turn(found, None)
        except _NoClaimsError as error:
            _say_once(self.files, f"can't claim work, so runs at once may do it twice: {error}")
            return Turn(None, None)
        # It may have been finished and released since the caller looked.
        return Turn(self._found_or_released(find, claim), claim)

    def _attempt(self, contest: Contest) -> Claim | None:
        """The claim; None while another holds it, or may hold it, as the store is away."""
        try:
            claim = contest.attempt()
        except StoreUnavailableError as error:
            if contest.away_s < self._patience_s:
                return None
            if contest.is_known_free:  # the store is there, and makes no new file
                raise _NoClaimsError(str(error)) from error
            raise
        except StorageError as error:
            raise _NoClaimsError(str(error)) from error
        return claim

    @staticmethod
    def _found_or_released(find: Callable[[], Found | None], claim: Claim) -> Found | None:
        try:
            return find()
        except BaseException:
            claim.release()
            raise

    def newest(self, name: str) -> int:
        """The highest generation of a claim in the store; 0 when nobody holds it."""
        kind, _, base = name.rpartition("/")
        found = (entry.rpartition(".") for entry in self.files.names(f"{FOLDER}/{kind}"))
        return max((int(number) for of, _, number in found if of == base and number.isdecimal()), default=0)

    def remove_older(self, name: str, generation: int) -> None:
        """Remove what is left of the claims before a generation."""
        kind, _, base = name.rpartition("/")
        for entry in self.files.names(f"{FOLDER}/{kind}"):
            of, _, number = entry.rpartition(".")
            if of == base and number.isdecimal() and int(number) < generation:
                self.files.remove(f"{FOLDER}/{kind}/{entry}")

    def create(self, path: str, data: bytes, owner: str) -> bool:
        """Write a claim's file unless there is one; exactly one of several callers is told True."""
        if _keeps_conditions(self.files):
            return self.files.create(path, data)
        return self._outbid(path, data, owner)

    def _outbid(self, path: str, data: bytes, owner: str) -> bool:
        folder, _, claim = path.rpartition("/")
        own = f"{claim}~{owner}"
        if (there := self.files.read(path)) is not None:
            return there == data
        self.files.write(f"{folder}/{own}", data, durable=False)
        try:
            time.sleep(SETTLE_S)
            names = self.files.names(folder)
            if claim in names or own != min(name for name in [*names, own] if name.startswith(f"{claim}~")):
                return False
            self.files.write(path, data, durable=False)
            return True
        finally:
            with contextlib.suppress(StorageError):
                self.files.remove(f"{folder}/{own}")


class Contest:
    """One caller's tries to get a claim. Nothing here waits for another owner, so an event loop may use it in a thread.

    Args:
        claims: of the store.
        name: ``kind/name`` of the work.
        reads: paths in the store of what the work is made from.
    """

    def __init__(self, claims: Claims, name: str, reads: Sequence[str] = ()) -> None:
        self._claims = claims
        self._name = name
        self._reads = tuple(reads)
        self._seen: tuple[int, bytes | None] | None = None
        self._still_s = 0.0
        self._looked_at = time.monotonic()
        self._away_since: float | None = None
        self._owner = uuid.uuid4().hex
        self.holder: Holder | None = None
        """Who held the claim when it was last looked at; None when nobody did."""

    @property
    def away_s(self) -> float:
        """Seconds since the store, with which no attempt was successful meanwhile, first did not answer one."""
        return 0.0 if self._away_since is None else time.monotonic() - self._away_since

    @property
    def is_known_free(self) -> bool:
        """Whether the store answered to a look at the claim, and nobody held it at the last one."""
        return self._seen is not None and self._seen[0] == 0

    def attempt(self) -> Claim | None:
        """The claim, or None while another owner holds it.

        Raises:
            StoreUnavailableError: the store does not answer; an attempt may be made again.
            StorageError: the store does not take claims, or names no owner of this one for the whole of a lease.
        """
        try:
            claim = self._attempt()
        except StoreUnavailableError:
            self._away_since = time.monotonic() if self._away_since is None else self._away_since
            raise
        self._away_since = None
        return claim

    def _attempt(self) -> Claim | None:
        newest = self._claims.newest(self._name)
        data = self._claims.files.read(_path(self._name, newest)) if newest else None
        self.holder = Holder.read(data) if data is not None else None
        self._watch((newest, data))
        if self.holder and self.holder.owner == self._owner:  # made by an attempt whose reply was lost
            return self._make(newest)
        if self.holder is None and self._still_s >= self._claims.lease_s:
            raise StorageError(f"{self._claims.files.uri(_path(self._name, newest))} has no owner")
        if newest and (self.holder is None or not self._is_given_up(self.holder)):
            return None  # where nobody holds it, it was released at this moment
        claim = self._make(newest + 1)
        if claim and self.holder:
            logger.warning("%s does not report on %s any more: took it over", self.holder, self._name)
        return claim

    def _make(self, generation: int) -> Claim | None:
        return Claim.make(self._claims, self._name, generation, self._owner, self._reads)

    def clear(self) -> None:
        """Remove what is left of an owner who ended between finishing the work and saying so, if the store lets us."""
        if self.holder and self.holder.is_gone and self._seen:
            with contextlib.suppress(StorageError):
                self._claims.remove_older(self._name, self._seen[0] + 1)

    def _is_given_up(self, holder: Holder) -> bool:
        return holder.is_gone or self._still_s >= holder.patience_s

    def _watch(self, seen: tuple[int, bytes | None]) -> None:
        """Note for how long the claim has been as it is."""
        now = time.monotonic()
        lease_s = self.holder.patience_s if self.holder else self._claims.lease_s
        gap_s = min(now - self._looked_at, LONGEST_GAP_S, lease_s / BEATS_PER_LEASE)
        self._still_s = self._still_s + gap_s if seen == self._seen else 0.0
        self._seen, self._looked_at = seen, now


@dataclass(eq=False)
class Claim:
    """A claim that this process holds; a thread renews it until it is released."""

    claims: Claims
    name: str
    generation: int
    holder: Holder
    is_lost: bool = False
    """Another has taken it over, since this process was stopped for longer than the lease."""
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)

    @classmethod
    def make(
        cls, claims: Claims, name: str, generation: int, owner_id: str, reads: tuple[str, ...] = ()
    ) -> Claim | None:
        """Claim a generation; None when another was faster."""
        owner = Holder(claims.run, socket.gethostname(), os.getpid(), claims.lease_s, owner_id, _place(), reads)
        claim = cls(claims, name, generation, owner)
        if not claims.create(_path(name, generation), claim._content(0), owner.owner):
            return None
        claim._thread = threading.Thread(target=claim._beat, name=f"claim-{name}", daemon=True)
        claim._thread.start()
        return claim

    def release(self) -> None:
        """Let others have it."""
        self._ended.set()
        self._thread.join(RELEASE_S)

    def is_held(self) -> bool:
        """Whether the store still says that it is this process's."""
        return self._is_own(_path(self.name, self.generation)) and self.claims.newest(self.name) == self.generation

    def _content(self, beat: int) -> bytes:
        return json.dumps({**asdict(self.holder), "beat": beat}, sort_keys=True).encode()

    def _beat(self) -> None:
        """Renew the claim until it is released, then remove it. No failure of the store may end the work."""
        _sweep_aside(self.claims.files)
        beat, pause_s = 0, self.claims.lease_s / BEATS_PER_LEASE
        while not self._ended.wait(pause_s):
            beat += 1
            pause_s = self.claims.lease_s / BEATS_PER_LEASE
            try:
                self.is_lost = not self._renew(beat)
            except StorageError as error:
                logger.debug("claim on %s not renewed: %s", self.name, error)
                pause_s /= 3
            if self.is_lost:
                logger.warning(
                    "another run has taken over %s, as this one did not report on it for too long", self.name
                )
                return
        with contextlib.suppress(StorageError):
            self._remove()

    def _renew(self, beat: int) -> bool:
        """Write another beat; whether the claim was still this process's own."""
        path = _path(self.name, self.generation)
        if not self._is_own(path) or self.claims.newest(self.name) > self.generation:
            return False
        self.claims.files.write(path, self._content(beat), durable=False)
        if beat == 1 and self.generation > 1:  # after the first renewal, for which others wait no longer than the lease
            self.claims.remove_older(self.name, self.generation)
        return True

    def _remove(self) -> None:
        path = _path(self.name, self.generation)
        if self.generation > 1:
            self.claims.remove_older(self.name, self.generation)
        if self._is_own(path):
            self.claims.files.remove(path)

    def _is_own(self, path: str) -> bool:
        return Holder.read(self.claims.files.read(path) or b"").owner == self.holder.owner


def _path(name: str, generation: int) -> str:
    return f"{FOLDER}/{name}.{generation}"


@functools.cache
def _place() -> str:
    """What two processes have in common that can see each other's numbers; empty where that can't be told."""
    try:
        return f"{socket.gethostname()} {boot_id()} {os.readlink('/proc/self/ns/pid')}" if boot_id() else ""
    except OSError:
        return ""


_lock = threading.Lock()
_probing: dict[str, threading.Lock] = {}
_kept_by: dict[str, bool] = {}
_swept: set[str] = set()
_said: set[str] = set()


def _keeps_conditions(files: StoreFiles) -> bool:
    """Whether the store refuses to create a file that is there; asked of each server once a process.

    Raises:
        StoreUnavailableError: it does not answer.
    """
    if files.is_local:
        return True
    with _lock:
        probing = _probing.setdefault(files.root_uri, threading.Lock())
    with probing:
        if files.root_uri not in _kept_by:
            _kept_by[files.root_uri] = _probe(files)
        return _kept_by[files.root_uri]


def _probe(files: StoreFiles) -> bool:
    path = f"{FOLDER}/probes/{uuid.uuid4().hex}"
    try:
        return files.create(path, b"first") and not files.create(path, b"second")
    except StoreUnavailableError:
        raise
    except StorageError as error:
        logger.debug("%s takes no conditions: %s", files.root_uri, error)
        return False
    finally:
        with contextlib.suppress(StorageError):
            files.remove(path)


def _sweep_aside(files: StoreFiles) -> None:
    """Sweep in a thread, once a process: a listing may be long, and nobody waits for it."""
    with _lock:
        if files.root_uri in _swept:
            return
        _swept.add(files.root_uri)
    threading.Thread(target=_sweep, args=[files], name="claims-sweep", daemon=True).start()


def _sweep(files: StoreFiles) -> None:
    """Remove claims that were not renewed for a day; of other files there, none."""
    with contextlib.suppress(StorageError):
        for name, age_s in files.ages(FOLDER).items():
            if age_s > DEAD_AFTER_S and Holder.read(files.read(f"{FOLDER}/{name}") or b"").owner:
                files.remove(f"{FOLDER}/{name}")


def _say_once(files: StoreFiles, text: str) -> None:
    with _lock:
        is_new = files.root_uri not in _said
        _said.add(files.root_uri)
    if is_new:
        logger.warning("%s", text)
