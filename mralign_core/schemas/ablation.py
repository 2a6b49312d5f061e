"""What an ablation compares, and the comparisons."""

from __future__ import annotations

import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import NATURAL, NOT_NEGATIVE, SHARE, TEXT, one_of

ABLATION_RESULTS = Table(
    name="ablation_results",
    row_id="arm",
    columns={
        "world": Column(pa.int64(), [NATURAL]),
        "seed": Column(pa.int64(), [NATURAL]),
        "arm": Column(pa.string(), [TEXT]),
        "num_questions": Column(pa.int64(), [NATURAL]),
        "num_answers": Column(pa.int64(), [NATURAL]),
        "acc": Column(pa.float64(), [SHARE], nullable=True),
        "mis": Column(pa.float64(), [SHARE], nullable=True),
        "em_thought": Column(pa.float64(), [SHARE], nullable=True),
        "em_answer": Column(pa.float64(), [SHARE]),
        "well_formed": Column(pa.float64(), [SHARE]),
        "thinking_words": Column(pa.float64(), [NOT_NEGATIVE], nullable=True),
    },
    unique_together=("world", "seed", "arm"),
)
"""A row a world, alignment seed and arm of an ablation; ``off`` and ``on`` are arms too. Acc, Mis, EM_t and the mean
number of words of the thinking are null for an arm that does not think, and the first three also where the questions
have no EM_t; ``well_formed`` is the share of completions
with a closed thinking, where one is due, and an answer."""

ABLATION_DIFFERENCES = Table(
    name="ablation_differences",
    row_id="arm",
    columns={
        "arm": Column(pa.string(), [TEXT]),
        "baseline": Column(pa.string(), [TEXT]),
        "metric": Column(pa.string(), [one_of(("acc", "mis", "em_thought", "em_answer"))]),
        "difference": Column(pa.float64()),
        "std_error": Column(pa.float64(), nullable=True),
        "low": Column(pa.float64(), nullable=True),
        "high": Column(pa.float64(), nullable=True),
        "p_value": Column(pa.float64(), [SHARE], nullable=True),
        "num_units": Column(pa.int64(), [NATURAL]),
        "num_agreeing": Column(pa.int64(), [NATURAL]),
    },
    unique_together=("arm", "baseline", "metric"),
)
"""A row a comparison and metric that its questions have: arm minus baseline, the mean over units (worlds, or
seeds) with its standard error, t interval and p-value (null where there is none), and how many units have the mean's
sign."""
