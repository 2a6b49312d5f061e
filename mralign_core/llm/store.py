"""Where replies are kept, so that no reply is paid for twice."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Protocol


class KeepsReplies(Protocol):
    """Keeps each reply under the digest of its request. Called from several threads at once."""

    def get(self, request_digest: str, /) -> dict[str, Any] | None:
        """The record kept for a request, or None."""
        ...

    def put(self, request_digest: str, record: dict[str, Any], /) -> None:
        """Keep a record of JSON values; it is durable when this returns."""
        ...


class MemoryReplyStore:
    """Replies kept for the life of the process."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}

    def get(self, request_digest: str) -> dict[str, Any] | None:
        """The record kept for a request, or None."""
        return self.records.get(request_digest)

    def put(self, request_digest: str, record: dict[str, Any]) -> None:
        """Keep a record."""
        self.records[request_digest] = record


class FolderReplyStore:
    """Replies as JSON files in a folder, written aside and renamed: a crash leaves no half of a reply."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def get(self, request_digest: str) -> dict[str, Any] | None:
        """The record kept for a request, or None."""
        try:
            record: dict[str, Any] = json.loads(self._path(request_digest).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return record

    def put(self, request_digest: str, record: dict[str, Any]) -> None:
        """Keep a record; it is on disk when this returns."""
        path = self._path(request_digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as part:
            json.dump(record, part)
            part.flush()
            os.fsync(part.fileno())
        os.replace(part.name, path)

    def _path(self, request_digest: str) -> Path:
        return self.folder / request_digest[:2] / f"{request_digest}.json"
