"""The questions to align on and to evaluate on."""

from __future__ import annotations

import pyarrow as pa

from mralign_core.method.benchmarks import SCORING_NAMES
from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import STRING, TEXT, TEXTS_OR_NONE, is_texts, one_of

QUESTIONS = Table(
    name="questions",
    row_id="question_id",
    columns={
        "question_id": Column(pa.string(), [TEXT], unique=True),
        "question": Column(pa.string(), [TEXT]),
        "answers": Column(pa.list_(pa.string()), [TEXTS_OR_NONE]),
        "source": Column(pa.string(), [TEXT]),
        "split": Column(pa.string(), [one_of(("train", "eval"))]),
        "stratum": Column(pa.string(), [STRING]),
        "scoring": Column(pa.string(), [one_of(SCORING_NAMES)]),
        "options": Column(pa.list_(pa.string()), [TEXTS_OR_NONE]),
        "incorrect_answers": Column(pa.list_(pa.string()), [TEXTS_OR_NONE]),
    },
    row_checks=[
        ("a question to align on needs an answer", lambda row: row.split != "train" or is_texts(row.answers)),
        ("a choice is between options", lambda row: (row.scoring == "option") == bool(len(row.options))),
    ],
    version=3,
)
"""A row a question. ``answers`` is empty where a set has no gold answers, for evaluation only; ``source`` is the name
of its set; ``stratum`` is a free grouping for the report ("" where there is none); ``scoring`` says how its set is
scored (:data:`~mralign_core.method.benchmarks.SCORINGS`). ``options`` are the texts that ``question`` shows as A, B, C,
…, of which ``answers`` has the right one; ``incorrect_answers`` are those that a set names as wrong, for a judge."""
