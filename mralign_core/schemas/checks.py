"""Checks of single values, as (reason, predicate), for the columns of every table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def is_null(value: Any) -> bool:
    """Whether a cell is empty: None, or NaN."""
    return value is None or (isinstance(value, float) and np.isnan(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and all(_is_text(item) for item in value)


def is_texts(value: Any) -> bool:
    """Whether a cell holds at least one text, each with something to read."""
    return _are_texts(value) and len(value) > 0


def _is_ids(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and all(int(item) >= 0 for item in value)


def _is_natural(value: Any) -> bool:
    return float(value) == int(value) and int(value) >= 0


def one_of(choices: Sequence[str]) -> tuple[str, Callable[[Any], bool]]:
    """The check that a value is among the choices."""
    return f"must be one of {', '.join(choices)}", lambda value: value in choices


TEXT = ("must be non-empty text", _is_text)
STRING = ("must be text", lambda value: isinstance(value, str))
NATURAL = ("must be a whole number of at least 0", _is_natural)
NOT_NEGATIVE = ("must be at least 0", lambda value: value >= 0)
SHARE = ("must be a share from 0 to 1", lambda value: 0 <= value <= 1)
IDS = ("must be a list of token ids", _is_ids)
TEXTS = ("must be a non-empty list of non-empty texts", is_texts)
TEXTS_OR_NONE = ("must be a list of non-empty texts", _are_texts)
