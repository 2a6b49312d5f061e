"""Reading everything in a store: every byte of every artifact against its digest, and every record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from mralign_core.errors import StorageError
from mralign_core.retention.contents import ARTIFACT_FILE, OnRead, ignore_progress
from mralign_core.storage import ArtifactStore
from mralign_core.storage.filesystem import REQUESTS_AT_ONCE

RECORD_REMEDIES = {
    "records/replies/": "remove it: the request is sent, and paid for, again when it is needed",
    "records/ledgers/": "remove it: what that run paid is forgotten, and budgets begin anew by as much",
    "records/items/": "remove it: its shard is found again if it is cut as before, and made again else",
    "records/runs/": "remove it, and run again: what that run made is found in the store",
    "records/pins/": "remove it, and pin again what is to stay",
    "records/batches/": "put back what it said: without it a batch that was submitted is paid for again",
    "records/comparisons/": "leave it: it counts as a comparison, and without it held-out questions count as fresher",
    "records/retrainings/": "remove it: what that retraining decided is decided again",
    "records/resolutions/": "remove it: with the hub or a bucket out of reach, an earlier run can't be gone by",
    "aliases/": "put back what it said; its history is not whole without it",
}
"""Where a record stands → what to do when it can't be read."""


class Damage(NamedTuple):
    """Something in a store that is not as it was written."""

    path: str
    """Of its folder or file, relative to the root."""
    problem: str
    remedy: str


class Verified(NamedTuple):
    """What was read, and what is wrong with it."""

    num_artifacts: int
    num_records: int
    num_bytes: int
    damaged: list[Damage]
    num_unfinished: int
    """Artifacts that were begun and have no manifest: no damage, nobody uses them; a collection removes them."""


def verify_store(store: ArtifactStore, on_read: OnRead = ignore_progress) -> Verified:
    """Read everything and name what is damaged.

    Args:
        store: which.
        on_read: told how many bytes of how many are read.

    Raises:
        StorageError: the store can't be read.
    """
    sizes: Counter[str] = Counter()
    finished: list[str] = []
    for name, size in store.files.sizes("artifacts").items():
        if match := ARTIFACT_FILE.fullmatch(name):
            path = f"artifacts/{match[1]}/{match[2]}/{match[3]}"
            sizes[path] += size
            finished += [path] if f"artifacts/{name}" == f"{path}/manifest.json" else []
    records = {
        f"{folder}/{name}": size
        for folder in ("records", "aliases")
        for name, size in store.files.sizes(folder).items()
        if name.endswith(".json")
    }
    total, done, damaged = sum(sizes[path] for path in finished) + sum(records.values()), 0, []
    checks: list[tuple[int, Callable[[], Damage | None]]] = [
        *((sizes[path], partial(_artifact_damage, store, path)) for path in sorted(finished)),
        *((size, partial(_record_damage, store, path)) for path, size in sorted(records.items())),
    ]
    with ThreadPoolExecutor(1 if store.files.is_local else REQUESTS_AT_ONCE) as readers:
        found: Iterator[Damage | None] = readers.map(lambda check: check[1](), checks)
        for (size, _), damage in zip(checks, found, strict=True):
            damaged += [damage] if damage else []
            done += size
            on_read(done, total)
    return Verified(len(finished), len(records), total, damaged, len(sizes) - len(finished))


def _artifact_damage(store: ArtifactStore, path: str) -> Damage | None:
    problem = store.find_damage(path)
    if not problem:
        return None
    stage, key, _ = path.removeprefix("artifacts/").rsplit("/", 2)
    remedy = f"run again what makes {stage}/{key[:12]}, which replaces it; or remove the folder {store.files.uri(path)}"
    return Damage(path, problem, remedy)


def _record_damage(store: ArtifactStore, path: str) -> Damage | None:
    try:
        is_mapping = store.files.read_as(path, lambda data: isinstance(json.loads(data), dict))
    except StorageError:
        raise
    except (ValueError, RecursionError) as error:
        problem = f"it is no JSON: {error}"
    else:
        if is_mapping is None or is_mapping:  # None: it has gone meanwhile
            return None
        problem = "it is no JSON object"
    remedy = next((text for folder, text in RECORD_REMEDIES.items() if path.startswith(folder)), "remove it")
    return Damage(path, f"{store.files.uri(path)}: {problem}", remedy)
