"""A device ran out of memory: the same once more, in a smaller way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from mralign_core.errors import OutOfMemory

Size = TypeVar("Size")
Result = TypeVar("Result")


def with_less_memory(
    size: Size, attempt: Callable[[Size], Result], smaller: Callable[[Size, Exception], Size]
) -> Result:
    """What an attempt returns; where a device runs out of memory, what one of a smaller size returns.

    Args:
        size: of the first attempt, such as tokens in a pass or rows in a batch.
        attempt: computes in that size; it may be called again after it failed half-way.
        smaller: the next size, given the one that failed and the error. It raises
            :class:`~mralign_core.errors.OutOfMemory`, which names the field and the remedy, where there is none.

    Example:
        >>> def attempt(rows):
        ...     if rows > 3:
        ...         raise torch.OutOfMemoryError
        ...     return f"{rows} rows"
        >>> with_less_memory(8, attempt, lambda rows, error: rows // 2)
        '2 rows'
    """
    while True:
        try:
            return attempt(size)
        except (torch.OutOfMemoryError, OutOfMemory) as error:
            size = smaller(size, error)
        # Only here are the tensors of the failed attempt gone: the error's traceback held them.
        torch.cuda.empty_cache()
