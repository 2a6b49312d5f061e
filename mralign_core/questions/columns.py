"""From a record to a question: which columns hold what, and what must be so."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, NamedTuple, TypeVar

from mralign_core.method.blanks import is_blank, strip_blanks
from mralign_core.method.extraction import MOST_OPTIONS, with_options
from mralign_core.questions.jsonl import Line, shown
from mralign_core.questions.written_lists import UnclearListError, written_list

LARGEST_WHOLE_FLOAT = 2**53
NULL_WORDS = frozenset({"nan", "none", "null", "<na>", "n/a", "na", "nat", "#n/a", "undefined"})
"""Texts that programs write for a missing value, and that a few questions have for an answer."""


Cell = TypeVar("Cell")


class BadRowError(ValueError):
    """A record that is no question; the message says why, without its place."""


class Question(NamedTuple):
    """A question as its set gives it, its options shown; ``own_id`` is empty where the set has no id column."""

    text: str
    answers: list[str]
    stratum: str
    own_id: str
    options: list[str]
    incorrect_answers: list[str]


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
    options: str = ""
    incorrect: str = ""
    also: tuple[str, ...] = ()
    find_question: Callable[[Line], Any] | None = None
    find_answers: Callable[[Line], Any] | None = None
    find_stratum: Callable[[Line], Any] | None = None
    find_options: Callable[[Line], Any] | None = None
    find_incorrect: Callable[[Line], Any] | None = None

    @property
    def names(self) -> list[str]:
        """The columns that must be there."""
        names = (self.question, self.answer, self.stratum, self.own_id, self.options, self.incorrect, *self.also)
        return list(dict.fromkeys(filter(None, names)))

    def fit(self, columns: Collection[str]) -> bool:
        """Whether a record with these columns is of this format."""
        return set(self.names) <= set(columns)

    def read(self, line: Line) -> Question:
        """The question of a record.

        Raises:
            BadRowError: a cell is empty, or not what it must be.
        """
        options = options_in(_found(self.find_options, self.options, line), self.options) if self.options else []
        answers = answers_in(_found(self.find_answers, self.answer, line), self.answer) if self.answer else []
        wrong = answers_in(_found(self.find_incorrect, self.incorrect, line), self.incorrect) if self.incorrect else []
        return Question(
            text=with_options(text_in(_found(self.find_question, self.question, line), self.question), options),
            answers=[_as_option(answer, options, self.answer) for answer in answers] if options else answers,
            stratum=_stratum(_found(self.find_stratum, self.stratum, line)),
            own_id=id_in(line.values.get(self.own_id), self.own_id) if self.own_id else "",
            options=options,
            incorrect_answers=wrong,
        )


def _found(find: Callable[[Line], Any] | None, column: str, line: Line) -> Any:
    if find is None:
        return line.values.get(column)
    try:
        return find(line)
    except BadRowError:
        raise
    except (KeyError, TypeError, ValueError, SyntaxError, AttributeError) as error:
        got = shown(line.values.get(column))
        raise BadRowError(f"field {column!r} is not as in this set ({error!r:.200}), got {got}") from None


def text_in(value: Any, column: str) -> str:
    """A question's text.

    Raises:
        BadRowError: there is none, or none that can be seen.
    """
    if isinstance(value, str) and not is_blank(value):
        return strip_blanks(value)
    raise BadRowError(f"field {column!r} must be a non-empty question, got {shown(value)}{_why_empty(value)}")


def answers_in(value: Any, column: str) -> list[str]:
    """The accepted answers in a cell, text, number, or a list of them, each once.

    A list that a table holds as text is read as the list that it is (:mod:`mralign_core.questions.written_lists`).

    Raises:
        BadRowError: there is none, one of a list is empty, or a text may be a list or an answer.
    """
    entries = value if isinstance(value, list) else [value]
    try:
        lists = [_written(entry, is_own=not isinstance(value, list)) for entry in entries]
    except UnclearListError as error:
        raise BadRowError(
            f"field {column!r} {error}, got {shown(value)}: write several answers as a list of texts in quotes, "
            '["a", "b"], and one answer that has brackets as a list of it, ["[a, b]"]'
        ) from None
    answers = [answer for entry, items in zip(entries, lists, strict=True) for answer in (items or [entry])]
    if not answers or [] in lists or not all(map(_is_answer, answers)):
        blank = next((answer for answer in answers if not _is_answer(answer)), value)
        raise BadRowError(
            f"field {column!r} must be an answer or a list of answers, got {shown(value)}{_why_empty(blank)}"
        )
    return list(dict.fromkeys(strip_blanks(str(answer)) for answer in answers))


def _written(entry: Any, *, is_own: bool) -> list[str] | None:
    return written_list(strip_blanks(entry), is_own=is_own) if isinstance(entry, str) else None


def options_in(value: Any, column: str) -> list[str]:
    """The options of a multiple choice: a list of texts, of which at least two differ; two alike are the same choice.

    Raises:
        BadRowError: they are no list of texts, all alike, or more than there are letters.
    """
    entries = value if isinstance(value, list) else answers_in(value, column)
    options = [strip_blanks(str(entry)) for entry in entries if _is_answer(entry)]
    if len(options) < len(entries) or len(set(options)) < 2 or len(options) > MOST_OPTIONS:
        raise BadRowError(f"field {column!r} must be a list of 2 to {MOST_OPTIONS} options, got {shown(value)}")
    return options


def _as_option(answer: str, options: list[str], column: str) -> str:
    """The option that a gold answer means, by its text or its letter."""
    letters = dict(zip(ascii_uppercase, options, strict=False))
    if answer in options:
        return answer
    if answer not in letters:
        raise BadRowError(f"field {column!r} must be one of the options, or its letter, got {shown(answer)}")
    return letters[answer]


def id_in(value: Any, column: str) -> str:
    """An id: text, or a whole number, also as tables with gaps write it (``7.0``).

    Raises:
        BadRowError: it is neither, such as null, or is empty.
    """
    if isinstance(value, str) and not is_blank(value):
        return strip_blanks(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST_WHOLE_FLOAT:
        return str(int(value))
    raise BadRowError(f"field {column!r} must be a non-empty id, got {shown(value)}{_why_empty(value)}")


def read_cell(read: Callable[[Any, str], Cell], line: Line, column: str, problems: list[str]) -> Cell | None:
    """What ``read`` makes of a cell, such as :func:`id_in`; None where it can't, which is added to ``problems``."""
    try:
        return read(line.values.get(column), column)
    except BadRowError as error:
        problems.append(f"{line.place}: {error}")
        return None


def mean_missing(answers: Collection[str]) -> bool:
    """Whether all of these answers are words that programs write for a missing value."""
    return bool(answers) and all(answer.casefold() in NULL_WORDS for answer in answers)


def _is_answer(value: Any) -> bool:
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return (is_number and not isinstance(value, bool)) or (isinstance(value, str) and not is_blank(value))


def _why_empty(value: Any) -> str:
    is_invisible = isinstance(value, str) and bool(value.strip()) and is_blank(value)
    return ", which holds only characters that can't be seen" if is_invisible else ""


def _stratum(value: Any) -> str:
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if is_missing else strip_blanks(str(value))
