"""What judges say of the answers of the evaluation."""

from __future__ import annotations

from typing import Literal, get_args

import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import NATURAL, NOT_NEGATIVE, STRING, TEXT, is_null, one_of

JudgementKind = Literal["truthful", "grade", "claims"]
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
        "num_claims": Column(pa.int64(), [NATURAL], nullable=True),
        "num_supported": Column(pa.int64(), [NATURAL], nullable=True),
        "reason": Column(pa.string(), [STRING]),
        "request_digest": Column(pa.string(), [STRING]),
        "num_requests": Column(pa.int64(), [NATURAL]),
        "prompt_tokens": Column(pa.int64(), [NATURAL]),
        "completion_tokens": Column(pa.int64(), [NATURAL]),
        "cost_usd": Column(pa.float64(), [NOT_NEGATIVE]),
    },
    row_checks=[
        (
            "kind truthful has two verdicts, kind grade a grade, and kind claims their number",
            lambda row: (
                is_null(row.truthful) == is_null(row.informative) == (row.kind != "truthful")
                and is_null(row.grade) == (row.kind != "grade")
                and is_null(row.num_claims) == is_null(row.num_supported) == (row.kind != "claims")
            ),
        ),
        (
            "no more claims are supported than there are",
            lambda row: is_null(row.num_claims) or row.num_supported <= row.num_claims,
        ),
    ],
    unique_together=("variant", "question_id", "draw", "judge"),
)
"""A row an answer and judge. ``answered`` is false where there is no answer to judge, as one that was cut off: such is
neither truthful nor informative, not attempted, or without claims, and nothing was asked. ``request_digest`` names the
reply in the store, or of ``claims`` stands for all ``num_requests`` of the answer; tokens and dollars are those of the
requests (both, where one was repaired) when they were paid for. Equal answers share them."""
