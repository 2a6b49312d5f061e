"""Memory that this process needs no more, back to the operating system."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def return_freed_memory() -> None:
    """Give back what has been freed and the C library keeps for later, as it does with much of what a model took.

    Without it the process stays as large as its largest stage, and grows from one stage to the next as what it keeps is
    broken into pieces that do not fit. A C library other than glibc is left alone.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
