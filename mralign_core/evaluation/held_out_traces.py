"""The thinking of held-out answers as traces that annotators can label, to see whether training changed what it does
(Fig. 4 of arXiv 2510.24794).

Decisions: labelled are think-on and MR-ALIGN (the last variant trained where that is not), in every draw of a question
with EM_t whose thinking is closed and whose answer is there, since a trace that never ends has no last move. Nothing is
trained on them or chosen by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.config.annotate import LOCAL_PREFIX
from mralign_core.evaluation.variants import variants_to_score
from mralign_core.method.traces import WELL_FORMED, split_segments
from mralign_core.schemas.held_out_traces import HELD_OUT_TRACES

FREE = ("cue/", LOCAL_PREFIX)
"""What annotators' names begin with that label anything, and ask for no money."""
VANILLA = "on"
"""What aligned variants are compared with."""
ALIGNED = "mr_align"
"""The variant that is labelled beside it, or the last one trained; with ``evaluate.label_thinking: all`` every one."""


def variants_to_label(config: RunConfig) -> tuple[str, ...]:
    """The variants whose thinking on held-out questions is labelled: think-on first, then aligned ones; none where
    there are no held-out questions, nothing is trained, or it is not asked for.
    """
    scored = variants_to_score(config)
    trained = [name for name in config.train.variants if name in scored]
    asked = config.evaluate.label_thinking
    is_free = all(endpoint.model.startswith(FREE) for endpoint in config.annotate.endpoints.values())
    if asked == "none" or (asked == "when_free" and not is_free):
        return ()
    if asked != "all":
        trained = [ALIGNED] if ALIGNED in trained else trained[-1:]
    return (VANILLA, *trained) if trained else ()


def most_held_out_traces(config: RunConfig, num_questions: int) -> int:
    """How many traces there are to label at most.

    Args:
        config: the run config.
        num_questions: held out.
    """
    return num_questions * config.evaluate.num_draws * len(variants_to_label(config))


def held_out_traces(tables: Sequence[pd.DataFrame], questions: pd.DataFrame) -> pd.DataFrame:
    """Rows of :data:`~mralign_core.schemas.held_out_traces.HELD_OUT_TRACES`.

    Args:
        tables: the scores of each variant, rows of :data:`~mralign_core.schemas.scores.SCORES`.
        questions: rows of :data:`~mralign_core.schemas.questions.QUESTIONS`.
    """
    asked = {row["question_id"]: row for row in questions.to_dict("records")}
    rows = [_trace(row, asked[row["question_id"]]) for scores in tables for row in _labellable(scores)]
    return pd.DataFrame(rows, columns=list(HELD_OUT_TRACES.columns)).astype(object)


def _labellable(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """The answers with EM_t whose thinking has an end."""
    rows = scores[scores["em_thought"].notna() & scores["outcome"].isin(WELL_FORMED)]
    return [
        {str(name): value for name, value in row.items()}
        for row in rows.to_dict("records")
        if isinstance(row["thinking"], str) and split_segments(row["thinking"])
    ]


def _trace(row: dict[str, Any], question: dict[Any, Any]) -> dict[str, Any]:
    spans = split_segments(row["thinking"])
    return {
        "trace_id": f"{row['variant']}/{row['question_id']}/{row['draw']}",
        **{name: row[name] for name in ("variant", "question_id", "stratum", "draw")},
        "question": question["question"],
        "answers": list(question["answers"]),
        "completion": row["thinking"],
        "answer": row["answer"] or "",
        "is_right": bool(row["em_answer"]),
        "segments": [span._asdict() for span in spans],
    }
