"""What a removal begins from: what people and runs name, and what somebody works on now.

All of it is read before anything is removed, and again while it is. A record that can't be read might name anything, so
with one there is no plan.
"""

from __future__ import annotations

import json
import re
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
from mralign_core.versions.aliases import ALIASES_FOLDER
from mralign_core.versions.record import VERSION

Record = TypeVar("Record")

PINS_FOLDER, RUNS_FOLDER = "records/pins", "records/runs"
ALIAS_ENTRY = re.compile(r"([^/]+)/(\d{8})\.json")


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
    """A version as an alias's entry writes it: its key, its name, or ``stage/key``."""

    alias: str
    target: str
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
        aliases=tuple(_aliases(store)),
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


def pin_artifact(store: ArtifactStore, text: str, why: str) -> Pin:
    """Keep an artifact, and all that it was made from, whatever a policy says.

    Args:
        store: where it is.
        text: what :meth:`ArtifactStore.resolve` accepts.
        why: for those who read it later.

    Raises:
        ArtifactError: none or several fit.
    """
    pin = Pin(artifact=store.resolve(text), why=why, host=socket.gethostname(), at=datetime.now(UTC))
    store.put_json(_pin_name(pin.artifact), pin.model_dump(mode="json"))
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
    store.files.remove(f"records/{_pin_name(fitting[0].artifact)}.json")
    return fitting[0]


def _pin_name(ref: ArtifactRef) -> str:
    return f"pins/{ref.path.removeprefix('artifacts/')}"


def _versions(store: ArtifactStore) -> list[str]:
    """Paths of the versions that have a manifest, the newest first."""
    folder = f"artifacts/{VERSION}"
    manifests = {
        f"{folder}/{name.removesuffix('/manifest.json')}": file.changed_at
        for name, file in store.files.listed(folder).items()
        if name.endswith("/manifest.json")
    }
    return sorted(manifests, key=lambda path: (-manifests[path], path))


def _aliases(store: ArtifactStore) -> Iterator[AliasTarget]:
    """What each alias names, and all that it ever named: rollbacks may go back to any of these."""
    entries: dict[str, list[tuple[int, str]]] = {}
    for name in store.files.listed(ALIASES_FOLDER):
        if match := ALIAS_ENTRY.fullmatch(name):
            entries.setdefault(match[1], []).append((int(match[2]), f"{ALIASES_FOLDER}/{name}"))
    for alias, of_one in sorted(entries.items()):
        for place, (_, path) in enumerate(sorted(of_one, reverse=True)):
            to, before = _parsed(store, path, _targets) or ("", "")
            yield from [AliasTarget(alias, to, place == 0)] if to else []
            yield from [AliasTarget(alias, before, False)] if before else []


def _targets(entry: Any) -> tuple[str, str]:
    """What an entry of an alias names, and what the alias named before; empty where that is none."""
    to, before = entry["to"], entry.get("from")
    for target in (to, before):
        if target is not None and not isinstance(target, str):
            raise ValueError(f"it names {target!r:.80}")
    return to or "", before or ""


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
        raise ArtifactError(
            f"{store.files.uri(path)} can't be read, so what it names isn't known and nothing is removed: put back "
            f"what it said, or remove it ({str(error).splitlines()[0]:.100})"
        ) from None
