"""A folder that is there whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mralign_core.errors import ConfigError

BEING_WRITTEN = ".unfinished"
"""What the name of a folder ends with that is still being written, or whose writer was killed."""


@contextlib.contextmanager
def folder_at_once(target: Path) -> Iterator[Path]:
    """A folder to write to, which takes the target's name when all is written; of an error nothing is left.

    It lies beside the target, hidden. Who is killed leaves it there, under a name that nobody takes for the target.

    Args:
        target: a folder that is not there, or empty.

    Raises:
        ConfigError: it holds files, or can't be written.
    """
    require_new_or_empty(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=BEING_WRITTEN, dir=target.parent))
    except OSError as error:
        raise ConfigError(f"{target} can't be written ({error.strerror}): name another folder") from None
    try:
        yield made
        require_new_or_empty(target)
        _take_permissions(made, target)
        os.replace(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def require_new_or_empty(target: Path) -> None:
    """Refuse a target that holds anything.

    Raises:
        ConfigError: it is a file, a folder with files, or a mount point.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConfigError(f"{target} is not a folder: name a new or empty one")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"{target} has files already, which are not overwritten: name a new or empty folder")
    if os.path.ismount(target):
        raise ConfigError(f"{target} is a mount point, which no folder can replace: name a folder in it")


def _take_permissions(made: Path, target: Path) -> None:
    """Give a folder the group and mode of the one that it replaces, or else those of any new folder."""
    if not target.exists():
        made.chmod(0o777 & ~_umask())
        return
    had = target.stat()
    with contextlib.suppress(PermissionError):  # who is not in the group can't give it away
        os.chown(made, -1, had.st_gid)
    made.chmod(stat.S_IMODE(had.st_mode))


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current
