"""Question files that arrive: all that fit a pattern, or lie in a bucket, taken in by their contents.

``path`` of a question set may be a pattern of local files (``incoming/*.jsonl``), or a bucket's prefix, pattern or
file (``s3://bucket/incoming/*.jsonl``; credentials and ``storage.endpoint_url`` as for the store). What fits is copied
to the local cache by its digest, so that a run reads what was there when it began, whatever arrives meanwhile. What a
run took in is in the store too, as an artifact of stage ``arrivals``: a child of it on another host finds it there.

Departures from a folder of files, whose rows without an id are numbered through, so that one more file would give every
row behind it another id, and have it paid for again:

- a row without an id gets one that is made of its question's text: ``q`` and twelve digits of its SHA-256;
- a row that stands in several files with the same contents is taken once; how often that was so is told;
- a known set (:mod:`mralign_core.questions.known_sets`) is copied as it is, since it does not grow.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mralign_core.config import QuestionSetConfig, StorageConfig
from mralign_core.errors import DataError, StorageError, StoreUnavailableError
from mralign_core.intake.resolution import DIGEST_PART, ConfigReference
from mralign_core.questions.columns import BadRowError, Columns
from mralign_core.questions.files import READERS, format_of, stream_files
from mralign_core.questions.jsonl import Line, refuse
from mralign_core.questions.known_sets import KNOWN_SETS
from mralign_core.questions.loading import REMEDY, repeated_ids
from mralign_core.questions.locating import COLUMN_OPTIONS
from mralign_core.questions.opening import stem, why_not_a_file, without_gz
from mralign_core.storage import ArtifactStore, file_sha256, key_of
from mralign_core.storage.artifact import relative_name
from mralign_core.storage.cache import DownloadCache
from mralign_core.storage.filesystem import StoreFiles
from mralign_core.storage.scratch import part_file

logger = logging.getLogger("mralign_core.intake")
WILD = re.compile(r"[*?\[]")
BUCKET_START = "s3://"
ARRIVAL_ID = "arrival_id"
"""Column of what is taken in: the id of a row whose set names no ``id_column``."""
ID_CHARS = 12
ARRIVALS = "arrivals"
"""Folder of the store's artifacts that holds what runs took in, each under its digest."""
MOST_FILES_NAMED = 5
"""Of files that are refused or passed over."""
MOST_LOOKS = 3
"""At a file of a bucket that is replaced while it is fetched."""


class OutOfReachError(Exception):
    """Where a reference leads can't be reached now; ``why`` is what the user is told if nothing was recorded."""

    def __init__(self, why: Exception) -> None:
        super().__init__(str(why))
        self.why = why


class Arrived(NamedTuple):
    """What of a question set has arrived: where it lies now, its digest, and the files that it is made of."""

    path: Path
    sha256: str
    files: dict[str, str]
    tags: dict[str, str]
    id_column: str
    note: str


def is_arriving(path: str) -> bool:
    """Whether a set's path is a pattern or in a bucket, rather than one file or folder, or a hub id.

    Example:
        >>> is_arriving("incoming/*.jsonl"), is_arriving("s3://bucket/incoming"), is_arriving("org/name")
        (True, True, False)
    """
    return path.startswith(BUCKET_START) or (bool(WILD.search(path)) and not Path(path).exists())


def is_copy_elsewhere(path: str) -> bool:
    """Whether a path is that of a copy that another machine took in, or that is gone from this one."""
    return any(map(DIGEST_PART.fullmatch, Path(path).parts)) and not Path(path).exists()


class Arrivals:
    """Takes question files in.

    Args:
        store: where a run's copies are kept for its children on other hosts.
        storage: how a bucket is reached.
        cache_folder: where copies are kept here, as those of the store's own files are.
    """

    def __init__(self, store: ArtifactStore, storage: StorageConfig, cache_folder: Path) -> None:
        self._store = store
        self._storage = storage
        self._cache = DownloadCache(cache_folder, storage.cache_gib * 2**30)

    def take_in(self, one: QuestionSetConfig, field: str, known: ConfigReference) -> Arrived:
        """What fits the path of a set now.

        Args:
            one: the set.
            field: config field that names it, for messages.
            known: what an earlier run took in, if one did: of a bucket's files, those are not fetched again.

        Raises:
            OutOfReachError: the bucket does not answer.
            DataError: nothing fits, or a row is no question; all bad rows are named at once.
            StorageError: the bucket refuses, or the copies can't be kept.
        """
        tags: dict[str, str] = {}
        if one.path.startswith(BUCKET_START):
            paths, tags = self._of_bucket(one.path, field, known)
        else:
            local = _local_files(one.path, field)
            paths = {name: self._copy(file, PurePosixPath(name).name) for name, file in local.items()}
        return self._read(one, field, paths, tags)

    def recall(self, one: QuestionSetConfig, field: str, known: ConfigReference) -> Arrived | None:
        """What an earlier run took in, from the copies on this machine or in the store; None where there are none."""
        paths = {name: self._at_hand(sha256, name) for name, sha256 in known.files.items()}
        here = {name: path for name, path in paths.items() if path}
        if here and len(here) == len(paths):
            return self._read(one, field, here, known.tags)
        is_known = one.name in KNOWN_SETS
        name = _name_of_copy(known.files) if is_known else f"{_label(one.path)}.jsonl"
        path = self._of_store(known.pinned, name) if known.pinned else None
        if path is None:
            return None
        id_column = "" if is_known else one.id_column or ARRIVAL_ID
        return Arrived(path, known.pinned, known.files, known.tags, id_column, known.note)

    def publish(self, arrived: Arrived, path: str) -> None:
        """Keep what a run took in in the store, unless it is there; ``path`` is where it came from."""
        folder = self._cache.use(arrived.sha256)
        if arrived.path.is_relative_to(folder):  # else it was opened from the store
            key = _key(arrived.sha256, arrived.path.relative_to(folder).as_posix())
            if self._store.find(ARRIVALS, key) is None:
                fingerprint = {"path": path, "files": arrived.files}
                self._store.publish(ARRIVALS, key, folder, parents=[], fingerprint=fingerprint)

    def restored(self, path: str) -> Path:
        """Where a copy of another machine (:func:`is_copy_elsewhere`) is now: opened from the store; else as it was."""
        parts = Path(path).parts
        number = next(number for number, part in enumerate(parts) if DIGEST_PART.fullmatch(part))
        return self._of_store(parts[number], Path(*parts[number + 1 :]).as_posix()) or Path(path)

    def _of_store(self, sha256: str, name: str) -> Path | None:
        """A copy that some run took in, opened from the store; None where it is not there, or leads out of it."""
        if name not in ("", ".") and not _stays_inside(name):
            return None
        ref = self._store.find(ARRIVALS, _key(sha256, name))
        return self._store.open_directory(ref) / name if ref else None

    def _of_bucket(self, path: str, field: str, known: ConfigReference) -> tuple[dict[str, Path], dict[str, str]]:
        """Name → copy of every file that fits, and name → the bucket's mark of it."""
        bucket, folder, fits = _pattern_of_bucket(path, field)
        try:
            files = StoreFiles(self._storage.model_copy(update={"root": f"{BUCKET_START}{bucket}"}))
            tags = {name: tag for name, tag in files.tags(folder).items() if fits(f"{folder}/{name}")}
            _refuse_none(tags, path, field)
            _refuse_odd(tags, files.uri(folder), field)
            return {
                name: (known.tags.get(name) == tag and self._at_hand(known.files.get(name, ""), name))
                or self._fetch(files, f"{folder}/{name}", name, field)
                for name, tag in sorted(tags.items())
            }, tags
        except StorageError as error:
            told = str(error).replace("storage.root", f"{field}.path")
            if isinstance(error, StoreUnavailableError):
                raise OutOfReachError(StoreUnavailableError(told)) from error
            raise StorageError(told) from None

    def _fetch(self, files: StoreFiles, path: str, name: str, field: str) -> Path:
        """A copy of a file of the bucket; it is read twice, and what came must be what is there."""
        for _ in range(MOST_LOOKS):
            data = files.read(path)
            sha256 = hashlib.sha256(data or b"").hexdigest()
            if data is not None and files.holds(path, sha256):
                return self._keep(functools.partial(_write, data), PurePosixPath(name).name).path
        raise DataError(
            f"{field}: {files.uri(path)} is replaced or removed while it is read: run again once it is whole"
        )

    def _copy(self, file: Path, name: str) -> Path:
        return self._keep(lambda copy: shutil.copyfile(file, copy), name).path

    def _at_hand(self, sha256: str, name: str) -> Path | None:
        """The copy of a file, if it is here and whole."""
        path = self._cache.use(sha256) / PurePosixPath(name).name if sha256 else None
        return path if path and path.is_file() and file_sha256(path) == sha256 else None

    def _keep(self, fill: Callable[[Path], object], name: str) -> _Kept:
        """A file of this name and of what ``fill`` writes, in the cache."""
        try:
            with part_file(self._cache.temporary_folder) as temporary:
                fill(temporary)
                sha256 = file_sha256(temporary)
                self._cache.make_room(temporary.stat().st_size)
                target = self._cache.use(sha256) / name
                if not (target.is_file() and file_sha256(target) == sha256):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary, target)
        except OSError as error:
            raise StorageError(
                f"can't keep a copy of {name} ({error}): make {self._cache.folder} a folder that you can write to, "
                "with space for it"
            ) from error
        return _Kept(target, sha256)

    def _read(self, one: QuestionSetConfig, field: str, paths: dict[str, Path], tags: dict[str, str]) -> Arrived:
        digests = {name: path.parent.name for name, path in paths.items()}
        if one.name in KNOWN_SETS:
            return self._as_it_is(paths, digests, tags)
        rows, num_repeats = _rows(one, field, list(paths.values()))
        text = "".join(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows)
        kept = self._keep(lambda file: file.write_text(text, encoding="utf-8"), f"{_label(one.path)}.jsonl")
        note = f"{num_repeats:,} row(s) stand in it more than once, and are taken once" if num_repeats else ""
        if note:
            logger.info("%s: of %s, %s", field, one.path, note)
        return Arrived(kept.path, kept.sha256, digests, tags, one.id_column or ARRIVAL_ID, note)

    def _as_it_is(self, paths: dict[str, Path], digests: dict[str, str], tags: dict[str, str]) -> Arrived:
        """The files of a known set, in a folder with their names."""
        sha256 = key_of(files=digests)
        folder = self._cache.use(sha256)
        for name, path in paths.items():
            if not (target := folder / name).is_file() or file_sha256(target) != digests[name]:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        return Arrived(folder / _name_of_copy(paths), sha256, digests, tags, "", "")


def _key(sha256: str, name: str) -> str:
    """The key of a copy in the store: what it holds, and what of it is read (``""`` or ``.`` for all)."""
    return key_of(contents=sha256, name="" if name == "." else name)


def _write(data: bytes, file: Path) -> None:
    file.write_bytes(data)


def _name_of_copy(files: Mapping[str, object]) -> str:
    """What is read of a known set's copy: its only file, or the folder."""
    return next(iter(files)) if len(files) == 1 else ""


class _Kept(NamedTuple):
    path: Path
    sha256: str


def _rows(one: QuestionSetConfig, field: str, files: list[Path]) -> tuple[list[dict[str, Any]], int]:
    """The rows of a set of the user's own, each once and with an id, and how many were there more often.

    Raises:
        DataError: rows are no questions, or an id stands for several.
    """
    columns = Columns(*(getattr(one, option) for option in COLUMN_OPTIONS))
    problems: list[str] = []
    rows: dict[str, dict[str, Any]] = {}
    lines: list[Line] = []
    own_ids: list[str] = []
    num_texts: dict[str, int] = {}
    num_lines = 0
    for line in stream_files(files, field, problems, columns.names):
        num_lines += 1
        row = {name: line.values.get(name) for name in columns.names}
        contents = json.dumps(row, sort_keys=True, default=str)
        if contents in rows:
            continue
        try:
            read = columns.read(line)
        except BadRowError as error:
            problems.append(f"{line.place}: {error}")
            continue
        num_texts[read.text] = num_texts.get(read.text, 0) + 1
        rows[contents] = row if one.id_column else {**row, ARRIVAL_ID: _id_of(read.text, num_texts[read.text])}
        lines.append(line)
        own_ids.append(read.own_id)
    if one.id_column:
        problems += repeated_ids(lines, own_ids, one.id_column)
    refuse(one.path, field, problems, REMEDY)
    if not rows:
        raise DataError(f"{field}: the files that fit {one.path} hold no question; give at least one")
    return list(rows.values()), num_lines - len(rows)


def _id_of(text: str, nth: int) -> str:
    """The id of a question: a digest of its text; the second of one text, with other answers, is told apart."""
    return f"q{hashlib.sha256(text.encode()).hexdigest()[:ID_CHARS]}" + (f"-{nth}" if nth > 1 else "")


def _local_files(pattern: str, field: str) -> dict[str, Path]:
    """Name below the pattern's fixed folder → file, of all that fit, in order of their names.

    Raises:
        DataError: none fits, or one has the name of a question file and is none.
    """
    fixed = Path(*_fixed(Path(pattern).parts))
    fitting = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    files = {path.relative_to(fixed).as_posix(): path for path in fitting if not path.is_dir()}
    wanted = {name: path for name, path in files.items() if _is_wanted(name, pattern)}
    if passed := files.keys() - wanted.keys():
        logger.info("%s: passed over, as no question files: %s", field, ", ".join(sorted(passed)[:MOST_FILES_NAMED]))
    _refuse_none(wanted, pattern, field)
    _refuse_odd(wanted, str(fixed), field)
    for path in wanted.values():
        if what := why_not_a_file(path):
            raise DataError(f"{field}: {path} is {what}")
    return wanted


def _pattern_of_bucket(path: str, field: str) -> tuple[str, str, Callable[[str], bool]]:
    """The bucket, the folder to list, and what says whether a file's key fits.

    Raises:
        DataError: there is no folder to list.
    """
    from fsspec.utils import glob_translate

    bucket, *parts = [part for part in path.removeprefix(BUCKET_START).split("/") if part]
    fixed = _fixed(parts)
    if len(fixed) == len(parts) and parts and format_of(parts[-1]):
        fixed = fixed[:-1]
    if not fixed:
        raise DataError(f"{field}: {path}: name a folder of the bucket, as in {BUCKET_START}bucket/incoming/*.jsonl")
    is_folder = len(fixed) == len(parts)
    whole = re.compile(glob_translate("/".join([*parts, "**"] if is_folder else parts)))
    return bucket, "/".join(fixed), lambda key: bool(whole.match(key)) and _is_wanted(key, path)


def _fixed(parts: Any) -> list[str]:
    """The parts of a path before the first that is a pattern; of one without pattern, all."""
    number = next((number for number, part in enumerate(parts) if WILD.search(part)), len(parts))
    return list(parts[:number])


def _is_wanted(name: str, pattern: str) -> bool:
    """Whether a file that fits is one of questions; JSON files, often descriptions of the rest, only by their name."""
    file = PurePosixPath(name)
    found = format_of(file.name)
    by_name = without_gz(pattern).lower().endswith(".json")
    return not file.name.startswith(".") and bool(found) and (found != ".json" or by_name)


def _refuse_none(found: Mapping[str, object], path: str, field: str) -> None:
    if not found:
        raise DataError(
            f"{field}: no question file ({', '.join(READERS)}) fits {path}: correct the pattern, or put a file there"
        )


def _refuse_odd(names: Iterable[str], folder: str, field: str) -> None:
    """Refuse names that could lead out of the folder that they are joined to; a bucket's keys may say anything."""
    if odd := sorted(name for name in names if not _stays_inside(name)):
        listed = "".join(f"\n  {folder}/{name}" for name in odd[:MOST_FILES_NAMED])
        raise DataError(
            f"{field}: {len(odd)} file(s) whose names can't be kept here, as below {folder} they have '..', '.', a "
            f"backslash or an empty part; rename them, or name files by a pattern that they don't fit:{listed}"
        )


def _stays_inside(name: str) -> bool:
    try:
        return bool(relative_name(name))
    except ValueError:
        return False


def _label(path: str) -> str:
    """What the set is called where it has no name: the file, or the folder that files arrive in."""
    parts = [part for part in path.removeprefix(BUCKET_START).split("/") if part not in ("", ".", "..")]
    fixed = _fixed(parts)
    last = fixed[-1] if fixed else "arrivals"
    return re.sub(r"[^\w.-]+", "-", stem(Path(last)) if format_of(last) else last)
