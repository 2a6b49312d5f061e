"""Aliases: names such as ``champion`` that stand for a version, with the history of who moved them, when and why.

An alias is a log, ``aliases/<name>/<n as 8 digits>.json`` in the store, and stands for what its last entry names. An
entry is written whole, and only if there is none of its number, and it has the number behind the last one that its
writer saw. So of two that move an alias at once one is refused, every entry's ``from`` is what the entry before it
names, and a writer that is killed has moved it or has not: nothing is ever changed or removed. No clock decides an
order; ``at`` is for people.

Some S3-compatible servers ignore the condition; there a writer bids for the number first
(:mod:`mralign_core.storage.claims`). Bids of writers that were killed are removed after :data:`DEAD_BID_S`. A writer
that such a server lets stand still for seconds between its look and its write can replace another's entry; a server
with conditions knows no such moment.
"""

from __future__ import annotations

import logging
import random
import re
import socket
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mralign_core.errors import AliasMovedError, ArtifactError, ConfigError, StorageError
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.keeping import kept
from mralign_core.versions.record import RECORD_FILE, VERSION

logger = logging.getLogger("mralign_core.versions")

ALIASES_FOLDER = "aliases"
ALIAS_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
ENTRY_FILE = re.compile(r"(\d{8})\.json")
HALF_WRITTEN_S = 2.0
"""For the newest entry to become readable: file systems that give no file two names show it while it is written."""
DEAD_BID_S = 10.0
NEEDED = ("adapter", "model")
"""What a version can't be served without."""
KEY_SHOWN = 8
"""Characters of a version's key in its name."""


class AliasEntry(BaseModel):
    """One move of an alias."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_by_name=True, validate_by_alias=True
    )

    n: int = Field(ge=1)
    """Its number; the first is 1."""
    to: str
    """The version that the alias names from here on, by its id."""
    from_: str | None = Field(alias="from")
    """The version that it named before; None for the first entry."""
    kind: Literal["move", "rollback"] = "move"
    """Whether it was moved on, or back to what it named before."""
    by: str
    """Who moved it: a user or a run."""
    why: str = ""
    """In the mover's words."""
    at: datetime
    """When, by the mover's clock (UTC)."""
    host: str
    """The mover's machine."""
    token: str
    """Unique to the entry: a writer whose reply was lost knows its own by it."""

    def __str__(self) -> str:
        why = f": {self.why}" if self.why else ""
        return f"{self.kind} to {version_name(self.to)} by {self.by} on {self.host}, {self.at:%Y-%m-%d %H:%M} UTC{why}"


def version_key(version_id: str) -> str:
    """The key of a version's artifact, which ends its id."""
    return version_id.rpartition("-")[2]


def version_name(version_id: str) -> str:
    """What people call a version: its variant and the beginning of its key.

    >>> version_name("mr_align-3f9a12cd44e07b51")
    'mr_align-3f9a12cd'
    """
    variant, _, key = version_id.rpartition("-")
    return f"{variant}-{key[:KEY_SHOWN]}"


class Aliases:
    """The aliases of a store.

    Args:
        store: where they are.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._files = store.files

    def names(self) -> list[str]:
        """All aliases that have ever named a version."""
        found = filter(ALIAS_NAME.fullmatch, self._files.names(ALIASES_FOLDER))
        return [name for name in found if self._numbers(name)]

    def current(self, name: str) -> AliasEntry | None:
        """The entry that says what an alias names; None where it names nothing.

        Raises:
            ConfigError: it is no name for an alias.
        """
        return self._newest(name, self._numbers(name))

    def history(self, name: str) -> list[AliasEntry]:
        """Every move of an alias, in order.

        Raises:
            ConfigError: it is no name for an alias.
        """
        numbers = self._numbers(name)
        newest = self._newest(name, numbers)
        if newest is None:
            return []
        earlier = (self._read(name, number) for number in numbers if number < newest.n)
        return [*filter(None, earlier), newest]

    def whole_history(self, name: str) -> list[AliasEntry]:
        """As :meth:`history`, where every entry must be readable.

        Raises:
            ArtifactError: one is not, or says of itself that it is another.
        """
        return [entry for number in self._numbers(name) if (entry := self._require(name, number))]

    def move(self, name: str, to: str, *, expected: str | None, by: str, why: str = "") -> AliasEntry:
        """Have an alias name another version, if it still names the one that the caller believes.

        Args:
            name: of the alias.
            to: id of the version.
            expected: id of the version that it names now; None where it names none.
            by: who moves it.
            why: for the history.

        Returns:
            The new entry; the current one where it names the version already.

        Raises:
            AliasMovedError: another has moved it meanwhile.
            ArtifactError: the version is damaged or gone.
        """
        return self._move(name, to, expected=expected, by=by, why=why, kind="move")

    def rollback(self, name: str, *, by: str, why: str = "") -> AliasEntry:
        """Have an alias name what it named before the current version was promoted; again for the one before that.

        Args:
            name: of the alias.
            by: who moves it.
            why: for the history.

        Raises:
            AliasMovedError: another has moved it meanwhile.
            ArtifactError: it named nothing before, or that version is damaged or gone.
        """
        promoted = _promoted(self.history(name))
        if len(promoted) < 2:
            named = f"{version_name(promoted[0])} is the first version that it names" if promoted else "it names none"
            raise ArtifactError(f"alias {name!r} can't be rolled back: {named}; promote another (mralign promote)")
        *_, before, current = promoted
        return self._move(name, before, expected=current, by=by, why=why, kind="rollback")

    def _move(
        self, name: str, to: str, *, expected: str | None, by: str, why: str, kind: Literal["move", "rollback"]
    ) -> AliasEntry:
        """Name a version that is whole, and that no collection removes meanwhile."""
        ref = self._store.find(VERSION, version_key(to))
        with kept(self._store, f"{kind} of alias {name} by {by}", [ref.path] if ref else []):
            require_whole(self._store, to)
            return self._move_to_whole(name, to, expected=expected, by=by, why=why, kind=kind)

    def _move_to_whole(
        self, name: str, to: str, *, expected: str | None, by: str, why: str, kind: Literal["move", "rollback"]
    ) -> AliasEntry:
        numbers = self._numbers(name)
        current = self._newest(name, numbers)
        if (current.to if current else None) != expected:
            raise _moved(name, expected, current)
        if current and current.to == to:
            return current
        entry = AliasEntry(
            n=(numbers[-1] if numbers else 0) + 1,
            to=to,
            from_=expected,
            kind=kind,
            by=by,
            why=why,
            at=datetime.now(UTC),
            host=socket.gethostname(),
            token=uuid.uuid4().hex,
        )
        if not self._append(name, entry):
            raise _moved(name, expected, self._read(name, entry.n, wait_s=HALF_WRITTEN_S))
        return entry

    def _append(self, name: str, entry: AliasEntry) -> bool:
        """Write an entry; False where another of its number is there."""
        path = f"{ALIASES_FOLDER}/{name}/{entry.n:08}.json"
        data = entry.model_dump_json(by_alias=True, indent=1).encode()
        began = time.monotonic()
        while not self._store.write_once(path, data):
            if self._files.read(path) is not None:
                return False
            # No entry, and not this writer's turn: another's bid stands, on a server that ignores conditions.
            if time.monotonic() - began > DEAD_BID_S:
                self._remove_bids(path)
            time.sleep(random.uniform(0.1, 0.5))
        if self._files.is_local:
            self._files.write(
                path, data
            )  # the same bytes, flushed: a disk may lose with the power what was only linked
        return True

    def _remove_bids(self, path: str) -> None:
        folder, _, file_name = path.rpartition("/")
        for bid in self._files.names(folder):
            if bid.startswith(f"{file_name}~"):
                self._files.remove(f"{folder}/{bid}")

    def _numbers(self, name: str) -> list[int]:
        check_alias_name(name)
        found = map(ENTRY_FILE.fullmatch, self._files.names(f"{ALIASES_FOLDER}/{name}"))
        return sorted(int(match[1]) for match in found if match)

    def _newest(self, name: str, numbers: Sequence[int]) -> AliasEntry | None:
        wait_s = HALF_WRITTEN_S
        for number in reversed(numbers):
            if entry := self._read(name, number, wait_s=wait_s):
                return entry
            wait_s = 0.0
        return None

    def _read(self, name: str, number: int, *, wait_s: float = 0.0) -> AliasEntry | None:
        """An entry; None, with a warning, where it stays unreadable, as after a loss of power."""
        try:
            return self._require(name, number, wait_s=wait_s)
        except ArtifactError as error:
            logger.warning("passed over: %s", error)
            return None

    def _require(self, name: str, number: int, *, wait_s: float = HALF_WRITTEN_S) -> AliasEntry | None:
        """An entry; None where there is none.

        Raises:
            ArtifactError: it stays unreadable.
        """
        path, deadline = f"{ALIASES_FOLDER}/{name}/{number:08}.json", time.monotonic() + wait_s
        while True:
            try:
                return self._files.read_as(path, partial(parse_entry, number=number))
            except ValueError as error:
                if isinstance(error, StorageError):
                    raise
                if time.monotonic() >= deadline:
                    raise ArtifactError(f"{self._files.uri(path)} can't be read: {error}") from None
            time.sleep(0.1)


def parse_entry(data: bytes, number: int) -> AliasEntry:
    """The entry of a number, as its file has it.

    Raises:
        ValueError: it is damaged, or that of another number.
    """
    try:
        entry = AliasEntry.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"it is no entry of an alias: {'.'.join(map(str, first['loc']))} {first['msg']}") from None
    if entry.n != number:
        raise ValueError(f"it says that it is entry {entry.n}, and its name {number}")
    return entry


def check_alias_name(name: str) -> None:
    """Refuse what is no name for an alias.

    Raises:
        ConfigError: it is none.
    """
    if not ALIAS_NAME.fullmatch(name):
        raise ConfigError(
            f"alias {name!r}: begin with a lower-case letter, then up to 31 lower-case letters, digits and dashes"
        )


def require_whole(store: ArtifactStore, version_id: str) -> ArtifactRef:
    """The artifact of a version, once every file of it, of its adapter and of its model was read and is as written.

    Raises:
        ArtifactError: something of it is damaged or gone.
    """
    variant, _, key = version_id.rpartition("-")
    ref = store.find(VERSION, key)
    try:
        if ref is None or store.read_json(ref, RECORD_FILE)["variant"] != variant:
            raise ArtifactError(f"{store.root_uri} has no whole version of that variant and key")
        store.open_directory(ref)
        for parent in store.manifest(ref).parents:
            if parent.stage in NEEDED:
                store.open_directory(parent)
    except ArtifactError as error:
        raise ArtifactError(
            f"version {version_name(version_id)} is damaged or gone: {error}. Run its pipeline again, which makes what "
            "is missing, or name another version (mralign versions)"
        ) from error
    return ref


def named_by_aliases(store: ArtifactStore) -> dict[str, str]:
    """Alias → id of the version that it names."""
    aliases = Aliases(store)
    return {name: entry.to for name in aliases.names() if (entry := aliases.current(name))}


def _promoted(history: Sequence[AliasEntry]) -> list[str]:
    """What an alias names, behind all that it can be rolled back to: each move adds one, each rollback takes one."""
    promoted: list[str] = []
    for entry in history:
        if entry.kind == "rollback" and entry.to in promoted:
            while promoted[-1] != entry.to:
                promoted.pop()
        else:
            promoted.append(entry.to)
    return promoted


def _moved(name: str, expected: str | None, current: AliasEntry | None) -> AliasMovedError:
    believed = f"names {version_name(expected)}" if expected else "names nothing"
    found = str(current) if current else "it names nothing"
    return AliasMovedError(
        f"alias {name!r} no longer {believed}: {found}. Look at it (mralign versions --history), and decide again"
        if expected or current
        else f"alias {name!r} was moved by another at the same time: look at it again (mralign versions --history)"
    )
