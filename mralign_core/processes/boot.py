"""This start of this machine: processes of two containers of one host share it."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path


@functools.cache  # it changes only when this process is gone as well
def boot_id() -> str:
    """What the kernel calls this start of the machine, 32 hex digits with hyphens; empty where it does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""
