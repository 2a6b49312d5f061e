"""The think-on draws that matrices are estimated from in place of the selected traces (``estimate.traces``).

A departure from the paper; :mod:`mralign_core.method.both_sides` says why, and which draws of a question count. A draw
is a trace if it is well-formed and of the length that selected traces have; it is positive where its own answer is
right, whatever the other draws of its question say. So a draw that is selected too is the same row in both tables, and
its labels are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Literal

import pandas as pd

from mralign_core.config import GenerateConfig
from mralign_core.generation.funnel import Funnel
from mralign_core.generation.select_traces import STEPS, DrawRow, as_candidate, is_right, keep_traces
from mralign_core.method.both_sides import draws_on_both_sides
from mralign_core.models.families import Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DRAW_STEPS = ("think-on draws", *STEPS[4:], "draws that count")
DRAWS_REMEDY = (
    "What can help: more questions; more generate.num_draws, or a higher generate.temperature, so that a question ends "
    "now right, now wrong; wider generate.min_segments, max_segments, min_reasoning_tokens, max_reasoning_tokens; "
    "estimate.traces 'all_draws' in place of 'matched'."
)


def select_draws(
    draws: Iterable[DrawRow],
    questions: pd.DataFrame,
    section: GenerateConfig,
    take: Literal["all_draws", "matched"],
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    funnel: Funnel,
) -> Iterator[DrawRow]:
    """Keep the think-on draws that are traces, and of these those that count; holds one question at a time.

    Args:
        draws: rows of :data:`~mralign_core.schemas.generations.GENERATIONS`, those of a question side by side.
        questions: all training questions, rows of :data:`~mralign_core.schemas.questions.QUESTIONS`.
        section: which match counts as right, length bounds.
        take: which of the traces count; see :func:`~mralign_core.method.both_sides.draws_on_both_sides`.
        tokenizer: tokenizer of the model that sampled.
        family: how the model thinks.
        funnel: records the yield of each step (``DRAW_STEPS``).

    Yields:
        Rows of :data:`~mralign_core.schemas.candidates.CANDIDATES`.
    """
    asked = {str(row["question_id"]): row for row in questions.to_dict("records")}
    for question_id, group in groupby(draws, key=itemgetter("question_id")):
        question = {str(name): value for name, value in asked[question_id].items()}
        drawn = [
            {**question, "polarity": "positive" if is_right(row, section) else "negative", **row}
            for row in sorted(group, key=itemgetter("draw"))
            if row["thinking_mode"] == "on"
        ]
        drawn = funnel.keep(DRAW_STEPS[0], drawn, [""] * len(drawn))
        # Each by itself, so that none is left out as one too many of its question.
        traces = [trace for row in drawn for trace in keep_traces([row], funnel, section, tokenizer, family)]
        yield from map(as_candidate, funnel.keep(DRAW_STEPS[-1], traces, _not_counted(traces, take)))


def _not_counted(traces: Sequence[DrawRow], take: Literal["all_draws", "matched"]) -> list[str]:
    """For each trace of a question, why it does not count; empty for those that do."""
    ends_right = [row["polarity"] == "positive" for row in traces]
    counted = draws_on_both_sides(ends_right, take)
    reason = "more than the other side has" if counted else "its question ends one way only"
    return ["" if number in counted else reason for number in range(len(traces))]
