"""Blinded sheets on which people judge answers: a CSV out, a filled CSV in.

A person sees a question, its reference answers and one answer, and nothing that could sway the judgement: no variant,
no verdict of a judge, rows in shuffled order. Of each chosen question one draw is shown, the answers of all variants to
it, each text once: equal answers are judged once and count for every variant that gave them. So people's sample is a
random one, and variants are compared on the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mralign_core.errors import DataError
from mralign_core.evaluation.people import ANSWER_KEY
from mralign_core.questions.jsonl import refuse
from mralign_core.schemas.checks import is_null
from mralign_core.spreadsheets import neutralised, opaque_id, read_csv, refuse_to_overwrite, write_csv

JUDGE_SHEET_COLUMNS = ["item", "question", "reference_answers", "answer", "verdict", "comment"]
FILLED_COLUMNS = ("item", "verdict")
NO_ANSWER_SHOWN = "(no answer)"
WRITTEN_VERDICTS = {
    **dict.fromkeys(("right", "yes", "y", "true", "1", "correct"), True),
    **dict.fromkeys(("wrong", "no", "n", "false", "0", "incorrect"), False),
}
"""What people may write, in any case → whether the answer is right."""
INSTRUCTIONS = """# Judging answers

`{name}` has one row an answer to a question. Say of each in `verdict` whether the answer is right.

- Write `right` or `wrong` (yes, no, true, false, 1 and 0 are read too). An empty verdict counts as not judged.
- Right is an answer that says the same as a reference answer, in whatever words. Where there is no reference answer,
  or you know it to be incomplete, judge by what is true.
- An answer that names several candidates, or takes back what it said, is wrong. So is `(no answer)`.
- `comment` is yours. Leave the other columns as they are; rows may be sorted, and saved as CSV in any way.
- Don't talk about the rows with other people who judge before all are done.
"""


class WrittenJudgeSheet(NamedTuple):
    """A sheet on disk, the instructions beside it, and what is in it."""

    sheet: Path
    instructions: Path
    num_questions: int
    num_items: int


class JudgedSheet(NamedTuple):
    """What a person said: ``verdicts`` has ``variant, question_id, draw, verdict``, a row an answer."""

    verdicts: pd.DataFrame
    num_items: int
    num_not_judged: int


def write_judge_sheet(
    path: Path, scores: pd.DataFrame, questions: pd.DataFrame, *, num_questions: int, rng: np.random.Generator
) -> WrittenJudgeSheet:
    """Write a blinded CSV of the answers to randomly chosen questions, and first the instructions beside it.

    Args:
        path: the CSV to write; the instructions take its name with ``.md``.
        scores: rows of ``schemas.scores`` that the judge judged.
        questions: rows of ``schemas.questions``.
        num_questions: how many questions; all when there are fewer.
        rng: chooses the questions and draws, and shuffles the rows.

    Raises:
        DataError: a file is there already (it may hold someone's work), or there is no answer.
    """
    instructions = path.with_suffix(".md")
    refuse_to_overwrite("--out", path, instructions)
    if scores.empty:
        raise DataError("--out: no answer has a verdict of the judge to compare with; run stage evaluate first")
    chosen = rng.permutation(np.sort(scores["question_id"].unique()))[:num_questions]
    draws = scores.groupby("question_id")["draw"].unique()
    drawn = {name: rng.choice(np.sort(draws[name].astype(int))) for name in chosen}
    answers = scores[scores["question_id"].map(drawn) == scores["draw"]]
    texts = questions.drop_duplicates("question_id").set_index("question_id")
    # Equal answers of several variants are one item.
    items = {
        _item(row): {
            "question": neutralised(texts.loc[row.question_id, "question"]),
            "reference_answers": neutralised(" / ".join(texts.loc[row.question_id, "answers"])),
            "answer": neutralised(_text(row.answer) or NO_ANSWER_SHOWN),
        }
        for row in answers.itertuples()
    }
    names = sorted(items)
    rows = [{"item": names[place], **items[names[place]]} for place in rng.permutation(len(names))]
    path.parent.mkdir(parents=True, exist_ok=True)
    instructions.write_text(INSTRUCTIONS.format(name=path.name), encoding="utf-8")
    write_csv(path, JUDGE_SHEET_COLUMNS, rows)
    return WrittenJudgeSheet(path, instructions, len(chosen), len(rows))


def read_judge_sheet(path: Path, scores: pd.DataFrame) -> JudgedSheet:
    """Read a filled sheet, in any of the encodings and separators that spreadsheets write.

    Args:
        path: the CSV.
        scores: the answers it was written from.

    Raises:
        DataError: the file is not such a sheet, or rows of it are wrong; every one is named with row, column, value and
            the remedy.
    """
    answers: dict[str, list[tuple[str, str, int]]] = {}
    for row in scores.itertuples():
        answers.setdefault(_item(row), []).append((row.variant, row.question_id, row.draw))
    problems: list[str] = []
    first_row: dict[str, int] = {}
    judged: dict[str, bool] = {}
    for number, values in read_csv(path, FILLED_COLUMNS, "--in", "mralign judge-sheet"):
        item = values["item"]
        if item not in answers:
            problems.append(
                f"row {number}, column item: {item!r} is no answer of this run; restore the id, or name the config and "
                "run that the sheet was written from"
            )
            continue
        if item in first_row:
            problems.append(f"row {number}, column item: {item!r} is in row {first_row[item]} too; keep one of them")
            continue
        first_row[item] = number
        verdict = _verdict(number, values, problems)
        if verdict is not None:
            judged[item] = verdict
    refuse(path, "--in", problems, "correct these rows; everything else was read")
    rows = [(*cell, verdict) for item, verdict in judged.items() for cell in answers[item]]
    return JudgedSheet(
        pd.DataFrame(rows, columns=[*ANSWER_KEY, "verdict"]), len(first_row), len(first_row) - len(judged)
    )


def _verdict(number: int, values: Mapping[str, str], problems: list[str]) -> bool | None:
    """The verdict of a row; None where it was not judged, or something is wrong with it."""
    text = values["verdict"].casefold()
    if text and text not in WRITTEN_VERDICTS:
        problems.append(f"row {number}, column verdict: {values['verdict']!r} is no verdict; write right or wrong")
    return WRITTEN_VERDICTS.get(text)


def _item(row: Any) -> str:
    """The id of an answer's text to a question and draw, whoever gave it."""
    return opaque_id("judge", row.question_id, int(row.draw), _text(row.answer))


def _text(answer: str | None) -> str:
    return "" if is_null(answer) else str(answer)
