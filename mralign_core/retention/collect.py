"""Garbage collection of a store: read, plan, and remove what the plan says, whatever happens meanwhile.

What is named and worked on is read again while things are removed, and what has become reachable is spared. Each
artifact is removed under the claim that who makes it would take, so it is not made at the same moment; what another
holds stays. Under that claim it is looked once more whether an alias or a pin names it, or is about to: why nothing
that is named is lost then is said in :mod:`mralign_core.storage.keeping`. Its manifest goes first: killed there, the
process leaves data without a manifest, which the next collection removes. The one thing that it can't see is a cached
artifact that a run has found and not yet noted, under no claim; what is younger than the grace period, or of a recent
run, never goes for that.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import groupby

from mralign_core.config import RetentionConfig
from mralign_core.errors import StorageError, StoreUnavailableError
from mralign_core.retention.contents import (
    ClaimFile,
    Contents,
    OnRead,
    ignore_progress,
    read_claims,
    read_contents,
    store_clock,
)
from mralign_core.retention.plan import (
    CLAIM,
    NO_SHARDS,
    NOTE_OF_SHARD,
    TEMPORARY,
    UNFINISHED,
    Going,
    RemovalPlan,
    Shards,
    named_paths,
    plan_gc,
)
from mralign_core.retention.roots import is_named, is_orphan, read_roots
from mralign_core.storage import ArtifactStore
from mralign_core.storage.claims import Claim, Contest
from mralign_core.storage.filesystem import REQUESTS_AT_ONCE
from mralign_core.storage.keeping import COLLECTOR
from mralign_core.versions.record import VERSION

logger = logging.getLogger("mralign_core.retention")

LOOK_AGAIN_S = 10.0
"""Between two readings of what is named and worked on, while things are removed."""
MOST_AT_ONCE = 200
"""Artifacts that are removed between two such readings, at most."""


@dataclass
class Collected:
    """What a collection has removed, and what it spared after all."""

    removed: list[Going] = field(default_factory=list)
    spared: list[Going] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Bytes removed."""
        return sum(each.num_bytes for each in self.removed)


class Collector:
    """Clears a store up.

    Args:
        store: which.
        policy: what is kept besides what is named.
        shards: kind of shard → what it is for.
        clock: what time it is (UTC), for the ages of runs.
    """

    def __init__(
        self,
        store: ArtifactStore,
        policy: RetentionConfig,
        shards: Shards = NO_SHARDS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._policy = policy
        self._shards = shards
        self._clock = clock
        self._contents: Contents | None = None
        self._read_at = 0.0
        self._going: frozenset[str] = frozenset()
        self._seen_at_work: dict[tuple[str, str], ClaimFile] = {}
        self._stays: set[str] = set()

    def plan(self, on_read: OnRead = ignore_progress) -> RemovalPlan:
        """What goes and what stays.

        Args:
            on_read: told how many manifests of how many are read.

        Raises:
            ArtifactError: a record or the manifest of something that stays can't be read, so what it needs isn't known.
            StorageError: the store fails.
        """
        self._note_claims(read_claims(self._store, store_clock(self._store)))
        self._contents = read_contents(self._store, on_read)
        return self._plan(self._contents)

    def carry_out(self, plan: RemovalPlan, on_removed: OnRead = ignore_progress) -> Collected:
        """Remove what a plan of this collector says, but for what has become reachable, or is worked on.

        Args:
            plan: what :meth:`plan` returned.
            on_removed: told how many of how many are done.

        Raises:
            ArtifactError: a record can't be read any more; what was removed so far stays removed.
            StorageError: the store refuses to remove.
        """
        done, self._read_at = Collected(), -float("inf")
        with ThreadPoolExecutor(1 if self._store.files.is_local else REQUESTS_AT_ONCE) as workers:
            for some in _portions(plan.going):
                still = self._still_going()
                for going, is_removed in zip(some, workers.map(partial(self._remove, still=still), some), strict=True):
                    (done.removed if is_removed else done.spared).append(going)
                    if not is_removed:  # somebody may name it now, or make it
                        self._spare_ancestors(going.path)
                        self._read_at = -float("inf")
                    on_removed(len(done.removed) + len(done.spared), len(plan.going))
        return done

    def _plan(self, contents: Contents) -> RemovalPlan:
        roots, now = read_roots(self._store), self._clock()
        self._note_claims(roots.live_claims)
        released = self._seen_at_work.keys() - {(claim.path, claim.holder.owner) for claim in roots.claims}
        roots = replace(roots, claims=(*roots.claims, *(self._seen_at_work[each] for each in released)))
        named = named_paths(roots, self._policy, now)
        return plan_gc(contents.extended(self._store, named), roots, self._policy, now, self._shards)

    def _note_claims(self, claims: Iterable[ClaimFile]) -> None:
        """Keep what somebody worked on during the collection: what he made may have come after the listing."""
        self._seen_at_work |= {(claim.path, claim.holder.owner): claim for claim in claims if not is_orphan(claim)}

    def _still_going(self) -> frozenset[str]:
        """Paths that nothing reaches, as what is named and worked on was read a moment ago."""
        assert self._contents is not None, "plan() comes first"
        if time.monotonic() - self._read_at >= LOOK_AGAIN_S or not self._going:
            self._going = frozenset(each.path for each in self._plan(self._contents).going)
            self._read_at = time.monotonic()
        return self._going

    def _remove(self, going: Going, still: frozenset[str]) -> bool:
        """Whether it was removed; what has become reachable, or is held by another, is not."""
        if going.path not in still or going.path in self._stays:
            return False
        if going.upload:
            self._store.files.abort_upload(going.path, going.upload)
            return True
        if going.kind in (CLAIM, TEMPORARY):
            self._store.files.remove(going.path)
            return True
        if going.kind == NOTE_OF_SHARD:
            if self._store.files.listed(f"artifacts/{going.name}"):
                return False
            self._store.files.remove(going.path)
            return True
        with self._claimed(going.name) as (is_free, claim):
            if not is_free or (going.kind == UNFINISHED and self._has_been_finished(going.path)):
                return False
            if self._may_be_named(going, claim):
                return False
            self._store.remove_folder(going.path)
        return True

    def _spare_ancestors(self, path: str) -> None:
        """Have what a spared artifact was made from stay too: it goes in later waves, if it goes."""
        assert self._contents is not None
        stored = self._contents.artifacts.get(path)
        for parent in stored.manifest.parents if stored and stored.manifest else ():
            if parent.path not in self._stays:
                self._stays.add(parent.path)
                self._spare_ancestors(parent.path)

    def _may_be_named(self, going: Going, claim: Claim | None) -> bool:
        """Whether somebody names it, or may without seeing that it goes."""
        if claim is None:  # who can't write a claim, as where a quota is used up, can write no pin either
            return going.name.startswith(f"{VERSION}/")
        return is_named(self._store, going.path) or not claim.is_held()

    def _has_been_finished(self, path: str) -> bool:
        """Whether somebody has gone on with what was unfinished when it was listed."""
        assert self._contents is not None
        return self._store.files.listed(path).items() - self._contents.artifacts[path].files.items() != set()

    @contextlib.contextmanager
    def _claimed(self, name: str) -> Iterator[tuple[bool, Claim | None]]:
        """Hold the claim of who would make it; whether it was free. Where claims don't work, nobody has one."""
        claim: Claim | None = None
        is_free = True
        try:
            claim = Contest(self._store.claims(COLLECTOR), name).attempt()
            is_free = claim is not None
        except StoreUnavailableError:
            raise
        except StorageError as error:
            logger.debug("no claim on %s: %s", name, error)
        try:
            yield is_free, claim
        finally:
            if claim:
                claim.release()


def _portions(going: tuple[Going, ...]) -> Iterator[list[Going]]:
    """Waves, the larger ones in parts: one is removed before the next begins."""
    for _, wave in groupby(going, key=lambda each: each.wave):
        members = list(wave)
        for start in range(0, len(members), MOST_AT_ONCE):
            yield members[start : start + MOST_AT_ONCE]
