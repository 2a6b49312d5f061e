"""Questions from a user's JSONL files (App. A.2: any question → short-answer set).

A bad row is an error, never dropped: the file is the user's to mend, and silently asking fewer questions
would move every number of the run.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mralign_core.config import QuestionsConfig
from mralign_core.errors import DataError
from mralign_core.questions.jsonl import Line, read_jsonl, refuse
from mralign_core.schemas import QUESTIONS

OVERLAPS_SHOWN = 5


def question_key(question: str) -> str:
    """What questions share that differ only in case, spacing, Unicode form or closing punctuation.

    Symbols stay: "2+2?" and "2-2?" are not the same question.

    Example:
        >>> question_key("Who  wrote Emma?") == question_key("who wrote emma")
        True
    """
    folded = unicodedata.normalize("NFKC", question).casefold()
    return " ".join(folded.split()).rstrip(" ?!.。")


def read_question_sets(section: QuestionsConfig, *, needs_train: bool = True) -> pd.DataFrame:
    """The questions to align on and those to evaluate on, as rows of :data:`~mralign_core.schemas.QUESTIONS`.

    Args:
        section: paths, columns and limits; an empty path gives no question.
        needs_train: whether the run must have questions to align on.

    Raises:
        DataError: a file or row is wrong, both sets share a question or an id, or there is nothing to align
            on.
    """
    if needs_train and not section.train_path:
        raise DataError("questions.train_path is empty: name a JSONL file of questions to align on")
    paths = {"train": section.train_path, "eval": section.eval_path}
    frames = {split: load_questions(path, section, split) if path else _frame([]) for split, path in paths.items()}
    refuse_overlap(frames["train"], frames["eval"])
    return pd.concat(list(frames.values()), ignore_index=True)


def load_questions(path: str | Path, section: QuestionsConfig, split: str) -> pd.DataFrame:
    """Read one file of questions.

    Args:
        path: JSONL file, one question a line.
        section: names of the columns, and how many questions to take.
        split: ``"train"`` or ``"eval"``.

    Returns:
        Rows of :data:`~mralign_core.schemas.QUESTIONS`, in the order of the file.

    Raises:
        DataError: the file can't be read, a column is not there, or rows have an empty question, no answer or
            a
            repeated id; names file, line, field and remedy, for all bad rows at once.
    """
    field = f"questions.{split}_path"
    lines = read_jsonl(path, field)
    for name in ("question_column", "answer_column", "id_column"):
        _require_column(path, lines, name, getattr(section, name))
    problems: list[str] = []
    rows = [
        {
            "question_id": _question_id(line, number, section.id_column, split, problems),
            "question": _question(line, section.question_column, problems),
            "answers": answers_of(line, section.answer_column, problems),
            "source": Path(path).stem,
            "split": split,
            "stratum": "",
        }
        for number, line in enumerate(lines, start=1)
    ]
    if section.id_column:
        problems += repeated_ids(lines, [str(row["question_id"]) for row in rows], section.id_column)
    refuse(path, field, problems, "correct these lines or take them out")
    limit = section.train_limit if split == "train" else section.eval_limit
    return _frame(rows[: limit or None])


def refuse_overlap(train: pd.DataFrame, evaluation: pd.DataFrame) -> None:
    """Refuse to evaluate on questions that are aligned on.

    Raises:
        DataError: a question, compared by :func:`question_key`, or a question id is in both sets.
    """
    by_key = {question_key(text): own for text, own in zip(train["question"], train["question_id"], strict=True)}
    shared = [
        f"{own!r} is {by_key[question_key(text)]!r}: {text!r:.80}"
        for text, own in zip(evaluation["question"], evaluation["question_id"], strict=True)
        if question_key(text) in by_key
    ]
    if shared:
        listed = "\n  ".join(shared[:OVERLAPS_SHOWN])
        raise DataError(
            f"{len(shared)} evaluation question(s) are also questions to align on, which would flatter the "
            f"result; take them out of one file. The first:\n  {listed}"
        )
    shared_ids = sorted(set(train["question_id"]) & set(evaluation["question_id"]))
    if shared_ids:
        raise DataError(
            f"{len(shared_ids)} question id(s) are in both files, such as {shared_ids[0]!r}: make them "
            "distinct, or leave questions.id_column empty to number the rows"
        )


def answers_of(line: Line, column: str, problems: list[str]) -> list[str]:
    """The accepted answers in a column: text, number, or a list; adds what is wrong to ``problems``."""
    value = line.values.get(column)
    entries = value if isinstance(value, list) else [value]
    answers = [str(entry).strip() for entry in entries if _is_answer(entry)]
    if not entries or len(answers) < len(entries):
        problems.append(
            f"line {line.number}: field {column!r} must be an answer or a list of answers, got {value!r:.60}"
        )
    return answers


def repeated_ids(lines: Sequence[Line], ids: Sequence[str], column: str) -> list[str]:
    """A problem for each line whose id an earlier line has."""
    first: dict[str, int] = {}
    problems = []
    for line, own in zip(lines, ids, strict=True):
        if own and first.setdefault(own, line.number) != line.number:
            problems.append(f"line {line.number}: field {column!r} repeats id {own!r} of line {first[own]}")
    return problems


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(QUESTIONS.columns)).astype(object)


def _require_column(path: str | Path, lines: Sequence[Line], name: str, column: str) -> None:
    if column and not any(column in line.values for line in lines):
        raise DataError(
            f"{path} has no field {column!r}; line {lines[0].number} has "
            f"{', '.join(map(repr, lines[0].values))}. Set questions.{name} to the field that holds it"
        )


def _question_id(line: Line, number: int, column: str, split: str, problems: list[str]) -> str:
    if not column:
        return f"{split}-{number}"
    value = line.values.get(column)
    if isinstance(value, (str, int)) and str(value).strip():
        return str(value).strip()
    problems.append(f"line {line.number}: field {column!r} must be a non-empty id, got {value!r:.60}")
    return ""


def _question(line: Line, column: str, problems: list[str]) -> str:
    value = line.values.get(column)
    if isinstance(value, str) and value.strip():
        return value.strip()
    problems.append(f"line {line.number}: field {column!r} must be a non-empty question, got {value!r:.60}")
    return ""


def _is_answer(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number or (isinstance(value, str) and bool(value.strip()))
