"""How an artifact is made once: look it up, else claim it, build it in a scratch folder and publish it.

The store is the cache. A key names an artifact, its manifest proves it, and a missing or damaged one is a miss; so the
same hit is found from any host, with or without a Prefect server. A task whose artifact was there ends in a state
named "Cached", and so does one that waited while another run made it (:mod:`mralign_core.storage.claims`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from prefect.runtime import flow_run
from pydantic import BaseModel, ValidationError

from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError
from mralign_core.processes.machines import MACHINE_RANK, HelpedElsewhere, machine_rank
from mralign_core.storage import (
    LEFT_OUT,
    TO_ASK_AGAIN,
    ArtifactRef,
    ArtifactStore,
    Holder,
    file_sha256,
    scratch_folder,
)
from mralign_core.storage.artifact import Manifest
from tasks.engine.graph import NOTHING, Artifact, Items, Part
from tasks.engine.progress import OnProgress, progress
from tasks.engine.session import run_name

logger = logging.getLogger("mralign_core.tasks")

HELP_AGAIN_S = 5.0
"""Until a machine that helps another one looks again whether there is something to help with."""
PUBLISHED_S = 120.0
"""For the machine that was helped to publish what was made."""
LONGEST_PART = 40
"""Of a part's value in a log line; digests of files are longer."""


class Built(NamedTuple):
    """What a build function says about the files it wrote."""

    table: str = ""
    counts: Mapping[str, Any] | None = None
    cost_usd: float = 0.0
    model_revision: str = ""
    deciding: Sequence[str] = ()
    """Files that later stages go by: where an unfinished artifact has the same ones, and lacks as much, it stays, with
    its digest."""
    once_published: Callable[[], None] | None = None
    """Called when the artifact is in the store, to clear what was kept in case it would not be."""


class Produced(NamedTuple):
    """An artifact, and whether it was already there."""

    ref: ArtifactRef
    was_cached: bool


@dataclass(frozen=True)
class Making:
    """What a build function works with.

    Args:
        work: what is to be made: config, inputs, part, rows, key.
        store: where the inputs are.
        directory: where the files go; new and empty.
        options: arguments of the task that change no result.
    """

    work: Work
    store: ArtifactStore
    directory: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> RunConfig:
        """The run config."""
        return self.work.config

    @property
    def part(self) -> Part:
        """Which part it is."""
        return self.work.part

    def __getitem__(self, name: str) -> ArtifactRef:
        """The input of a name.

        Raises:
            KeyError: there is none, or it is not read under this config.
        """
        return self.work.inputs[name]

    def get(self, name: str) -> ArtifactRef | None:
        """The input of a name; None where it is not read under this config."""
        return self.work.inputs.get(name)

    def several(self, name: str) -> dict[str, ArtifactRef]:
        """The inputs of which there are several, by what tells them apart."""
        prefix = f"{name}:"
        return {full.removeprefix(prefix): ref for full, ref in self.work.inputs.items() if full.startswith(prefix)}

    def file(self, name: str, file_name: str) -> Path:
        """A file of an input."""
        return self.store.open_file(self[name], file_name)

    def table(self, name: str, file_name: str) -> pd.DataFrame:
        """A table of an input."""
        return self.store.read_table(self[name], file_name)

    def table_if_read(self, name: str, file_name: str) -> pd.DataFrame | None:
        """A table of an input; None where the input is not read under this config."""
        return self.table(name, file_name) if self.get(name) else None


Build = Callable[[Making], Built]


@dataclass(frozen=True)
class Work:
    """One artifact to have: what it is, the inputs that it reads by name, and which part of it this is.

    Of a shard, ``rows`` says which of the items.
    """

    artifact: Artifact
    config: RunConfig
    inputs: Mapping[str, ArtifactRef] = field(default_factory=dict)
    part: Part = field(default_factory=dict)
    rows: Sequence[int] = ()

    @functools.cached_property
    def key(self) -> str:
        """The cache key."""
        part = {**self.part, "items": self.digests} if self.artifact.items else self.part
        return self.artifact.key(self.config, self.inputs, part)

    @functools.cached_property
    def line(self) -> str:
        """What the keys of all shards share that differ in their items only: a digest of everything else."""
        return self.artifact.key(self.config, self.inputs, self.part)

    @functools.cached_property
    def items(self) -> Items:
        """All items, of which a shard has some."""
        if self.artifact.items is None:
            raise TypeError(f"artifact {self.artifact.name!r} is no shard; a programming error")
        return self.artifact.items(self.config, self.inputs)

    @property
    def parents(self) -> list[ArtifactRef]:
        """What it is made from: the inputs, and artifacts that the config names."""
        return [*self.inputs.values(), *self.artifact.named_by(self.config)]

    @property
    def digests(self) -> list[str]:
        """Those of a shard's items."""
        return [self.items.digests[row] for row in self.rows]

    @property
    def notes(self) -> str:
        """The folder of the records that say which items each shard of this line has."""
        return f"items/{self.artifact.name}/{self.line}"

    def find(self, store: ArtifactStore) -> ArtifactRef | None:
        """The artifact, when the store holds an intact one."""
        return store.find(self.artifact.name, self.key)

    def num_to_ask(self, store: ArtifactStore, found: ArtifactRef) -> int:
        """How many traces, or draws, a stored artifact lacks that are to be asked again; it is finished if none."""
        return self.num_to_ask_of(store.manifest(found)) if self._asked_again else 0

    def num_to_ask_of(self, manifest: Manifest) -> int:
        """The same, where its manifest is at hand."""
        return int(manifest.counts.get(self._asked_again, 0))

    @property
    def _asked_again(self) -> str:
        """What manifests count of that which is to be asked again; nothing where nothing is."""
        return {"never": "", "auto": TO_ASK_AGAIN, "failed": LEFT_OUT}[self.artifact.ask_again(self.config)]

    def is_finished(self, store: ArtifactStore) -> bool:
        """Whether the store holds it, with nothing in it to ask again."""
        found = self.find(store)
        return found is not None and not self.num_to_ask(store, found)

    def produce(self, options: Mapping[str, Any] = NOTHING, build: Build | None = None) -> Produced:
        """Return the stored artifact, or build and publish it; of a shard, note which items it has.

        Args:
            options: arguments of the task that change no result.
            build: in place of the artifact's own function.
        """
        self.artifact.check(self.config, self.inputs)
        store = ArtifactStore(self.config.storage)
        produced = self._produce(store, options, build or self.artifact.way(self.config).build)
        if self.artifact.is_shard:
            self._note(store, produced.ref)
        return produced

    def _note(self, store: ArtifactStore, ref: ArtifactRef) -> None:
        name = f"{self.notes}/{self.key}"
        manifest = store.manifest(ref)
        note = Note(items=self.digests, manifest=manifest, manifest_size=len(manifest.to_bytes()))
        if Note.read(store.get_json(name)) != note:
            store.put_json(name, note.model_dump(mode="json"))

    def _produce(self, store: ArtifactStore, options: Mapping[str, Any], build: Build) -> Produced:
        before = self.find(store)
        if before and not self.num_to_ask(store, before):
            return self._found(before)
        if machine_rank():
            return self._found(self._help(store, build, options))
        claims, name = store.claims(_name_of(flow_run.id)), f"{self.artifact.name}/{self.key}"

        def find_other() -> ArtifactRef | None:
            """What another has made, which may leave traces out again; the next run asks for those."""
            found = self.find(store)
            return found if found != before else None

        reads = [ref.path for ref in self.parents]
        with _saying_who_works(self.label) as say, claims.hold(name, find_other, say, reads) as turn:
            if turn.found:
                return self._found(turn.found)
            made = self._make(store, build, options)
            if made.was_cached or turn.is_alone:
                return made
            # Another that has made it too, because of a stop of this process, may have been first.
            return Produced(self.find(store) or made.ref, False)

    def _help(self, store: ArtifactStore, build: Build, options: Mapping[str, Any]) -> ArtifactRef:
        """Lend this machine's processes to the one that makes it, attempt after attempt, until it is in the store.

        Raises:
            ConfigError: it is made by one machine alone, and not in the store yet.
        """
        look_until = 0.0
        while (found := self.find(store)) is None:
            if not self.artifact.is_shared(self.config):
                raise ConfigError(
                    f"{MACHINE_RANK} is {machine_rank()}, but {self.label} is made by one machine, and not in "
                    f"{store.root_uri} yet: wait until the first machine has made it, or unset {MACHINE_RANK} to make "
                    "it here"
                )
            if time.monotonic() > look_until:
                try:
                    with scratch_folder() as scratch:
                        build(Making(self, store, scratch, options))
                    raise AssertionError(f"{self.label} is shared, but what builds it has started no processes")
                except HelpedElsewhere:
                    look_until = time.monotonic() + PUBLISHED_S
                except ChildProcessError as error:
                    logger.warning(
                        "%s: an attempt has failed, as it does when a machine is lost: %s", self.label, error
                    )
            time.sleep(HELP_AGAIN_S)
        return found

    @property
    def label(self) -> str:
        """What it is called in messages."""
        values = [text for text in map(str, self.part.values()) if 0 < len(text) < LONGEST_PART]
        return " ".join([self.artifact.name, *values, *([span(self.rows)] if self.rows else [])])

    def _found(self, ref: ArtifactRef) -> Produced:
        logger.info("%s: found in the store (%s)", self.label, ref.uri)
        return Produced(ref, True)

    def _make(self, store: ArtifactStore, build: Build, options: Mapping[str, Any]) -> Produced:
        started = time.monotonic()
        with scratch_folder() as scratch:
            built = build(Making(self, store, scratch, options))
            if built.deciding and (same := self._same(store, scratch, built)):
                return Produced(same, True)
            ref = store.publish(
                self.artifact.name,
                self.key,
                scratch,
                parents=self.parents,
                fingerprint=self.artifact.fingerprint(self.config, self.part),
                table=built.table,
                counts=dict(built.counts or {}),
                seed=self.config.seed,
                model_revision=built.model_revision,
                wall_time_s=time.monotonic() - started,
                cost_usd=built.cost_usd,
            )
        if built.once_published:
            built.once_published()
        logger.info("%s: made in %.1f s (%s)", self.label, time.monotonic() - started, ref.uri)
        return Produced(ref, False)

    def _same(self, store: ArtifactStore, scratch: Path, built: Built) -> ArtifactRef | None:
        """The stored artifact, when it has the deciding files already, and as much of it is to be asked again."""
        found = self.find(store)
        if found is None:
            return None
        stored, counts = store.manifest(found), built.counts or {}
        if any(stored.counts.get(name, 0) != counts.get(name, 0) for name in (LEFT_OUT, TO_ASK_AGAIN)):
            return None
        files = stored.files
        is_same = all(name in files and files[name].sha256 == file_sha256(scratch / name) for name in built.deciding)
        return found if is_same else None


class Note(BaseModel):
    """What is noted of a shard, so that a run finds it by its items with one request."""

    items: list[str]
    """The digests of its items."""
    manifest: Manifest
    """A copy of its own."""
    manifest_size: int
    """Bytes of that in the store: secrets are redacted in the copy."""

    @classmethod
    def read(cls, record: object) -> Note | None:
        """The note in a record; None where that is damaged, or there is none."""
        try:
            return cls.model_validate(record)
        except ValidationError:
            return None


@functools.lru_cache(maxsize=8)  # the server is asked who the parents of a run are
def _name_of(_: str | None) -> str:
    return run_name()


@contextlib.contextmanager
def _saying_who_works(label: str) -> Iterator[Callable[[Holder], None]]:
    """Yield what tells the log once, and the progress, that another run makes this and is waited for."""
    with contextlib.ExitStack() as shown:
        reports: list[OnProgress] = []

        def say(holder: Holder) -> None:
            if not reports:
                logger.info("%s: %s is making it; waiting until it has, or has ended", label, holder)
                reports.append(shown.enter_context(progress(f"{label}: waiting", "waiting")))
            reports[0](0, 1, str(holder))

        yield say


def file_digests(**paths: str) -> dict[str, str]:
    """The digest of each user's file that a stage reads, by its role; a file that is not there has none.

    The stage itself reports a missing file, with its remedy.
    """
    return {role: file_sha256(Path(path)) for role, path in paths.items() if path and Path(path).is_file()}


def span(rows: Sequence[int]) -> str:
    """Rows in few characters: the first and the one after the last.

    Example:
        >>> span([3, 4, 5])
        '3–6'
    """
    return f"{rows[0]}–{rows[-1] + 1}"
