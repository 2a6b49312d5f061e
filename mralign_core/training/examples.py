"""Training examples: the stored token ids of a trace, with a weight on every completion token.

Decisions:

* The stored ids are used as they are; nothing is tokenised again.
* An end token is appended to every completion, with weight 1: the one that the model drew there, and where none is
  known the one that ends its turns. Selection keeps only traces that came to an answer, so every trace here did end;
  without it the model would unlearn to stop.
* A row longer than ``max_length`` is left out and counted. It is never cut: the answer is at its end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.errors import DataError
from mralign_core.method.token_weights import token_weights

logger = logging.getLogger("mralign_core.training")


Row = tuple[list[int], list[int]]
"""Prompt and completion ids."""


class TrainingExample(NamedTuple):
    """One trace to train on; ``completion_ids`` end in the end token and have a weight each."""

    trace_id: str
    question_id: str
    prompt_ids: list[int]
    completion_ids: list[int]
    weights: list[float]
    is_positive: bool

    @property
    def row(self) -> Row:
        """The prompt with its own completion."""
        return self.prompt_ids, self.completion_ids


class Examples(NamedTuple):
    """The examples kept, in the order of the candidates, and the number of rows left out by reason."""

    kept: list[TrainingExample]
    left_out: dict[str, int]


def build_examples(
    candidates: pd.DataFrame, segment_weights: pd.DataFrame | None, *, end_token_id: int, max_length: int
) -> Examples:
    """Turn kept traces into training examples.

    Args:
        candidates: rows of table ``candidates``.
        segment_weights: rows of table ``segment_weights``, a weight for each segment; None gives every token weight 1.
        end_token_id: the token that ends a completion whose own end is not known.
        max_length: most tokens of prompt, completion and end token together.

    Raises:
        DataError: a trace has an empty prompt, or ``segment_weights`` lacks a weight for one of its segments.
    """
    weight_of_segment = None if segment_weights is None else _weight_of_segment(segment_weights)
    examples = [_example(row, weight_of_segment, end_token_id) for row in candidates.itertuples(index=False)]
    kept = [example for example in examples if num_tokens(example.row) <= max_length]
    num_too_long = len(examples) - len(kept)
    if num_too_long:
        logger.warning("%d of %d traces exceed %d tokens and are left out", num_too_long, len(examples), max_length)
    return Examples(kept, {"too_long": num_too_long})


def with_labels(candidates: pd.DataFrame, annotations: pd.DataFrame) -> pd.DataFrame:
    """The traces to train on: those that have labels, for an annotator may have failed on some.

    Args:
        candidates: rows of table ``candidates``.
        annotations: rows of table ``annotations``.
    """
    return candidates[candidates["trace_id"].isin(annotations["trace_id"].unique())]


def num_tokens(row: Row) -> int:
    """Tokens of prompt and completion."""
    return len(row[0]) + len(row[1])


def _weight_of_segment(segment_weights: pd.DataFrame) -> dict[tuple[str, int], float]:
    rows = zip(segment_weights["trace_id"], segment_weights["segment"], segment_weights["weight"], strict=True)
    return {(str(trace_id), int(segment)): float(weight) for trace_id, segment, weight in rows}


def _example(row: Any, weight_of_segment: dict[tuple[str, int], float] | None, end_token_id: int) -> TrainingExample:
    prompt_ids = [int(token) for token in row.prompt_ids]
    if not prompt_ids:
        raise DataError(f"trace {row.trace_id}: prompt_ids is empty, so its first token has no context; add a prompt")
    completion_ids = [int(token) for token in row.completion_ids]
    end = end_token_id if pd.isna(row.end_token_id) else int(row.end_token_id)
    if completion_ids[-1:] != [end]:
        completion_ids.append(end)
    weights = [1.0] * len(completion_ids)
    if weight_of_segment is not None:
        spans = [(int(segment["token_start"]), int(segment["token_end"])) for segment in row.segments]
        weights = _spread(row.trace_id, len(completion_ids), spans, weight_of_segment)
    return TrainingExample(
        row.trace_id, row.question_id, prompt_ids, completion_ids, weights, row.polarity == "positive"
    )


def _spread(
    trace_id: str,
    num_tokens: int,
    spans: Sequence[tuple[int, int]],
    weight_of_segment: dict[tuple[str, int], float],
) -> list[float]:
    missing = [segment for segment in range(len(spans)) if (trace_id, segment) not in weight_of_segment]
    if missing:
        raise DataError(
            f"trace {trace_id}: table 'segment_weights' has no weight for segment(s) {missing} of {len(spans)}; "
            "a silent weight 1 would be plain KTO, so run the reward stage on these candidates"
        )
    weights = [weight_of_segment[trace_id, segment] for segment in range(len(spans))]
    return [float(weight) for weight in token_weights(num_tokens, spans, weights)]
