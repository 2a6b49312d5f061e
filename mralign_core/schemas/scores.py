"""The answers of the evaluation."""

from __future__ import annotations

import pyarrow as pa

from mralign_core.method.benchmarks import SCORING_NAMES
from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import NATURAL, STRING, TEXT, one_of
from mralign_core.schemas.outcomes import OUTCOMES

SCORES = Table(
    name="scores",
    row_id="question_id",
    columns={
        "variant": Column(pa.string(), [TEXT]),
        "question_id": Column(pa.string(), [TEXT]),
        "source": Column(pa.string(), [TEXT]),
        "scoring": Column(pa.string(), [one_of(SCORING_NAMES)]),
        "stratum": Column(pa.string(), [STRING]),
        "draw": Column(pa.int64(), [NATURAL]),
        "completion": Column(pa.string(), [STRING]),
        "thinking": Column(pa.string(), [STRING], nullable=True),
        "answer": Column(pa.string(), [STRING], nullable=True),
        "outcome": Column(pa.string(), [one_of(OUTCOMES)]),
        "em_thought": Column(pa.bool_(), nullable=True),
        "em_answer": Column(pa.bool_(), nullable=True),
        "contains_answer": Column(pa.bool_(), nullable=True),
        "num_prompt_tokens": Column(pa.int64(), [NATURAL]),
        "num_tokens": Column(pa.int64(), [NATURAL]),
    },
    unique_together=("variant", "question_id", "draw"),
    version=4,
)
"""A row an answer of the evaluation, by variant (:mod:`mralign_core.evaluation.variants`). ``source`` is the set of the
question and ``scoring`` how that is scored (:data:`~mralign_core.method.benchmarks.SCORINGS`), which says what
``em_answer`` means; ``em_thought`` is null where the set has no EM_t. All matches are null where the question has no
gold answer, or only a judge could score it. ``num_prompt_tokens`` were read for it and ``num_tokens`` drawn, in all
rounds together where there are several."""
