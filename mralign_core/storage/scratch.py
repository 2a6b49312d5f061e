"""Scratch folders and half-written files that outlive no process: who was killed leaves them, the next start removes.

Each is locked (``flock``) by the process that uses it for as long as it does. The system takes the lock away when the
process dies, however it dies; so what can be locked is nobody's. Where locks don't work, nothing is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import re
import secrets
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from mralign_core.processes.boot import boot_id
from mralign_core.storage.deleting import own_folder, remove_tree

logger = logging.getLogger("mralign_core.storage")

FOLDER = re.compile(r"mralign-[0-9a-f]{20}")
"""Names of scratch folders, such as nobody gives a folder of his own."""
PART = re.compile(r"(?:([0-9a-f]{8})\.)?[0-9a-f]{32}")
"""Names of half-written files; the group says under which kernel, whose locks alone can be trusted."""
STALE_S = 86_400.0
"""Age of a half-written file of another host after which its writer counts as dead."""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder in the system's folder for temporary files; it is gone afterwards."""
    _sweep_once()

    def make() -> Path:
        path = Path(tempfile.gettempdir(), f"mralign-{secrets.token_hex(10)}")
        path.mkdir(mode=0o700)
        return path

    path, lock = _locked(make)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # the next start tries again
            remove_tree(path.parent, path.name)
        os.close(lock)


@contextlib.contextmanager
def part_file(folder: Path) -> Iterator[Path]:
    """A new file, to be filled and renamed; it is gone afterwards if it was not."""
    folder.mkdir(parents=True, exist_ok=True)

    def make() -> Path:
        path = folder / part_name()
        path.touch(exist_ok=False)
        return path

    path, lock = _locked(make)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def part_name() -> str:
    """A new name for a file that is locked while its process lives."""
    return f"{_kernel()}.{uuid.uuid4().hex}"


def sweep_scratch() -> None:
    """Remove this user's scratch folders whose processes are dead."""
    root = Path(tempfile.gettempdir())
    for name in filter(FOLDER.fullmatch, _names(root)):
        with contextlib.suppress(OSError), own_folder(root, name) as folder:
            if os.fstat(folder).st_uid == os.geteuid() and try_lock(folder):
                remove_tree(root, name)
                logger.info("removed %s, which a killed process had left", root / name)


def sweep_parts(root: Path, path: str) -> None:
    """Remove half-written files in a folder under a root whose writers are dead.

    Raises:
        NotOursError: the folder is a link; nothing behind it is touched.
    """
    with contextlib.suppress(FileNotFoundError), own_folder(root, path) as folder:
        for name in os.listdir(folder):
            if match := PART.fullmatch(name):
                with contextlib.suppress(OSError), _locked_if_dead(folder, name, match[1] == _kernel()) as is_dead:
                    if is_dead:
                        os.unlink(name, dir_fd=folder)


def stale_parts(root: Path, path: str) -> list[str]:
    """Names of the half-written files in a folder under a root that :func:`sweep_parts` would remove.

    Raises:
        NotOursError: the folder is a link.
    """
    stale: list[str] = []
    with contextlib.suppress(FileNotFoundError), own_folder(root, path) as folder:
        for name in os.listdir(folder):
            if match := PART.fullmatch(name):
                with contextlib.suppress(OSError), _locked_if_dead(folder, name, match[1] == _kernel()) as is_dead:
                    stale += [name] if is_dead else []
    return stale


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder, if no process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _locked_if_dead(folder: int, name: str, is_of_this_kernel: bool) -> Iterator[bool]:
    """Whether a half-written file's writer is dead; while this is held, no other takes it for one to remove."""
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode):
        yield False
        return
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        yield try_lock(descriptor) and (is_of_this_kernel or time.time() - found.st_mtime > STALE_S)
    finally:
        os.close(descriptor)


def _locked(make: Callable[[], Path]) -> tuple[Path, int]:
    """What was made, and the descriptor that locks it; made again when a sweep came between the two."""
    while True:
        path = make()
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        is_held = try_lock(descriptor) or not _is_locked_by_another(descriptor)
        with contextlib.suppress(FileNotFoundError):
            if is_held and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return path, descriptor
        os.close(descriptor)


def _is_locked_by_another(descriptor: int) -> bool:
    """Whether a lock failed because somebody has it; else this file system has no locks, and no sweep either."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


@functools.cache
def _kernel() -> str:
    """Names the running kernel: containers of one host share it, and its locks."""
    return hashlib.sha256((boot_id() or socket.gethostname()).encode()).hexdigest()[:8]


@functools.cache
def _sweep_once() -> None:
    sweep_scratch()
