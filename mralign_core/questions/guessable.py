"""Questions whose answer tells little: yes/no questions, and those that have their gold answer in them.

A yes/no question is right by chance half the time, and a gold answer that stands in the question is named by any reply
that repeats it, in thinking above all. The paper doesn't speak of them. Decisions: a question counts where every gold
answer is such a one, word by word after SQuAD's normalisation; only sets scored by exact match have them, since options
always stand in the question, and a number that does is rarely the result by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.errors import DataError
from mralign_core.method.matching import normalise

YES_NO = frozenset({"yes", "no", "true", "false"})
GUESSABLE_KINDS = {"yes_no": "yes/no gold answer", "in_question": "gold answer in the question"}
"""Kind of a question that can be guessed → what it has."""
GUESSABLE_COLUMNS = ["question_id", "source", "split", "kind", "question", "answers"]


class WithoutGuessable(NamedTuple):
    """The questions that are asked, and those that can be guessed (``GUESSABLE_COLUMNS``), asked or not."""

    questions: pd.DataFrame
    guessable: pd.DataFrame


def guessable_kind(question: str, answers: Sequence[str]) -> str:
    """Which of :data:`GUESSABLE_KINDS` a question is; empty where it is none.

    >>> guessable_kind("Is Rome older than Paris?", ["Yes"]), guessable_kind("Who wrote Emma?", ["Jane Austen"])
    ('yes_no', '')
    >>> guessable_kind("Is the sun or the moon larger?", ["the sun"])
    'in_question'
    """
    if not answers:
        return ""
    golds = [normalise(answer) for answer in answers]
    if all(gold in YES_NO for gold in golds):
        return "yes_no"
    asked = f" {normalise(question)} "
    return "in_question" if all(gold and f" {gold} " in asked for gold in golds) else ""


def without_guessable(questions: pd.DataFrame, *, drop: bool) -> WithoutGuessable:
    """Find the questions that can be guessed, and leave them out if they are to be.

    Args:
        questions: rows of :data:`~mralign_core.schemas.questions.QUESTIONS`.
        drop: whether they are left out.

    Raises:
        DataError: none would be left of a set, to align on or to evaluate on.
    """
    kinds = [
        guessable_kind(row["question"], row["answers"]) if row["scoring"] == "exact_match" else ""
        for row in questions.to_dict("records")
    ]
    found = questions.assign(kind=kinds)
    guessable = found.loc[found["kind"] != "", GUESSABLE_COLUMNS].reset_index(drop=True)
    if not drop or guessable.empty:
        return WithoutGuessable(questions, guessable)
    kept = questions[found["kind"] == ""].reset_index(drop=True)
    before, after = (set(zip(frame["source"], frame["split"], strict=True)) for frame in (questions, kept))
    if emptied := [f"{source} ({split})" for source, split in sorted(before - after)]:
        raise DataError(
            f"questions: every question of {', '.join(emptied)} has a yes/no gold answer or one that stands in the "
            "question, so none is left: set questions.on_guessable to keep, or take the set out"
        )
    return WithoutGuessable(kept, guessable)


def notes_on_guessable(asked: Mapping[str, Any], on_guessable: str) -> list[str]:
    """What a reader of the results must know of held-out questions that can be guessed: sentences.

    Args:
        asked: the counts of the held-out questions' manifest.
        on_guessable: ``keep`` or ``drop``.

    >>> notes_on_guessable({"eval": 9, "eval with yes/no gold answer": 2}, "drop")
    ['2 held-out question(s) with a yes/no gold answer were left out (guessable.json names them).']
    """
    done = "were left out" if on_guessable == "drop" else "are in the figures below"
    return [
        f"{number} held-out question(s) with a {kind} {done} (guessable.json names them)."
        for kind in GUESSABLE_KINDS.values()
        if (number := asked.get(f"eval with {kind}"))
    ]
