"""Reading everything in a store: every byte of every artifact against its digest, and every record as its readers do.

What is removed meanwhile is no damage: of an artifact the manifest goes first, so one that lacks something and still
has its manifest is damaged, and one that has none any more was removed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from pydantic import ValidationError

from mralign_core.errors import StorageError
from mralign_core.intake.resolution import Resolution
from mralign_core.rating.records import RATINGS_FOLDER, check_round, remedy_of
from mralign_core.retention.contents import ARTIFACT_FILE, OnRead, ignore_progress
from mralign_core.retention.roots import Pin, pin_path
from mralign_core.retraining.history import Retraining
from mralign_core.storage import ArtifactStore, RunRecord
from mralign_core.storage.filesystem import REQUESTS_AT_ONCE
from mralign_core.versions.aliases import ALIASES_FOLDER, ENTRY_FILE, parse_entry

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
"""Where a record stands → what to do when it can't be read; ``remedy_of`` says it of ratings."""


def _check_entry(data: bytes, path: str) -> None:
    number = path.rpartition("/")[2].removesuffix(".json")
    if ENTRY_FILE.fullmatch(f"{number}.json"):  # others are nobody's
        parse_entry(data, int(number))


def _check_pin(data: bytes, path: str) -> None:
    pin = Pin.model_validate_json(data)
    if f"records/{pin_path(pin.artifact.path)}.json" != path:
        raise ValueError(f"it pins {pin.artifact.path}, and its name says otherwise")


PARSERS: dict[str, Callable[[bytes, str], object]] = {
    "records/pins/": _check_pin,
    "records/runs/": lambda data, _: RunRecord.model_validate_json(data),
    "records/retrainings/": lambda data, _: Retraining.model_validate_json(data),
    "records/resolutions/": lambda data, _: Resolution.model_validate_json(data),
    f"{ALIASES_FOLDER}/": _check_entry,
    f"{RATINGS_FOLDER}/": check_round,
}
"""Where a record stands → what its readers make of it."""


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
        for folder in ("records", ALIASES_FOLDER, RATINGS_FOLDER)
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
    if not problem or not store.files.exists(f"{path}/manifest.json"):
        return None
    stage, key, _ = path.removeprefix("artifacts/").rsplit("/", 2)
    remedy = f"run again what makes {stage}/{key[:12]}, which replaces it; or remove the folder {store.files.uri(path)}"
    return Damage(path, problem, remedy)


def _record_damage(store: ArtifactStore, path: str) -> Damage | None:
    parse = next((parse for start, parse in PARSERS.items() if path.startswith(start)), None)
    try:
        store.files.read_as(path, partial(_check_record, path, parse))  # nothing where it has gone meanwhile
        return None
    except StorageError:
        raise
    except (ValueError, RecursionError) as error:
        problem = str(error)
    return Damage(path, f"{store.files.uri(path)}: {problem}", _remedy(path))


def _remedy(path: str) -> str:
    if path.startswith(f"{RATINGS_FOLDER}/"):
        return remedy_of(path)
    return next((text for folder, text in RECORD_REMEDIES.items() if path.startswith(folder)), "remove it")


def _check_record(path: str, parse: Callable[[bytes, str], object] | None, data: bytes) -> None:
    try:
        is_mapping = isinstance(json.loads(data), dict)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not is_mapping:
        raise ValueError("it is no JSON object")
    try:
        if parse:
            parse(data, path)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"it does not say what such a record does: {where}: {first['msg']}") from None
