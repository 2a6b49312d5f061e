"""What can become of a draw."""

from __future__ import annotations

OUTCOMES = (
    "ok",
    "untagged_answer",
    "no_answer",
    "no_thinking",
    "unasked_thinking",
    "answer_in_thinking",
    "several_think_blocks",
    "unclosed_thinking",
)
"""What a completion can be; :data:`~mralign_core.method.traces.Outcome` says what each means."""
FAILED = "failed"
DRAW_OUTCOMES = (*OUTCOMES, FAILED)
"""What a draw can be: a completion, or ``failed``, where the server that samples did not answer though it answers
others. What the model would have said is unknown then."""
