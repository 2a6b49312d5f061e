"""What names an artifact (:class:`ArtifactRef`) and what describes one (:class:`Manifest`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, TypedDict

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

SCHEMA_VERSION = 1
LEFT_OUT, TO_ASK_AGAIN = "left_out", "to_ask_again"
"""Among a manifest's counts: traces that models or their servers failed on, and those of them that a later run asks
again because it was not for what they hold."""
DIGEST_CHARS = 16
"""Characters of the content digest that name an artifact's folder."""

Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Stage = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9][A-Za-z0-9._-]{0,63}){0,3}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def relative_name(name: str) -> str:
    """Return a file name that stays inside the folder it is joined to.

    Raises:
        ValueError: the name is absolute, empty, or climbs out with ``..``.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name or name == ".":
        raise ValueError(f"{name!r} is not a plain relative file name such as 'adapter/model.safetensors'")
    return name


def artifact_path(stage: str, key: str, sha256: str) -> str:
    """An artifact's folder, relative to the root of the store."""
    return f"artifacts/{stage}/{key}/{sha256[:DIGEST_CHARS]}"


class ArtifactRef(BaseModel):
    """Names one immutable artifact. It is all that passes between tasks, and JSON-friendly."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    uri: str
    """Where the artifact was published. Readers go by stage, key and sha256, so that a store can be moved."""
    stage: Stage
    """Stage that made it, such as `estimate` or `generate/draws`."""
    key: Key
    """Cache key of its stage, config and inputs."""
    sha256: Sha256
    """Digest of its content; equal content gives an equal digest, whatever the time or the key."""
    rows: int | None = None
    """Rows of its main table; None where it is not tabular."""
    table: str = ""
    """Name of its main table's contract; empty where it is not tabular."""

    @property
    def path(self) -> str:
        """Its folder, relative to the root of the store."""
        return artifact_path(self.stage, self.key, self.sha256)


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sha256: Sha256
    """Digest of its bytes."""
    size: int = Field(ge=0)
    """Bytes."""
    rows: int | None = None
    """Rows, for a Parquet file."""
    table: str = ""
    """Name of its table contract, for a Parquet file written by the store."""


Files = dict[Annotated[str, AfterValidator(relative_name)], FileEntry]


def content_digest(files: Mapping[str, FileEntry]) -> str:
    """Sha256 over the sorted lines ``path sha256 size`` of an artifact's files.

    >>> entry = FileEntry(sha256="0" * 64, size=3)
    >>> content_digest({"a": entry, "b": entry}) == content_digest({"b": entry, "a": entry})
    True
    """
    lines = sorted(f"{name} {entry.sha256} {entry.size}\n" for name, entry in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Facts(TypedDict, total=False):
    """What a stage tells of an artifact beside where it comes from; see :class:`Manifest`."""

    rows: int | None
    table: str
    counts: Mapping[str, Any] | None
    seed: int | None
    model_revision: str
    wall_time_s: float
    cost_usd: float


class Manifest(BaseModel):
    """What an artifact holds and where it comes from; readers trust only the files it names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    schema_version: int = SCHEMA_VERSION
    """Version of this layout."""
    stage: Stage
    """Stage that made the artifact."""
    key: Key
    """Cache key of its stage, config and inputs."""
    sha256: Sha256
    """Content digest over ``files``."""
    rows: int | None = None
    """Rows of the main table."""
    table: str = ""
    """Name of the main table's contract."""
    files: Files = Field(min_length=1)
    """Every file, by its path inside the artifact."""
    parents: list[ArtifactRef] = []
    """The artifacts it was computed from."""
    fingerprint: dict[str, Any] = {}
    """Config fields that can change the content."""
    counts: dict[str, Any] = {}
    """What was kept, what was left out and why."""
    code_version: str = ""
    """Version of mralign_core."""
    package_versions: dict[str, str] = {}
    """Versions of Python and the main libraries."""
    model_revision: str = ""
    """Revision of the model involved."""
    seed: int | None = None
    """Seed of the run."""
    wall_time_s: float = 0.0
    """Seconds of work."""
    cost_usd: float = 0.0
    """Dollars paid for LLM calls."""
    created_at: datetime
    """When it was published (UTC)."""

    @field_validator("schema_version")
    @classmethod
    def _known_layout(cls, value: int) -> int:
        if value != SCHEMA_VERSION:
            raise ValueError(f"manifest layout {value} is not {SCHEMA_VERSION}, the one this version reads")
        return value

    @model_validator(mode="after")
    def _digest_is_of_files(self) -> Manifest:
        if content_digest(self.files) != self.sha256:
            raise ValueError("sha256 is not the digest of the files listed")
        return self

    @property
    def path(self) -> str:
        """Its folder, relative to the root of the store."""
        return artifact_path(self.stage, self.key, self.sha256)

    def to_bytes(self) -> bytes:
        """What is written of it."""
        return self.model_dump_json(indent=1).encode()

    def ref(self, uri: str) -> ArtifactRef:
        """The reference that names this artifact at ``uri``."""
        return ArtifactRef(
            uri=uri, stage=self.stage, key=self.key, sha256=self.sha256, rows=self.rows, table=self.table
        )
