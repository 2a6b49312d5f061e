"""What long answers claim, and what was found of it."""

from __future__ import annotations

import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import NATURAL, STRING, TEXT, one_of

CLAIM_VERDICTS = ("supported", "contradicted", "inconclusive")

CHECKED_CLAIMS = Table(
    name="checked_claims",
    row_id="question_id",
    columns={
        "variant": Column(pa.string(), [TEXT]),
        "question_id": Column(pa.string(), [TEXT]),
        "draw": Column(pa.int64(), [NATURAL]),
        "judge": Column(pa.string(), [TEXT]),
        "claim_id": Column(pa.string(), [TEXT]),
        "sentence": Column(pa.int64(), [NATURAL]),
        "claim": Column(pa.string(), [TEXT]),
        "verdict": Column(pa.string(), [one_of(CLAIM_VERDICTS)]),
        "reason": Column(pa.string(), [STRING]),
        "request_digest": Column(pa.string(), [STRING]),
    },
    unique_together=("variant", "question_id", "draw", "judge", "claim_id"),
)
"""A row a claim of an answer, in the order of its sentences. ``claim_id`` is the digest of its text, ``sentence`` the
number of the sentence that it is of, from 0. ``request_digest`` names the reply that has the verdict in the store; it
is empty where nothing was found, and nobody was asked."""

CLAIM_EVIDENCE = Table(
    name="claim_evidence",
    row_id="question_id",
    columns={
        "question_id": Column(pa.string(), [TEXT]),
        "claim_id": Column(pa.string(), [TEXT]),
        "rank": Column(pa.int64(), [("must be at least 1", lambda value: value >= 1)]),
        "document_id": Column(pa.string(), [STRING]),
        "text": Column(pa.string(), [TEXT]),
    },
    unique_together=("question_id", "claim_id", "rank"),
)
"""A row a claim and passage that it was checked against, the best (rank 1) first. ``document_id`` is the document of
one's own collection, or the address that a search gave."""
