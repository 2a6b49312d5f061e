"""Deleting what is under a folder of ours and nothing else: no step of the way there follows a symbolic link.

Whoever puts a link in place of a folder means other files than the store does. The way is walked by descriptors, so a
link that is put there in the meantime is not followed either.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


class NotOursError(OSError):
    """A symbolic link, or ``..``, stands where a folder of ours should be."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(errno.ELOOP, f"{path} {why}, so nothing is deleted behind it", str(path))
        self.path = path

    def __str__(self) -> str:
        return str(self.strerror)


@contextlib.contextmanager
def own_folder(root: Path, path: str) -> Iterator[int]:
    """A descriptor of a folder under a root.

    Args:
        root: a folder of ours; it may itself be reached by a link.
        path: relative to the root; empty for the root.

    Raises:
        NotOursError: the way from the root to it is not made of folders only.
        FileNotFoundError: or another ``OSError``, when there is no such folder.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for depth, part in enumerate(parts := PurePosixPath(path).parts, start=1):
            inner = _enter(descriptor, part, Path(root, *parts[:depth]))
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def remove_file(root: Path, path: str) -> None:
    """Remove one file under a root; of a link, the link.

    Raises:
        NotOursError: see :func:`own_folder`.
        FileNotFoundError: or another ``OSError``, when there is no such file, or it can't be removed.
    """
    folder, _, name = path.rpartition("/")
    with own_folder(root, folder) as descriptor:
        os.unlink(name, dir_fd=descriptor)


def remove_empty_folders(root: Path, path: str) -> None:
    """Remove a folder under a root and those in it, as far as no file is left.

    Raises:
        NotOursError: see :func:`own_folder`.
    """
    with own_folder(root, path) as descriptor:
        for _, folders, _, inner in os.fwalk(".", topdown=False, dir_fd=descriptor):
            for name in folders:
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=inner)
    folder, _, name = path.rpartition("/")
    with own_folder(root, folder) as descriptor, contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=descriptor)


def remove_tree(root: Path, name: str) -> None:
    """Remove a folder directly under a root with all that is in it; links in it are removed and not followed.

    Raises:
        OSError: it is no folder, or can't be removed.
    """
    with own_folder(root, "") as descriptor:
        shutil.rmtree(name, dir_fd=descriptor)


def _enter(folder: int, name: str, path: Path) -> int:
    if name in ("/", ".."):
        raise NotOursError(path, f"leaves the store by {name!r}")
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    except OSError:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise NotOursError(path, f"is a symbolic link to {os.readlink(name, dir_fd=folder)}") from None
        raise
