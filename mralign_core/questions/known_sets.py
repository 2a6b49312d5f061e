"""The question sets that are known by name: where the hub has them, and how their rows are written.

Each is read in the hub's format and in that of the authors' own file (App. A.2: any question with a short answer).
Departures and decisions:

- SciQ is asked without its options, as in the paper; the gold answer is the right option's text.
- CommonsenseQA is asked with its options, as A, B, C, …; an answer is right by its letter or its text.
- GSM8K's gold answer is the number behind ``####``, without and with its thousands commas; an answer is right where the
  number that it ends with is that one.
- TruthfulQA's field asks a judge whether an answer is truthful and informative, which no comparison with its correct
  answers tells: the best answer, then the other correct ones, and the incorrect ones are kept for the judge.
- LongFact's prompts have no gold answer; its field counts supported claims, which a judge and evidence do.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mralign_core.method.benchmarks import ScoringName
from mralign_core.questions.columns import BadRowError, Columns, answers_in
from mralign_core.questions.jsonl import Line

NUMBER = re.compile(r"-?[\d,]*\.?\d+")


@dataclass(frozen=True)
class KnownSet:
    """One set: its hub id and configuration, its splits for training and evaluation, and the formats of its rows.

    ``train_split`` is empty for a set that is only meant for evaluation, ``hub_id`` for one that only has files.
    ``scoring`` is how its answers are judged, and so which metrics it has.
    """

    formats: tuple[Columns, ...]
    hub_id: str = ""
    subset: str = ""
    train_split: str = ""
    eval_split: str = ""
    scoring: ScoringName = "exact_match"


def _best_first(line: Line) -> list[str]:
    others = line.values["correct_answers"]
    if not isinstance(others, list):  # the hub's set saved as CSV, which has no lists
        others = answers_in(others, "correct_answers")
    return [line.values["best_answer"], *others]


def _best_first_of_joined(line: Line) -> list[str]:
    return [line.values["Best Answer"], *_joined(line.values["Correct Answers"])]


def _joined(cell: str) -> list[str]:
    return [answer for answer in cell.split(";") if answer.strip()]


def _topic(line: Line) -> str:
    metadata = line.values["metadata"]
    # A Python literal rather than JSON, on the hub too.
    values = ast.literal_eval(metadata) if isinstance(metadata, str) else metadata
    return str(values["topic"])


def _final_number(line: Line) -> list[str]:
    _, mark, number = line.values["answer"].rpartition("####")
    number = number.strip()
    if not mark or not NUMBER.fullmatch(number):
        raise BadRowError(f"field 'answer' must end with '####' and a number, got …{line.values['answer'][-60:]!r}")
    return [number.replace(",", ""), number]


def _options(choices: Any) -> dict[str, str]:
    """Label → text, in order."""
    if isinstance(choices, Mapping):
        return dict(zip(choices["label"], choices["text"], strict=True))
    return {choice["label"]: choice["text"] for choice in choices}


def _gold_option(choices: Any, key: str) -> str:
    options = _options(choices)
    if key not in options:
        hidden = "" if key else ", as in a split that hides its answers"
        raise BadRowError(f"field 'answerKey' must be one of {', '.join(options)}, got {key!r}{hidden}")
    return str(options[key])


def _file_topic(line: Line) -> str:
    return re.sub(r"^longfact-(objects|concepts)_", "", line.file)


KNOWN_SETS: dict[str, KnownSet] = {
    "nq_open": KnownSet(
        hub_id="google-research-datasets/nq_open",
        train_split="train",
        eval_split="validation",
        formats=(Columns("question", "answer"),),
    ),
    "sciq": KnownSet(
        hub_id="allenai/sciq",
        train_split="train",
        eval_split="test",
        formats=(Columns("question", "correct_answer"), Columns("question", "answer")),
    ),
    "simpleqa": KnownSet(
        hub_id="basicv8vc/SimpleQA",
        eval_split="test",
        formats=(Columns("problem", "answer", "metadata", find_stratum=_topic), Columns("problem", "answer")),
    ),
    "truthfulqa": KnownSet(
        scoring="truthful",
        hub_id="truthfulqa/truthful_qa",
        subset="generation",
        eval_split="validation",
        formats=(
            Columns(
                "question",
                "best_answer",
                "category",
                incorrect="incorrect_answers",
                also=("correct_answers",),
                find_answers=_best_first,
            ),
            Columns(
                "Question",
                "Best Answer",
                "Category",
                incorrect="Incorrect Answers",
                also=("Correct Answers",),
                find_answers=_best_first_of_joined,
                find_incorrect=lambda line: _joined(line.values["Incorrect Answers"]),
            ),
        ),
    ),
    "longfact": KnownSet(scoring="claims", formats=(Columns("prompt", find_stratum=_file_topic),)),
    "gsm8k": KnownSet(
        scoring="number",
        hub_id="openai/gsm8k",
        subset="main",
        train_split="train",
        eval_split="test",
        formats=(Columns("question", "answer", find_answers=_final_number),),
    ),
    "commonsense_qa": KnownSet(
        scoring="option",
        hub_id="tau/commonsense_qa",
        train_split="train",
        eval_split="validation",
        formats=(
            Columns(
                "question",
                "answerKey",
                options="choices",
                find_answers=lambda line: _gold_option(line.values["choices"], line.values["answerKey"]),
                find_options=lambda line: list(_options(line.values["choices"]).values()),
            ),
            Columns(
                "question",
                "answerKey",
                options="question",
                find_question=lambda line: line.values["question"]["stem"],
                find_options=lambda line: list(_options(line.values["question"]["choices"]).values()),
                find_answers=lambda line: _gold_option(line.values["question"]["choices"], line.values["answerKey"]),
            ),
        ),
    ),
}
"""Name → set. An own set of a user's is none of these: it names its columns."""

BY_HUB_ID = {known.hub_id: name for name, known in KNOWN_SETS.items() if known.hub_id}
