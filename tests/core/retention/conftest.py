"""Small artifacts written straight into a store, as old as a test wants them."""

import hashlib
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mralign_core.config import StorageConfig
from mralign_core.storage import ArtifactRef, ArtifactStore, RunRecord
from mralign_core.storage.artifact import FileEntry, Manifest, content_digest
from mralign_core.versions.aliases import AliasEntry

DAY_S = 86_400.0
OLD_S = 100 * DAY_S


class Shelf:
    """A store, and short ways to put things into it. On a bucket everything is as old as it is."""

    def __init__(self, section: StorageConfig) -> None:
        self.section = section
        self.store = ArtifactStore(section)
        self.is_local = "://" not in section.root

    def put(self, name, parents=(), *, age_s=OLD_S, manifest=True, **facts) -> ArtifactRef:
        """An artifact ``stage/key`` with a file of its own content."""
        stage, _, key = name.rpartition("/")
        data = f"content of {name}".encode()
        files = {"part.json": FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))}
        made = Manifest(
            stage=stage,
            key=key,
            sha256=content_digest(files),
            files=files,
            parents=list(parents),
            created_at=datetime.now(UTC),
            **facts,
        )
        self.write(f"{made.path}/data/part.json", data, age_s=age_s)
        if manifest:
            self.write(f"{made.path}/manifest.json", made.to_bytes(), age_s=age_s)
        return made.ref(self.store.files.uri(made.path))

    def write(self, path, data, *, age_s=OLD_S) -> str:
        self.store.files.write(path, data, durable=False)
        if self.is_local:
            then = time.time() - age_s
            os.utime(Path(self.section.root, path), (then, then))
        return path

    def note_run(self, run, artifacts, *, config="nightly", at=None, ago=None) -> None:
        """A run's record; it made all of it, and ended long ago unless it is said when."""
        at = datetime.now(UTC) - ago if ago else at or datetime(2020, 1, 1, tzinfo=UTC)
        record = RunRecord(run=run, at=at, artifacts=artifacts, made_by=dict.fromkeys(artifacts, run))
        self.store.put_json(f"runs/{config}/{run}", record.model_dump(mode="json"))
        self.store.put_json(f"runs/{config}", record.model_dump(mode="json"))

    def alias(self, name, number, to, before=None) -> None:
        entry = AliasEntry(
            n=number, to=to, from_=before, by="a test", at=datetime(2020, 1, 1, tzinfo=UTC), host="here", token="t"
        )
        self.write(f"aliases/{name}/{number:08d}.json", entry.model_dump_json(by_alias=True).encode())

    @property
    def names(self) -> set[str]:
        """``stage/key`` of everything that has a manifest."""
        files = self.store.files.sizes("artifacts")
        return {name.rsplit("/", 2)[0] for name in files if name.endswith("/manifest.json")}

    @property
    def files(self) -> set[str]:
        folders = ("aliases", "artifacts", "claims", "probes", "records", "tmp")
        return {f"{folder}/{name}" for folder in folders for name in self.store.files.sizes(folder)}


@pytest.fixture
def shelf(tmp_path) -> Shelf:
    return Shelf(StorageConfig(root=str(tmp_path / "store")))


@pytest.fixture
def bucket(s3_server, s3_root) -> Shelf:
    return Shelf(StorageConfig(root=s3_root, endpoint_url=s3_server.endpoint_url))
