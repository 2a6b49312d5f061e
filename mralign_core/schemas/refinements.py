"""How Self-Refine came to its answers."""

from __future__ import annotations

import pyarrow as pa

from mralign_core.schemas.base import Column, Table
from mralign_core.schemas.checks import NATURAL, STRING, TEXT, one_of

REFINEMENT_KINDS = ("answer", "feedback")
CHAIN_ENDS = ("", "all_rounds", "unchanged", "no_feedback", "no_reply", "no_room", "unwritable")
"""Why nothing was asked behind a reply; "" where something was."""

REFINEMENTS = Table(
    name="refinements",
    row_id="question_id",
    columns={
        "question_id": Column(pa.string(), [TEXT]),
        "draw": Column(pa.int64(), [NATURAL]),
        "round": Column(pa.int64(), [NATURAL]),
        "kind": Column(pa.string(), [one_of(REFINEMENT_KINDS)]),
        "completion": Column(pa.string(), [STRING]),
        "num_prompt_tokens": Column(pa.int64(), [NATURAL]),
        "num_tokens": Column(pa.int64(), [NATURAL]),
        "end": Column(pa.string(), [one_of(CHAIN_ENDS)]),
    },
    unique_together=("question_id", "draw", "round", "kind"),
)
"""A row a reply, in the order they were made. The answer of round 0 is the first, that of think-on; a later round has
the feedback on the answer before, then the answer that heeds it. ``end`` says in the last row of a draw why it is the
last: all rounds were made, the feedback says that nothing is to be changed, it says nothing, no reply
came at all (of a refinement, so that the answer before it counts), or the next prompt would leave no room for a reply,
or holds a control token that can't be sent as text."""
