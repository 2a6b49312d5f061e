"""What a search of a text collection found for questions."""

from __future__ import annotations

import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import NOT_NEGATIVE, TEXT

SNIPPETS = Table(
    name="snippets",
    row_id="question_id",
    columns={
        "question_id": Column(pa.string(), [TEXT]),
        "rank": Column(pa.int64(), [("must be at least 1", lambda value: value >= 1)]),
        "document_id": Column(pa.string(), [TEXT]),
        "text": Column(pa.string(), [TEXT]),
        "score": Column(pa.float64(), [NOT_NEGATIVE]),
    },
    unique_together=("question_id", "rank"),
)
"""A row a question and snippet, those of a question side by side, the best (rank 1) first. A question that shares no
word with the collection has none."""
