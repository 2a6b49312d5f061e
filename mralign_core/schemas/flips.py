"""The answers on which two variants of the evaluation differ."""

from __future__ import annotations

import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import NATURAL, STRING, TEXT, one_of

FLIP_KINDS = ("wrong to right", "right to wrong")

MAIN_METRICS = ("acc", "em_answer", "truthful_informative", "f1_at_k")
"""By which an answer is right, or how far: by the first that both variants have."""

FLIPS = Table(
    name="flips",
    row_id="question_id",
    columns={
        "variant": Column(pa.string(), [TEXT]),
        "baseline": Column(pa.string(), [TEXT]),
        "metric": Column(pa.string(), [one_of(MAIN_METRICS)]),
        "flip": Column(pa.string(), [one_of(FLIP_KINDS)]),
        "question_id": Column(pa.string(), [TEXT]),
        "source": Column(pa.string(), [TEXT]),
        "draw": Column(pa.int64(), [NATURAL]),
        "question": Column(pa.string(), [TEXT]),
        "answers": Column(pa.list_(pa.string())),
        "answer_before": Column(pa.string(), [STRING], nullable=True),
        "answer_after": Column(pa.string(), [STRING], nullable=True),
    },
    unique_together=("variant", "baseline", "question_id", "draw"),
)
"""A row a comparison, question and draw that is right in one variant and wrong in the other: by ``metric``, Acc where
both variants have it. ``answers`` are the gold answers, ``answer_before`` the baseline's answer."""
