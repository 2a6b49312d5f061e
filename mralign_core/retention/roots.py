"""What a removal begins from: what people and runs name, and what somebody works on now.

All of it is read before anything is removed, and again while it is. A record that can't be read might name anything, so
with one there is no plan.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict

from mralign_core.errors import ArtifactError, UserError
from mralign_core.retention.contents import ClaimFile, read_claims, store_clock
from mralign_core.storage import ArtifactRef, ArtifactStore, RunRecord
from mralign_core.storage.claims import DEAD_AFTER_S
from mralign_core.storage.keeping import being_named, kept
from mralign_core.versions.aliases import AliasEntry, Aliases, version_key
from mralign_core.versions.record import VERSION

Record = TypeVar("Record")

PINS_FOLDER, RUNS_FOLDER = "records/pins", "records/runs"

SILENT_LEASES = 2
"""Of a claim, in which its owner, who beats four times a lease, said nothing: it is lost, as far as anyone can tell."""


class Pin(BaseModel):
    """An artifact that a person wants kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    artifact: ArtifactRef
    """Which."""
    why: str = ""
    """The person's words."""
    host: str = ""
    """The machine that it was pinned on."""
    at: datetime
    """When (UTC)."""


class NotedRun(NamedTuple):
    """A run's record, and the config's name that it stands under."""

    config: str
    record: RunRecord


class AliasTarget(NamedTuple):
    """A version that an alias names, or named."""

    alias: str
    target: str
    """Its id."""
    is_current: bool
    """Whether the alias names it now; else it did."""


@dataclass(frozen=True)
class Roots:
    """What is named, and what is worked on.

    Args:
        runs: the records of all runs.
        pins: pinned artifacts.
        versions: paths of all versions that are in the store, the newest first.
        aliases: what each alias names and ever named, the newest entry first.
        claims: every claim's file.
    """

    runs: tuple[NotedRun, ...] = ()
    pins: tuple[Pin, ...] = ()
    versions: tuple[str, ...] = ()
    aliases: tuple[AliasTarget, ...] = ()
    claims: tuple[ClaimFile, ...] = ()

    @property
    def live_claims(self) -> tuple[ClaimFile, ...]:
        """Those whose owners may be at work: not known to be gone, and heard of within a day."""
        return tuple(claim for claim in self.claims if not is_orphan(claim))


def is_heard_of(claim: ClaimFile) -> bool:
    """Whether a claim's owner gives a sign of life: by two leases without a beat its host was lost, or the store."""
    return not claim.holder.is_gone and claim.age_s <= SILENT_LEASES * claim.holder.patience_s


def is_orphan(claim: ClaimFile) -> bool:
    """Whether a claim's owner is gone, or has not been heard of for a day."""
    return claim.holder.is_gone or claim.age_s > DEAD_AFTER_S


def read_roots(store: ArtifactStore) -> Roots:
    """All that a removal begins from.

    Raises:
        ArtifactError: a record can't be read, so what it names is not known.
    """
    return Roots(
        runs=tuple(read_runs(store)),
        pins=tuple(read_pins(store)),
        aliases=tuple(read_alias_targets(store)),
        versions=tuple(_versions(store)),  # after the aliases, which name what is there
        claims=tuple(read_claims(store, store_clock(store))),
    )


def read_runs(store: ArtifactStore) -> Iterator[NotedRun]:
    """The record of every run, and the last one of each name where it has no record of its own."""
    found = dict(_read_all(store, RUNS_FOLDER, RunRecord.model_validate))
    for name, record in found.items():
        config = name.rpartition("/")[0] or name
        if "/" in name or f"{name}/{record.run}" not in found:
            yield NotedRun(config, record)


def read_pins(store: ArtifactStore) -> list[Pin]:
    """Every pin."""
    return [pin for _, pin in _read_all(store, PINS_FOLDER, Pin.model_validate)]


def is_named(store: ArtifactStore, path: str) -> bool:
    """Whether an alias names or named an artifact, a pin does, or somebody is about to, as the store says now.

    Raises:
        ArtifactError: an entry of an alias can't be read.
    """
    stage, key, _ = path.removeprefix("artifacts/").rsplit("/", 2)
    if store.files.exists(f"records/{pin_path(path)}.json") or path in being_named(store):
        return True
    return stage == VERSION and any(version_key(each.target) == key for each in read_alias_targets(store))


def pin_artifact(store: ArtifactStore, text: str, why: str) -> Pin:
    """Keep an artifact, and all that it was made from, whatever a policy says.

    Args:
        store: where it is.
        text: what :meth:`ArtifactStore.resolve` accepts.
        why: for those who read it later.

    Raises:
        ArtifactError: none or several fit, or it is removed at this moment.
    """
    ref = store.resolve(text)
    with kept(store, "mralign pin", [ref.path]):
        store.manifest(ref)
        pin = Pin(artifact=ref, why=why, host=socket.gethostname(), at=datetime.now(UTC))
        store.put_json(pin_path(ref.path), pin.model_dump(mode="json"))
    return pin


def unpin_artifact(store: ArtifactStore, text: str) -> Pin:
    """Take a pin away.

    Args:
        store: where it is.
        text: the beginning of the artifact's key, or of ``stage/key``.

    Raises:
        ArtifactError: no pin fits, or several do.
    """
    wanted, pins = text.rpartition("artifacts/")[2], read_pins(store)
    names = [f"{pin.artifact.stage}/{pin.artifact.key}" for pin in pins]
    fitting = [
        pin
        for pin, name in zip(pins, names, strict=True)
        if wanted and (name.startswith(wanted) or pin.artifact.key.startswith(wanted))
    ]
    if len(fitting) != 1:
        listed = "\n  ".join(names) or "(nothing is pinned)"
        raise ArtifactError(f"{len(fitting)} pins fit {text!r} in {store.root_uri}; there are:\n  {listed}")
    store.files.remove(f"records/{pin_path(fitting[0].artifact.path)}.json")
    return fitting[0]


def pin_path(path: str) -> str:
    """The name of the record that pins an artifact, by the path of its folder."""
    return f"pins/{path.removeprefix('artifacts/')}"


def _versions(store: ArtifactStore) -> list[str]:
    """Paths of the versions that have a manifest, the newest first."""
    folder = f"artifacts/{VERSION}"
    manifests = {
        f"{folder}/{name.removesuffix('/manifest.json')}": file.changed_at
        for name, file in store.files.listed(folder).items()
        if name.endswith("/manifest.json")
    }
    return sorted(manifests, key=lambda path: (-manifests[path], path))


def read_alias_targets(store: ArtifactStore) -> Iterator[AliasTarget]:
    """What each alias names, and all that it ever named: rollbacks may go back to any of these.

    Raises:
        ArtifactError: an entry can't be read. Commands pass over it, and go by the entry before; here it might be the
            only one that names a version, so nothing is removed until somebody has looked at it.
    """
    aliases = Aliases(store)
    for name in aliases.names():
        try:
            history: list[AliasEntry] = aliases.whole_history(name)
        except ArtifactError as error:
            raise _unreadable(str(error)) from None
        for entry in reversed(history):
            yield AliasTarget(name, entry.to, entry is history[-1])
            yield from [AliasTarget(name, entry.from_, False)] if entry.from_ else []


def _read_all(store: ArtifactStore, folder: str, parse: Callable[[Any], Record]) -> Iterator[tuple[str, Record]]:
    for name in sorted(store.files.listed(folder)):
        if name.endswith(".json"):
            record = _parsed(store, f"{folder}/{name}", parse)
            if record is not None:
                yield name.removesuffix(".json"), record


def _parsed(store: ArtifactStore, path: str, parse: Callable[[Any], Record]) -> Record | None:
    """What a record says; None where it has gone meanwhile.

    Raises:
        ArtifactError: it can't be read.
    """
    try:
        return store.files.read_as(path, lambda data: parse(json.loads(data)))
    except UserError:  # the store's own
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _unreadable(f"{store.files.uri(path)} can't be read: {str(error).splitlines()[0]:.100}") from None


def _unreadable(what: str) -> ArtifactError:
    return ArtifactError(
        f"{what}. What it names isn't known, so nothing is removed: put back what it said, or remove it"
    )
