"""The artifact store: immutable, content-addressed artifacts in a folder or an S3 bucket, by one code path.

Layout under ``storage.root``::

    artifacts/<stage>/<key>/<content digest>/data/…        written first
    artifacts/<stage>/<key>/<content digest>/manifest.json  written last; without it there is no artifact
    records/<name>.json                                     small records that may be replaced
    claims/<stage>/<key>.<generation>                       who is making what, while it is being made
    tmp/                                                    local stores: files not yet renamed into place

Two writers of the same content write the same files, so a double run is wasteful and harmless. What is read
back can't execute code: JSON, Parquet, and the plain files a stage publishes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import platform
import re
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
from pydantic import ValidationError

import mralign_core
from mralign_core.config import StorageConfig
from mralign_core.errors import ArtifactError, StorageError
from mralign_core.redaction import redacted
from mralign_core.schemas.base import Table
from mralign_core.storage.artifact import (
    DIGEST_CHARS,
    LEFT_OUT,
    TO_ASK_AGAIN,
    ArtifactRef,
    Facts,
    FileEntry,
    Manifest,
    content_digest,
    relative_name,
)
from mralign_core.storage.cache import DownloadCache
from mralign_core.storage.claims import Claims
from mralign_core.storage.digests import directory_entries, file_sha256
from mralign_core.storage.filesystem import REQUESTS_AT_ONCE, Content, StoreFiles
from mralign_core.storage.lineage import Lineage
from mralign_core.storage.scratch import sweep_scratch
from mralign_core.storage.tables import describe_table, read_columns, read_rows, read_table

logger = logging.getLogger("mralign_core.storage")

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "numpy",
    "pandas",
    "pyarrow",
    "litellm",
    "prefect",
)
PROBE_TIMEOUT_S = 5.0
MOST_CANDIDATES = 10
DIGEST_KEY = re.compile(r"[0-9a-f]{64}")
"""A key of :func:`key_of`."""
PATH_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a folder of a stage, a key or a digest may be called."""
DEEPEST_STAGE = 4
"""Slashes in ``stage/key`` at most."""
DIGEST = re.compile(rf"[0-9a-f]{{{DIGEST_CHARS}}}")

_swept: set[str] = set()
"""Stores from which this process has removed what dead writers left."""


class ArtifactStore:
    """Finds, publishes and opens artifacts.

    Args:
        section: where the store is and how patient to be with it.
        cache_folder: where files of a remote store are kept once downloaded; ``~/.cache/mralign`` when None.
    """

    def __init__(self, section: StorageConfig, cache_folder: Path | None = None) -> None:
        self._section = section
        self._files = StoreFiles(section)
        self._cache = DownloadCache(cache_folder or Path.home() / ".cache" / "mralign", section.cache_gib * 2**30)

    @property
    def root_uri(self) -> str:
        """The absolute address of the store."""
        return self._files.root_uri

    @property
    def section(self) -> StorageConfig:
        """Where it is, as a config says it."""
        return self._section

    @property
    def files(self) -> StoreFiles:
        """The files that it is made of, for what works on all of them."""
        return self._files

    def check_writable(self) -> None:
        """Prove that the store can be written, read back and listed; remove what killed processes left behind.

        Raises:
            StorageError: it can't; the message names the root, the cause and the remedy.
        """
        brief = {
            "connect_timeout_s": min(self._section.connect_timeout_s, PROBE_TIMEOUT_S),
            "read_timeout_s": min(self._section.read_timeout_s, PROBE_TIMEOUT_S),
        }
        files = StoreFiles(self._section.model_copy(update=brief))
        probe, content = f"probes/{uuid.uuid4().hex}", b"mralign"
        files.check_bucket()
        files.write(probe, content)
        if not files.holds(probe, hashlib.sha256(content).hexdigest()) or not files.sizes("probes"):
            raise StorageError(f"storage.root {self._section.root}: a file just written can't be read or listed there")
        with contextlib.suppress(StorageError):  # write-once buckets refuse it, and that is fine
            files.remove(probe)
        files.remove_stale_temporaries()
        sweep_scratch()
        if not files.is_local:
            self._cache.sweep()

    def find(self, stage: str, key: str, *, full_hash: bool = False) -> ArtifactRef | None:
        """The whole artifact of a stage and key that leaves the fewest traces out, the oldest of several; or None.

        Args:
            stage: name of the stage.
            key: its cache key.
            full_hash: read every file and compare digests, not only sizes.
        """
        whole = []
        for digest in self._files.names(f"artifacts/{stage}/{key}"):
            path = f"artifacts/{stage}/{key}/{digest}"
            try:
                manifest = self.manifest_at(path)
                self._verify(manifest, full_hash=full_hash)
                whole.append(manifest)
            except ArtifactError as error:
                logger.warning("not using %s: %s", self._files.uri(path), error)
        chosen = min(whole, key=_rank, default=None)
        return self._ref(chosen) if chosen else None

    def whole(self, stage: str, manifests: Sequence[tuple[Manifest, int]]) -> dict[str, ArtifactRef]:
        """Key → artifact, of those of a stage that are there as their manifests say; like :meth:`find`, by sizes.

        However many they are, the store is asked once, for a listing of the stage.

        Args:
            stage: name of the stage.
            manifests: copies of theirs, whose keys differ, each with the bytes of the one that is there.
        """
        folders: dict[str, dict[str, int]] = defaultdict(dict)
        for path, size in self._files.sizes(f"artifacts/{stage}").items() if manifests else ():
            key, digest, name = path.split("/", 2)
            folders[f"artifacts/{stage}/{key}/{digest}"][name] = size
        found = {}
        for manifest, manifest_size in manifests:
            sizes = folders[manifest.path]
            data = {name.removeprefix("data/"): size for name, size in sizes.items() if name.startswith("data/")}
            problems = _damage(manifest, data)
            if sizes.get("manifest.json") != manifest_size:
                problems = ["its manifest is missing or damaged"]
            if problems:
                logger.warning("not using %s: %s", self._files.uri(manifest.path), "; ".join(sorted(problems)))
            else:
                found[manifest.key] = self._ref(manifest)
        return found

    def publish(
        self,
        stage: str,
        key: str,
        directory: Path,
        *,
        parents: Sequence[ArtifactRef],
        fingerprint: Mapping[str, Any],
        **facts: Unpack[Facts],
    ) -> ArtifactRef:
        """Store the files of a folder as an artifact: data first, manifest last, read back before returning.

        Args:
            stage: name of the stage.
            key: its cache key.
            directory: folder whose files become the artifact; it is left as it is.
            parents: artifacts the content was computed from.
            fingerprint: config fields that can change the content.
            facts: what else is known of it. The rows are counted from the files of ``table`` where they are not given.

        Raises:
            ArtifactError: the folder is empty, or a name can't be stored.
            StorageError: the store can't be written.
        """
        files = _file_entries(directory)
        if facts.get("rows") is None and (table := facts.get("table")):
            facts["rows"] = sum(entry.rows or 0 for entry in files.values() if entry.table == table)
        facts["counts"] = redacted(facts.get("counts") or {})
        origin = {"stage": stage, "key": key, "parents": list(parents), "fingerprint": redacted(fingerprint)}
        manifest = _manifest(files, **origin, **facts)
        ref = self._ref(manifest)
        self._sweep_once()
        if not self._is_whole(ref):
            for name, entry in files.items():
                self._files.upload(Path(directory, name), f"{ref.path}/data/{name}", entry.sha256)
            self._files.write(f"{ref.path}/manifest.json", manifest.to_bytes())
            self._verify(self.manifest(ref), full_hash=False)
        return ref

    def keys(self, stage: str) -> list[str]:
        """Keys under which a stage published artifacts, or began to; sorted."""
        # Not `names`: some S3 servers list a folder for a while after its last file is gone.
        return sorted({name.partition("/")[0] for name in self._files.sizes(f"artifacts/{stage}")})

    def remove(self, stage: str, key: str) -> None:
        """Remove what a stage published under a key, or what is left of it: manifests first, then the data.

        Raises:
            StorageError: the store refuses it.
        """
        folder = f"artifacts/{stage}/{key}"
        digests = self._files.names(folder)
        for name in sorted(self._files.sizes(folder), key=lambda name: (not name.endswith("/manifest.json"), name)):
            self._files.remove(f"{folder}/{name}")
        self._files.remove_empty_folder(folder)
        if not self._files.is_local:
            for digest in filter(DIGEST.fullmatch, digests):
                self._cache.forget(digest)

    def remove_folder(self, path: str) -> None:
        """Remove one artifact, or what is there of it: the manifest first, then the data.

        Args:
            path: of its folder, relative to the root.

        Raises:
            StorageError: the store refuses it.
        """
        names = self._files.sizes(path)
        for name in sorted(names, key=lambda name: (name != "manifest.json", name)):
            self._files.remove(f"{path}/{name}")
        folder, _, digest = path.rpartition("/")
        self._files.remove_empty_folder(folder)
        if not self._files.is_local:
            self._cache.forget(digest)

    def find_damage(self, path: str) -> str:
        """What is wrong with an artifact, every byte of which is read; empty where nothing is.

        Args:
            path: of its folder, relative to the root.
        """
        try:
            self._verify(self.manifest_at(path), full_hash=True)
        except ArtifactError as error:
            return str(error)
        return ""

    def manifest(self, artifact: ArtifactRef | str) -> Manifest:
        """The manifest of an artifact, given its reference or what :meth:`resolve` accepts.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        ref = self.resolve(artifact) if isinstance(artifact, str) else artifact
        manifest = self.manifest_at(ref.path)
        if (manifest.stage, manifest.key, manifest.sha256) != (ref.stage, ref.key, ref.sha256):
            raise ArtifactError(f"the manifest at {self._files.uri(ref.path)} is not that of {ref.stage}/{ref.key}")
        return manifest

    def manifest_at(self, path: str) -> Manifest:
        """The manifest in an artifact's folder.

        Args:
            path: of the folder, relative to the root.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        try:
            manifest = self._files.read_as(f"{path}/manifest.json", Manifest.model_validate_json)
        except ValidationError as error:
            raise ArtifactError(f"{self._files.uri(path)}/manifest.json is damaged: {_first_problem(error)}") from None
        if manifest is None:
            raise ArtifactError(f"{self._files.uri(path)} has no manifest.json: it was never finished, or removed")
        if manifest.path != path:
            raise ArtifactError(f"{self._files.uri(path)}/manifest.json describes another artifact, {manifest.path}")
        return manifest

    def open_directory(self, ref: ArtifactRef) -> Path:
        """A local folder with exactly the artifact's files, each verified; don't write to it.

        Raises:
            ArtifactError: the artifact is missing or damaged.
        """
        manifest = self.manifest(ref)
        self._verify(manifest, full_hash=False)
        for name in manifest.files:
            self._open(ref, manifest, name)
        return self._folder(ref)

    def open_file(self, ref: ArtifactRef, file_name: str) -> Path:
        """A local path of one file of an artifact, verified; don't write to it.

        Raises:
            ArtifactError: the artifact has no such file, or is missing or damaged.
        """
        return self._open(ref, self.manifest(ref), file_name)

    def read_json(self, ref: ArtifactRef, file_name: str) -> Any:
        """The values of one JSON file of an artifact.

        Raises:
            ArtifactError: the file is missing or damaged.
        """
        return json.loads(self.open_file(ref, file_name).read_text(encoding="utf-8"))

    def read_table(self, ref: ArtifactRef, file_name: str) -> pd.DataFrame:
        """Rows of one Parquet file of an artifact, checked against its contract.

        Raises:
            ArtifactError: the file is missing, damaged, or breaks its contract.
        """
        return read_table(self.open_file(ref, file_name))

    def read_rows(self, ref: ArtifactRef, file_name: str, start: int, end: int) -> pd.DataFrame:
        """Rows ``start`` to ``end`` of one Parquet file of an artifact, checked against its contract.

        Raises:
            ArtifactError: the file is missing, damaged, or breaks its contract.
        """
        return read_rows(self.open_file(ref, file_name), start, end)

    def read_columns(self, ref: ArtifactRef, file_name: str, table: Table, columns: Sequence[str]) -> pd.DataFrame:
        """Some columns of one Parquet file of an artifact; its rows were checked when they were written.

        Raises:
            ArtifactError: the file is missing, damaged, or holds another table.
        """
        return read_columns(self.open_file(ref, file_name), table, columns)

    def lineage(self, artifact: ArtifactRef | str) -> Lineage:
        """The artifact and all it was computed from; a parent that is gone is a leaf with a problem."""
        return self._lineage(self.resolve(artifact) if isinstance(artifact, str) else artifact, {})

    def resolve(self, text: str) -> ArtifactRef:
        """The artifact that a URI, ``stage/key``, a key, or an unambiguous prefix of these means.

        Raises:
            ArtifactError: none or several fit (the message lists candidates), or the one is damaged.
        """
        wanted = text.rpartition("artifacts/")[2].rstrip("/")
        if not all(PATH_PART.fullmatch(part) for part in wanted.split("/") if wanted):
            raise ArtifactError(self._unsure(text, []))
        if wanted and (path := self._with_manifest(wanted)):
            return self._ref(self.manifest_at(f"artifacts/{path}"))
        names = list(islice(self._fitting(wanted), MOST_CANDIDATES + 1))
        if len(names) != 1 or not wanted:
            raise ArtifactError(self._unsure(text, names))
        stage, _, key = names[0].rpartition("/")
        ref = self.find(stage, key)
        if ref is None:
            raise ArtifactError(f"{names[0]} in {self.root_uri} is damaged: run its stage again")
        return ref

    def put_json(self, name: str, record: Mapping[str, Any], *, durable: bool = True) -> None:
        """Write or replace a small record, atomically.

        Args:
            name: such as ``last_run/pocket``.
            record: JSON values.
            durable: also survive a loss of power; a record always survives the death of this process.
        """
        text = json.dumps(
            redacted(record), sort_keys=True, allow_nan=False
        )  # ASCII: half a character in a reply has no UTF-8
        self._files.write(_record_path(name), text.encode(), durable=durable)

    def get_json(self, name: str) -> dict[str, Any] | None:
        """A record, or None when there is none or it can't be read."""
        try:
            record = self._files.read_as(_record_path(name), _parse_json)
        except StorageError:
            raise
        except ValueError as error:
            logger.warning("not using record %s: %s", self._files.uri(_record_path(name)), error)
            return None
        return record if isinstance(record, dict) else None

    def list_json(self, folder: str) -> dict[str, dict[str, Any]]:
        """The records of a folder, by their names in it, without those that can't be read."""
        return {name: record for name, record in self.list_any_json(folder).items() if record is not None}

    def list_any_json(self, folder: str) -> dict[str, dict[str, Any] | None]:
        """The records of a folder, by their names in it, read several at a time; None for those that can't be read."""
        names = [
            name.removesuffix(".json") for name in self._files.names(f"records/{folder}") if name.endswith(".json")
        ]
        with ThreadPoolExecutor(1 if self._files.is_local else REQUESTS_AT_ONCE) as readers:
            return dict(zip(names, readers.map(lambda name: self.get_json(f"{folder}/{name}"), names), strict=True))

    def _sweep_once(self) -> None:
        """In workers nobody calls :meth:`check_writable`."""
        if self.root_uri not in _swept:
            _swept.add(self.root_uri)
            self._files.remove_stale_temporaries()

    def _ref(self, manifest: Manifest) -> ArtifactRef:
        return manifest.ref(self._files.uri(manifest.path))

    def _with_manifest(self, path: str) -> str:
        """The path, where it is ``stage/key/digest`` of something that has a manifest."""
        is_whole_path = path.count("/") > 1 and DIGEST.fullmatch(path.rpartition("/")[2])
        return path if is_whole_path and self._files.exists(f"artifacts/{path}/manifest.json") else ""

    def _fitting(self, wanted: str) -> Iterator[str]:
        """``stage/key`` of what a text may mean, sorted, looked for as it is asked for: not the whole store is listed.

        A key without a stage is looked for among the keys of every stage whose name is one word.
        """
        parent, _, start = wanted.rpartition("/")
        found = self._artifacts_under(parent, start) if wanted else self._artifacts_under("")
        seen = set()
        for name in found:
            seen.add(name)
            yield name
        if not wanted or parent:
            return
        stages = list(self._files.beginning("artifacts", ""))
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as readers:
            for names in readers.map(lambda stage: list(self._keys_beginning(stage, wanted)), stages):
                yield from (name for name in names if name not in seen)

    def _keys_beginning(self, stage: str, start: str) -> Iterator[str]:
        if DIGEST_KEY.fullmatch(start):  # none begins so but the key itself
            return iter([name] if self._digests(name := f"{stage}/{start}") else [])
        names = (f"{stage}/{key}" for key in self._files.beginning(f"artifacts/{stage}", start))
        return islice((name for name in names if self._digests(name)), MOST_CANDIDATES + 1)

    def _artifacts_under(self, folder: str, start: str = "") -> Iterator[str]:
        """``stage/key`` of everything that has a manifest in those folders of a folder whose names begin so."""
        for name in self._files.beginning(f"artifacts/{folder}" if folder else "artifacts", start):
            path = f"{folder}/{name}" if folder else name
            if self._digests(path):
                yield path
            elif path.count("/") < DEEPEST_STAGE and name != "data":
                yield from self._artifacts_under(path)

    def _digests(self, path: str) -> list[str]:
        """Digests of what was published under ``stage/key``."""
        if "/" not in path:
            return []
        names = (name for name in self._files.beginning(f"artifacts/{path}", "") if not name.startswith("."))
        return [
            name
            for name in takewhile(DIGEST.fullmatch, names)
            if self._files.exists(f"artifacts/{path}/{name}/manifest.json")
        ]

    def _unsure(self, text: str, names: Sequence[str]) -> str:
        """What to say where none or several fit."""
        more = "more than " if len(names) > MOST_CANDIDATES else ""
        candidates = names[:MOST_CANDIDATES] or list(islice(self._artifacts_under(""), MOST_CANDIDATES))
        what = f"{more}{len(names[:MOST_CANDIDATES])} artifacts fit" if names else "no artifact fits"
        listed = "\n  ".join(candidates) or "(the store is empty)"
        return f"{what} {text!r} in {self.root_uri}; candidates:\n  {listed}"

    def _lineage(self, ref: ArtifactRef, known: dict[str, Lineage]) -> Lineage:
        if ref.path not in known:
            try:
                manifest = self.manifest(ref)
                parents = tuple(self._lineage(parent, known) for parent in manifest.parents)
                known[ref.path] = Lineage(ref, manifest, "", parents)
            except ArtifactError as error:
                known[ref.path] = Lineage(ref, None, str(error), ())
        return known[ref.path]

    def _verify(self, manifest: Manifest, *, full_hash: bool) -> None:
        problems = _damage(manifest, self._files.sizes(f"{manifest.path}/data"))
        if full_hash and not problems:
            problems = [
                f"{name} has other content than was written"
                for name, entry in manifest.files.items()
                if not self._files.holds(f"{manifest.path}/data/{name}", entry.sha256)
            ]
        if problems:
            raise ArtifactError(f"{self._files.uri(manifest.path)} is damaged: {'; '.join(sorted(problems))}")

    def _is_whole(self, ref: ArtifactRef) -> bool:
        try:
            self._verify(self.manifest(ref), full_hash=True)
        except ArtifactError:
            return False
        return True

    def _folder(self, ref: ArtifactRef) -> Path:
        return self._files.local_path(f"{ref.path}/data") or self._cache.use(ref.sha256)

    def _open(self, ref: ArtifactRef, manifest: Manifest, name: str) -> Path:
        if name not in manifest.files:
            raise ArtifactError(f"{ref.uri} has no file {name!r}; it has {', '.join(manifest.files)}")
        target, entry, path = self._folder(ref) / name, manifest.files[name], f"{ref.path}/data/{name}"
        is_there = self._files.patiently(path, lambda: _holds(target, entry))
        if not is_there and not self._files.is_local:
            self._cache.make_room(entry.size)
            self._files.download(path, target, self._cache.temporary_folder, Content(entry.size, entry.sha256))
            is_there = _holds(target, entry)
        if not is_there:
            raise ArtifactError(
                f"file {name!r} of {self._files.uri(ref.path)} is missing or has other content than was "
                "written: remove that folder and run its stage again"
            )
        return target

    def claims(self, run: str) -> Claims:
        """Who is making what in this store; see :mod:`mralign_core.storage.claims`.

        Args:
            run: what this run is called in the messages of those who wait for it.
        """
        return Claims(self._section, run)

    def write_once(self, path: str, data: bytes) -> bool:
        """Write a small file unless there is one, also where the server ignores conditions; see the claims.

        Args:
            path: relative to the root.
            data: unlike what any other writer would write there.

        Returns:
            Whether this wrote it; of several at once, exactly one has.
        """
        claims = Claims(self._section, "")
        claims.files = self._files  # with the patience of the store: nobody's lease runs out meanwhile
        return claims.create(path, data, uuid.uuid4().hex)


def _damage(manifest: Manifest, sizes: Mapping[str, int]) -> list[str]:
    """What the files of an artifact lack, by their names and sizes in bytes."""
    problems = [f"{name} is not in the manifest" for name in sizes.keys() - manifest.files.keys()]
    for name, entry in manifest.files.items():
        if name not in sizes:
            problems.append(f"{name} is missing")
        elif sizes[name] != entry.size:
            problems.append(f"{name} has {sizes[name]} bytes, {entry.size} were written")
    return problems


def _rank(manifest: Manifest) -> tuple[Any, ...]:
    left_out = (manifest.counts.get(name, 0) for name in (TO_ASK_AGAIN, LEFT_OUT))
    return *left_out, manifest.created_at, manifest.sha256


def _parse_json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _record_path(name: str) -> str:
    return f"records/{relative_name(name)}.json"


def _holds(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size and file_sha256(path) == entry.sha256


def _file_entries(directory: Path) -> dict[str, FileEntry]:
    """Digests and sizes of a folder's files, and rows and contract of its Parquet files."""
    entries = directory_entries(directory)
    if not entries:
        raise ArtifactError(f"{directory} has no files: there is nothing to publish")
    for name, entry in entries.items():
        if name.endswith(".parquet"):
            entries[name] = entry.model_copy(update=describe_table(directory / name)._asdict())
    return entries


def _manifest(files: dict[str, FileEntry], **fields: Any) -> Manifest:
    try:
        return Manifest(
            files=files,
            sha256=content_digest(files),
            code_version=mralign_core.__version__,
            package_versions=_package_versions(),
            created_at=datetime.now(UTC),
            **fields,
        )
    except ValidationError as error:
        raise ArtifactError(f"an artifact can't be described: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"])) or "manifest"
    return f"{where}: {problem['msg']} (got {problem['input']!r:.80})"


def _package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
