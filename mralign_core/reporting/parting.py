"""Where thinking and answer part, as a report shows it, piece by piece."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mralign_core.evaluation.held_out_traces import VANILLA
from mralign_core.evaluation.metrics import consistency_shifts, order_variants
from mralign_core.evaluation.redrawn import redrawn_shifts
from mralign_core.method.matching import DEFAULT_RULES, MatchRules
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.reporting.change_findings import change_block
from mralign_core.reporting.habit_findings import habit_block, move_habit_block, shift_block
from mralign_core.reporting.mention_findings import mention_block, tail_block
from mralign_core.reporting.report_block import Block

PARTING_CHARTS = {
    "mentions": "Where the thinking names the gold answer",
    "shifts": "What became of answers, by what they were before",
    "lengths": "How long variants think",
    "change": "Moves made more and less often than before",
}
"""Chart → its title."""


def parting_blocks(
    scores: pd.DataFrame | None,
    questions: pd.DataFrame | None,
    traces: pd.DataFrame | None,
    annotations: pd.DataFrame | None,
    held_out: tuple[pd.DataFrame, pd.DataFrame] | None = None,
    *,
    taxonomy: Taxonomy,
    confidence: float,
    rules: MatchRules = DEFAULT_RULES,
) -> list[Block]:
    """What a report says of where thinking and answer part, block by block.

    Args:
        scores: rows of ``schemas.scores``.
        questions: rows of ``schemas.questions``, of the answers.
        traces: rows of ``schemas.candidates``, the training traces.
        annotations: rows of ``schemas.annotations``, of the training traces.
        held_out: rows of ``schemas.held_out_traces`` and their annotations; None where they are not labelled.
        taxonomy: the labels.
        confidence: coverage of the intervals.
        rules: what counts as naming a gold answer.
    """
    blocks: list[Block | None] = []
    has_scores = scores is not None and not scores.empty
    if scores is not None and has_scores and questions is not None:
        blocks.append(mention_block(scores, questions, confidence, rules))
    if held_out is not None:
        before = held_out[0][held_out[0]["variant"] == VANILLA]
        blocks.append(tail_block(before, held_out[1], taxonomy, confidence, rules, is_held_out=True))
    elif traces is not None and annotations is not None and len(traces):
        ended = traces.assign(is_right=traces["polarity"] == "positive")
        blocks.append(tail_block(ended, annotations, taxonomy, confidence, rules))
    if scores is not None and has_scores:
        shifts, redrawn = (_records(frame(scores)) for frame in (consistency_shifts, redrawn_shifts))
        blocks += [shift_block(shifts, redrawn if shifts else []), habit_block(scores, confidence)]
    if held_out is not None:
        aligned = [variant for variant in order_variants(list(held_out[0]["variant"].unique())) if variant != VANILLA]
        blocks.append(move_habit_block(*held_out, taxonomy, confidence))
        blocks += [change_block(*held_out, taxonomy, confidence, variant) for variant in aligned[-1:]]
    return [block for block in blocks if block is not None]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
