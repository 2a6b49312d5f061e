"""What is in a store, as one listing and all manifests say it: the graph that a plan of removal is made on."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from mralign_core.errors import ArtifactError, StorageError
from mralign_core.storage import ArtifactStore
from mralign_core.storage.artifact import Manifest
from mralign_core.storage.claims import FOLDER as CLAIMS_FOLDER
from mralign_core.storage.claims import Holder
from mralign_core.storage.filesystem import REQUESTS_AT_ONCE, Listed

ARTIFACT_FILE = re.compile(r"(.+)/([^/]+)/([0-9a-f]{16})/(?:manifest\.json|data/.+)")
ARTIFACT_PATH = re.compile(r"artifacts/.+/[^/]+/[0-9a-f]{16}")
CLAIM_FILE = re.compile(r"(.+)\.\d+(?:~.*)?")
NOTE = re.compile(r"(.+)/[^/]+/([^/]+)\.json")
NOTES_FOLDER, PROBES_FOLDER = "records/items", "probes"

LONGEST_LISTING_S = 86_400.0
"""What was published while a store was listed is younger."""

OnRead = Callable[[int, int], object]


def ignore_progress(_done: int, _total: int) -> None:
    """For callers who show no progress."""


@dataclass(frozen=True)
class Stored:
    """One artifact as it stands in the store, or what is left or not yet there of one.

    ``manifest`` is None where it has none, or ``problem`` says that it can't be read.
    """

    path: str
    """``artifacts/stage/key/digest``."""
    stage: str
    key: str
    files: Mapping[str, Listed]
    age_s: float
    """Seconds since its newest file was written, by the store's clock."""
    manifest: Manifest | None = None
    problem: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files.values())

    @property
    def is_finished(self) -> bool:
        """Whether it has a manifest, readable or not."""
        return "manifest.json" in self.files

    @property
    def name(self) -> str:
        """``stage/key``, which is also the name of the claim on it."""
        return f"{self.stage}/{self.key}"


class ClaimFile(NamedTuple):
    """A claim's file."""

    path: str
    name: str
    """What is claimed, ``stage/key``."""
    data: bytes
    holder: Holder
    age_s: float
    size: int


class Leftover(NamedTuple):
    """A file that is no part of an artifact."""

    path: str
    size: int
    age_s: float
    """Since it was written, or the newest of its parts."""
    upload: str = ""
    """Of an upload in parts, what names it."""


@dataclass(frozen=True)
class Contents:
    """What is in a store.

    Args:
        artifacts: by path, finished or not.
        notes: notes of shards, by path, with ``stage/key`` of the shard and their bytes.
        temporaries: half-written files of a folder, uploads in parts to a bucket, and probes.
    """

    artifacts: Mapping[str, Stored]
    notes: Mapping[str, tuple[str, int]]
    temporaries: Sequence[Leftover]

    def extended(self, store: ArtifactStore, paths: Iterable[str]) -> Contents:
        """With artifacts that came since it was read: those of the paths, and all that they were made from."""
        found, open_paths = dict(self.artifacts), list(paths)
        while open_paths:
            path = open_paths.pop()
            if path in found or not ARTIFACT_PATH.fullmatch(path):
                continue
            if (new := _read(store, path, {"manifest.json": Listed(0, 0.0)}, 0.0)).manifest:
                found[path] = new
                open_paths += [parent.path for parent in new.manifest.parents]
        return Contents(found, self.notes, self.temporaries)


def read_contents(store: ArtifactStore, on_read: OnRead = ignore_progress) -> Contents:
    """List the store once, and read every manifest.

    Raises:
        StorageError: the store does not let itself be listed, or a file be read.
    """
    now = store_clock(store)
    notes = {  # before the artifacts: a note is written after its shard
        f"{NOTES_FOLDER}/{name}": (f"{match[1]}/{match[2]}", file.size)
        for name, file in store.files.listed(NOTES_FOLDER).items()
        if (match := NOTE.fullmatch(name))
    }
    folders: dict[str, dict[str, Listed]] = defaultdict(dict)
    for name, file in store.files.listed("artifacts").items():
        if match := ARTIFACT_FILE.fullmatch(name):
            path = f"artifacts/{match[1]}/{match[2]}/{match[3]}"
            folders[path][f"artifacts/{name}".removeprefix(f"{path}/")] = file
    artifacts, temporaries = {}, _temporaries(store, now)
    with ThreadPoolExecutor(1 if store.files.is_local else REQUESTS_AT_ONCE) as readers:
        ages = {path: now - max(file.changed_at for file in files.values()) for path, files in folders.items()}
        for each in temporaries:  # a large file that comes in parts stands in no listing until it is whole
            if each.upload and (path := each.path.partition("/data/")[0]) in ages:
                ages[path] = min(ages[path], each.age_s)
        for stored in readers.map(lambda path: _read(store, path, folders[path], ages[path]), folders):
            artifacts[stored.path] = stored
            on_read(len(artifacts), len(folders))
    contents = Contents(artifacts, notes, temporaries)
    # A long listing may have the child and not the parent, which was published after its own folder was listed.
    young = [one.manifest for one in artifacts.values() if one.manifest and one.age_s < LONGEST_LISTING_S]
    return contents.extended(store, (parent.path for manifest in young for parent in manifest.parents))


def store_clock(store: ArtifactStore) -> float:
    """What time it is for the store, whose clock dates its files: that of a file just written, and no other's.

    A probe that a killed start left, on a host whose clock was ahead, must not make everything old. Where the store
    can't be written it is the newest probe's.
    """
    probe = f"{PROBES_FOLDER}/{uuid.uuid4().hex}"
    with contextlib.suppress(StorageError):
        store.files.write(probe, b"clock", durable=False)
    try:
        changed = {name: file.changed_at for name, file in store.files.listed(PROBES_FOLDER).items()}
    finally:
        with contextlib.suppress(StorageError):
            store.files.remove(probe)
    own = changed.get(probe.rpartition("/")[2])
    return own if own is not None else max(changed.values(), default=0.0)


def read_claims(store: ArtifactStore, now: float) -> list[ClaimFile]:
    """Every claim in the store, whoever made it."""
    found = []
    for name, file in store.files.listed(CLAIMS_FOLDER).items():
        path, match = f"{CLAIMS_FOLDER}/{name}", CLAIM_FILE.fullmatch(name)
        data = store.files.read(path) if match else None
        if match and data is not None:
            found.append(ClaimFile(path, match[1], data, Holder.read(data), now - file.changed_at, file.size))
    return found


def _read(store: ArtifactStore, path: str, files: Mapping[str, Listed], age_s: float) -> Stored:
    stage, key, _ = path.removeprefix("artifacts/").rsplit("/", 2)
    stored = Stored(path, stage, key, files, age_s)
    if not stored.is_finished:
        return stored
    try:
        return Stored(path, stage, key, files, age_s, store.manifest_at(path))
    except ArtifactError as error:
        return Stored(path, stage, key, files, age_s, problem=str(error))


def _temporaries(store: ArtifactStore, now: float) -> list[Leftover]:
    """Half-written files whose writers are dead, uploads that are not ended, and probes of starts that were killed."""
    dead = set(store.files.stale_temporaries())
    half_written = [(f"tmp/{name}", file) for name, file in store.files.listed("tmp").items() if name in dead]
    probes = [
        (f"{folder}/{name}", file)
        for folder in (PROBES_FOLDER, f"{CLAIMS_FOLDER}/{PROBES_FOLDER}")
        for name, file in store.files.listed(folder).items()
    ]
    leftovers = [Leftover(path, file.size, now - file.changed_at) for path, file in [*half_written, *probes]]
    with contextlib.suppress(StorageError):  # many may not list them
        leftovers += [Leftover(up.path, up.size, now - up.active_at, up.token) for up in store.files.begun_uploads()]
    return leftovers
