"""What the model wrote, draw by draw."""

from __future__ import annotations

import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import IDS, NATURAL, STRING, TEXT, is_null, one_of
from mralign_core.schemas.outcomes import DRAW_OUTCOMES, FAILED

THINKING_MODES = ("on", "off")

GENERATIONS = Table(
    name="generations",
    row_id="question_id",
    columns={
        "question_id": Column(pa.string(), [TEXT]),
        "thinking_mode": Column(pa.string(), [one_of(THINKING_MODES)]),
        "draw": Column(pa.int64(), [NATURAL]),
        "prompt": Column(pa.string(), [STRING]),
        "completion": Column(pa.string(), [STRING]),
        "prompt_ids": Column(pa.list_(pa.int64()), [IDS]),
        "completion_ids": Column(pa.list_(pa.int64()), [IDS]),
        "thinking": Column(pa.string(), [STRING], nullable=True),
        "answer": Column(pa.string(), [STRING], nullable=True),
        "finish_reason": Column(pa.string(), [one_of(("stop", "length", FAILED))]),
        "token_source": Column(pa.string(), [one_of(("sampled", "encoded"))]),
        "end_token_id": Column(pa.int64(), [NATURAL], nullable=True),
        "thinking_closed": Column(pa.bool_()),
        "outcome": Column(pa.string(), [one_of(DRAW_OUTCOMES)]),
        "em_thought": Column(pa.bool_(), nullable=True),
        "em_answer": Column(pa.bool_(), nullable=True),
        "contains_answer": Column(pa.bool_(), nullable=True),
    },
    row_checks=[
        (
            "a draw has answers that are right or wrong unless it failed",
            lambda row: [row.outcome == FAILED] * 2 == [is_null(row.em_answer), is_null(row.contains_answer)],
        ),
    ],
    unique_together=("question_id", "thinking_mode", "draw"),
    version=3,
)
"""A row a draw. ``em_thought`` is null where the mode has no thinking; ``contains_answer`` is the looser answer match
(a gold answer is contained in the answer). A draw that ``failed`` has no completion, and is neither right nor wrong:
all three are null. ``completion`` is the decoded text of ``completion_ids``; ``token_source`` says whether the model
drew these, or they encode the text that an engine gave. ``end_token_id`` is the end token behind them, null where none
was drawn, as where the answer's closing tag ended it. The draws of a question stand side by side; not all need have
been made (``generate.draws``)."""
