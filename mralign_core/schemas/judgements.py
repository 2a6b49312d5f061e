"""What judges say of the answers of the evaluation."""

from __future__ import annotations

from typing import Literal, get_args

import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import NATURAL, NOT_NEGATIVE, STRING, TEXT, is_null, one_of

JudgementKind = Literal["truthful", "grade"]
JUDGEMENT_KINDS: tuple[JudgementKind, ...] = get_args(JudgementKind)
SIMILARITY_PROVIDER = "similarity"
"""What the name of the offline baseline begins with."""
GRADES = ("correct", "incorrect", "not_attempted")

JUDGEMENTS = Table(
    name="judgements",
    row_id="question_id",
    columns={
        "variant": Column(pa.string(), [TEXT]),
        "question_id": Column(pa.string(), [TEXT]),
        "draw": Column(pa.int64(), [NATURAL]),
        "judge": Column(pa.string(), [TEXT]),
        "kind": Column(pa.string(), [one_of(JUDGEMENT_KINDS)]),
        "answered": Column(pa.bool_()),
        "truthful": Column(pa.bool_(), nullable=True),
        "informative": Column(pa.bool_(), nullable=True),
        "grade": Column(pa.string(), [one_of(GRADES)], nullable=True),
        "reason": Column(pa.string(), [STRING]),
        "request_digest": Column(pa.string(), [STRING]),
        "prompt_tokens": Column(pa.int64(), [NATURAL]),
        "completion_tokens": Column(pa.int64(), [NATURAL]),
        "cost_usd": Column(pa.float64(), [NOT_NEGATIVE]),
    },
    row_checks=[
        (
            "kind truthful has two verdicts, and kind grade a grade",
            lambda row: is_null(row.grade) == (row.kind == "truthful") != is_null(row.truthful),
        )
    ],
    unique_together=("variant", "question_id", "draw", "judge"),
)
"""A row an answer and judge. ``answered`` is false where there is no answer to judge, as one that was cut off: such is
neither truthful nor informative, or not attempted, and nothing was asked. ``request_digest`` names the reply in the
store; tokens and dollars are those of the request (both, where it was repaired) when it was paid for. Equal answers
share one."""
