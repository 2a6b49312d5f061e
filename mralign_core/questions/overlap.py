"""Questions that stand both in what is aligned on and in what is evaluated on.

A multiple choice is the same question whatever its options are, and whether it shows them.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

import pandas as pd

from mralign_core.errors import DataError
from mralign_core.method.blanks import BLANKS
from mralign_core.method.extraction import with_options

OVERLAPS_SHOWN = 5
OVERLAP_COLUMNS = ["question_id", "source", "question", "eval_question_id", "eval_source", "eval_question"]


class WithoutOverlap(NamedTuple):
    """The training questions that are left, and what was taken out (``OVERLAP_COLUMNS``), a row a pair."""

    train: pd.DataFrame
    overlap: pd.DataFrame


def question_key(question: str) -> str:
    """What questions share that differ only in case, spacing, Unicode form, closing punctuation or what can't be seen.

    Symbols stay: "2+2?" and "2-2?" are not the same question.

    Example:
        >>> question_key("Who  wrote Emma?") == question_key("who wrote emma")
        True
    """
    folded = unicodedata.normalize("NFKC", question).casefold()
    if not folded.isascii():
        folded = "".join(char for char in folded if char not in BLANKS or char.isspace())
    return " ".join(folded.split()).rstrip(" ?!.。")


def question_keys(questions: pd.DataFrame) -> list[list[str]]:
    """The :func:`question_key` of each question, and with options also that of the text before them.

    Args:
        questions: rows of :data:`~mralign_core.schemas.questions.QUESTIONS`.
    """
    asked = zip(questions["question"], questions["options"], strict=True)
    texts = (
        [text, text.removesuffix(with_options("", options))] if len(options) else [text] for text, options in asked
    )
    return [[question_key(text) for text in both] for both in texts]


def find_overlap(train: pd.DataFrame, evaluation: pd.DataFrame) -> pd.DataFrame:
    """The pairs of a training and an evaluation question with the same key, of :func:`question_keys`.

    Args:
        train: rows of :data:`~mralign_core.schemas.questions.QUESTIONS` to align on.
        evaluation: rows to evaluate on.

    Returns:
        ``OVERLAP_COLUMNS``, a row a pair, in the order of ``train``.
    """
    names = ["question_id", "source", "question"]
    ours, theirs = (frame[names].assign(key=question_keys(frame)).explode("key") for frame in (train, evaluation))
    pairs = ours.merge(theirs.rename(columns={name: f"eval_{name}" for name in names}), on="key")
    return pairs[OVERLAP_COLUMNS].drop_duplicates(ignore_index=True)


def drop_overlap(train: pd.DataFrame, evaluation: pd.DataFrame) -> WithoutOverlap:
    """Take the questions that are evaluated on out of those to align on."""
    overlap = find_overlap(train, evaluation)
    is_left = ~train["question_id"].isin(set(overlap["question_id"]))
    return WithoutOverlap(train[is_left].reset_index(drop=True), overlap)


def refuse_overlap(
    train: pd.DataFrame, evaluation: pd.DataFrame, remedy: str = "take them out of one of the two"
) -> None:
    """Refuse to evaluate on questions that are aligned on.

    Raises:
        DataError: a question, compared by :func:`question_keys`, or a question id is in both sets.
    """
    overlap = find_overlap(train, evaluation)
    if len(overlap):
        shown = overlap.head(OVERLAPS_SHOWN).itertuples()
        listed = "\n  ".join(f"{row.eval_question_id!r} is {row.question_id!r}: {row.question!r:.80}" for row in shown)
        raise DataError(
            f"{overlap['eval_question_id'].nunique()} evaluation question(s) are also questions to align on, which "
            f"would flatter the result; {remedy}. The first:\n  {listed}"
        )
    shared_ids = sorted(set(train["question_id"]) & set(evaluation["question_id"]))
    if shared_ids:
        raise DataError(
            f"{len(shared_ids)} question id(s) are both aligned on and evaluated on, such as {shared_ids[0]!r}: make "
            "them distinct"
        )
