"""Files of a remote store kept on this machine: bounded, the longest unused go first, and never what is in use.

Layout::

    <content digest>/…   files of an artifact, verified each time they are opened
    users/<process>      digests that a process has opened; locked for as long as the process lives
    tmp/                 files not yet renamed into place
    lock                 held while the list of users and the folders must fit together
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mralign_core.storage.deleting import remove_file, remove_tree
from mralign_core.storage.scratch import part_name, sweep_parts, try_lock

logger = logging.getLogger("mralign_core.storage")

ENTRY = re.compile(r"[0-9a-f]{64}")


class _Entry(NamedTuple):
    used_at: float
    sha256: str
    size: int


class DownloadCache:
    """The folder that keeps them.

    Args:
        folder: where; other things in it are left alone.
        most_bytes: how much to keep. What is in use may be more.
    """

    def __init__(self, folder: Path, most_bytes: float) -> None:
        self.folder = folder
        self._most_bytes = most_bytes

    @property
    def temporary_folder(self) -> Path:
        """Where files are put until they are whole."""
        return self.folder / "tmp"

    def use(self, sha256: str) -> Path:
        """The folder of an artifact's files, kept from now on until this process ends."""
        path = self.folder / sha256
        with contextlib.suppress(OSError), self._locked():
            _note_use(self.folder, sha256)
            if path.exists():
                os.utime(path)
        return path

    def make_room(self, num_bytes: int) -> None:
        """Remove what was used longest ago, and by no process that lives, until so many bytes more may be kept."""
        if self.folder not in _swept:
            _swept.add(self.folder)
            self.sweep()
        with contextlib.suppress(OSError), self._locked():
            entries = sorted(self._entries())
            in_use = self._in_use()
            left = sum(entry.size for entry in entries) + num_bytes
            for entry in entries:
                if left <= self._most_bytes:
                    return
                if entry.sha256 not in in_use and self._remove(entry.sha256):
                    left -= entry.size
            if left > self._most_bytes:
                logger.info("%s holds more than storage.cache_gib: all of it is in use", self.folder)

    def forget(self, digest: str) -> None:
        """Remove the files of an artifact that is gone, unless another process uses them.

        Args:
            digest: the beginning of its content digest, as it names the artifact's folder.
        """
        with contextlib.suppress(OSError), self._locked():
            in_use = self._in_use(but_here=True)
            for entry in self._entries():
                if entry.sha256.startswith(digest) and entry.sha256 not in in_use:
                    self._remove(entry.sha256)

    def sweep(self) -> None:
        """Remove what killed processes left half-written."""
        try:
            sweep_parts(self.folder, "tmp")
        except OSError as error:
            logger.warning("%s is not swept: %s", self.temporary_folder, error)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _entries(self) -> Iterator[_Entry]:
        for entry in os.scandir(self.folder):
            if ENTRY.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield _Entry(entry.stat().st_mtime, entry.name, _size(entry.path))

    def _in_use(self, *, but_here: bool = False) -> set[str]:
        """Digests that living processes have opened; the notes of dead ones are removed."""
        digests: set[str] = set()
        (self.folder / "users").mkdir(exist_ok=True)
        for name in os.listdir(self.folder / "users"):
            try:
                digests.update(self._used_by(name, but_here=but_here))
            except OSError as error:  # what can't be read keeps nothing: the cache must stay bounded
                logger.warning("%s is not the note of a process: remove it (%s)", self.folder / "users" / name, error)
        return digests

    def _used_by(self, name: str, *, but_here: bool) -> list[str]:
        """What a note says that its process uses; a dead one's is removed."""
        path = self.folder / "users" / name
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if try_lock(descriptor):
                remove_file(self.folder, f"users/{name}")
                return []
            is_own = name == _notes.get(self.folder, _Notes("", 0)).name
            return [] if but_here and is_own else path.read_text().split()
        finally:
            os.close(descriptor)

    def _remove(self, sha256: str) -> bool:
        """Remove the files of an artifact; whether that was possible."""
        try:
            remove_tree(self.folder, sha256)
        except OSError as error:
            logger.warning("%s stays: %s", self.folder / sha256, error)
            return False
        return True


class _Notes(NamedTuple):
    """Where this process notes what it uses: the file's name, and the descriptor that locks it."""

    name: str
    descriptor: int


_notes: dict[Path, _Notes] = {}
_noted: set[tuple[Path, str]] = set()
_noting = threading.Lock()
_swept: set[Path] = set()
"""Caches that this process has swept; a worker of a pool begins without the command line's start probe."""


def _note_use(folder: Path, sha256: str) -> None:
    with _noting:
        if (folder, sha256) in _noted:
            return
        if folder not in _notes:
            (folder / "users").mkdir(exist_ok=True)
            name = part_name()
            descriptor = os.open(folder / "users" / name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _notes[folder] = _Notes(name, descriptor)
        os.write(_notes[folder].descriptor, f"{sha256}\n".encode())
        _noted.add((folder, sha256))


def _size(folder: str) -> int:
    return sum(
        os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_size
        for _, _, names, descriptor in os.fwalk(folder)
        for name in names
    )
