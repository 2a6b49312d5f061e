"""From a record to a question: which columns hold what, and what must be so."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from mralign_core.questions.jsonl import Line


class BadRowError(ValueError):
    """A record that is no question; the message says why, without its place."""


class Question(NamedTuple):
    """A question as its set gives it; ``own_id`` is empty where the set has no id column."""

    text: str
    answers: list[str]
    stratum: str
    own_id: str


@dataclass(frozen=True)
class Columns:
    """The columns of one format of a question set.

    ``also`` are further columns that must be there. Where a cell is not the value itself, a function finds the value in
    the record; it raises :class:`BadRowError` or what its parser raises.
    """

    question: str
    answer: str = ""
    stratum: str = ""
    own_id: str = ""
    also: tuple[str, ...] = ()
    find_question: Callable[[Line], Any] | None = None
    find_answers: Callable[[Line], Any] | None = None
    find_stratum: Callable[[Line], Any] | None = None

    @property
    def names(self) -> list[str]:
        """The columns that must be there."""
        return [name for name in (self.question, self.answer, self.stratum, self.own_id, *self.also) if name]

    def fit(self, columns: Collection[str]) -> bool:
        """Whether a record with these columns is of this format."""
        return set(self.names) <= set(columns)

    def read(self, line: Line) -> Question:
        """The question of a record.

        Raises:
            BadRowError: a cell is empty, or not what it must be.
        """
        return Question(
            text=text_in(_found(self.find_question, self.question, line), self.question),
            answers=answers_in(_found(self.find_answers, self.answer, line), self.answer) if self.answer else [],
            stratum=_stratum(_found(self.find_stratum, self.stratum, line)),
            own_id=_own_id(line.values.get(self.own_id), self.own_id) if self.own_id else "",
        )


def _found(find: Callable[[Line], Any] | None, column: str, line: Line) -> Any:
    if find is None:
        return line.values.get(column)
    try:
        return find(line)
    except BadRowError:
        raise
    except (KeyError, TypeError, ValueError, SyntaxError, AttributeError) as error:
        cell = line.values.get(column)
        raise BadRowError(f"field {column!r} is not as in this set ({error!r}), got {cell!r:.60}") from None


def text_in(value: Any, column: str) -> str:
    """A question's text.

    Raises:
        BadRowError: there is none.
    """
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise BadRowError(f"field {column!r} must be a non-empty question, got {value!r:.60}")


def answers_in(value: Any, column: str) -> list[str]:
    """The accepted answers in a cell, text, number, or a list of them, each once.

    Raises:
        BadRowError: there is none, or one of a list is empty.
    """
    entries = value if isinstance(value, list) else [value]
    if not entries or not all(map(_is_answer, entries)):
        raise BadRowError(f"field {column!r} must be an answer or a list of answers, got {value!r:.60}")
    return list(dict.fromkeys(str(entry).strip() for entry in entries))


def _is_answer(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return is_number or (isinstance(value, str) and bool(value.strip()))


def _own_id(value: Any, column: str) -> str:
    if isinstance(value, str | int) and str(value).strip():
        return str(value).strip()
    raise BadRowError(f"field {column!r} must be a non-empty id, got {value!r:.60}")


def _stratum(value: Any) -> str:
    return "" if value is None else str(value).strip()
