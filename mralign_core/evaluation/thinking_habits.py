"""How long a variant thinks and whether it repeats itself, and, where its thinking is labelled, whether it goes in
circles. An addition to the paper.

Decisions: a thinking *repeats itself* where a segment has the words of one before it. It *loops* where two or more
different moves are made twice in a row in the same order, as evaluation, backtracking, evaluation, backtracking; the
same move again and again is no loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mralign_core.evaluation.mentions import ending_of
from mralign_core.method import FloatArray, IntArray
from mralign_core.method.traces import split_segments

ANSWER_HABITS = ("num_tokens", "num_segments", "repeats")
"""What :func:`answer_habits` says of each answer: its tokens, thinking and answer together; the segments of its
thinking; and, as 0 or 1, whether this repeats itself."""
LEAST_CYCLE = 2
"""Moves in the shortest cycle."""


def answer_habits(scores: pd.DataFrame) -> pd.DataFrame:
    """How long the thinking of each held-out answer is, and whether it repeats itself.

    Args:
        scores: rows of :data:`~mralign_core.schemas.scores.SCORES`; those without EM_t are left out.

    Returns:
        A row an answer: ``variant, question_id, draw, ending`` and :data:`ANSWER_HABITS`.
    """
    thinks = scores[scores["em_thought"].notna()]
    rows = []
    for row in thinks.to_dict("records"):
        segments = segment_texts(row["thinking"])
        ending = ending_of(is_named=bool(row["em_thought"]), is_right=bool(row["em_answer"]))
        habits = (float(row["num_tokens"]), float(len(segments)), float(repeats_itself(segments)))
        rows.append((row["variant"], row["question_id"], row["draw"], ending, *habits))
    return pd.DataFrame(rows, columns=["variant", "question_id", "draw", "ending", *ANSWER_HABITS])


def segment_texts(thinking: object) -> list[str]:
    """The segments of a thinking; none of what is no text."""
    return [thinking[slice(*span)] for span in split_segments(thinking)] if isinstance(thinking, str) else []


def repeats_itself(segments: Sequence[str]) -> bool:
    """Whether a segment has the words of one before it, case aside.

    >>> repeats_itself(["It is Oslo.", "Or not.", "it is  Oslo."]), repeats_itself(["It is Oslo.", "Is it Oslo?"])
    (True, False)
    """
    words = [" ".join(segment.casefold().split()) for segment in segments]
    return len(set(words)) < len(words)


def find_cycle(steps: Sequence[str]) -> tuple[str, ...]:
    """The shortest cycle of moves that is made twice in a row, the first of them; empty where there is none.

    >>> find_cycle(["framing", "evaluation", "backtracking", "evaluation", "backtracking", "synthesis"])
    ('evaluation', 'backtracking')
    >>> find_cycle(["retrieval", "retrieval", "retrieval", "retrieval"])
    ()
    """
    for length in range(LEAST_CYCLE, len(steps) // 2 + 1):
        same = 0
        for place in range(len(steps) - length):
            same = same + 1 if steps[place] == steps[place + length] else 0
            cycle = tuple(steps[place + 1 - length : place + 1])
            if same >= length and len(set(cycle)) > 1:
                return cycle
    return ()


def mean_gap_by_question(
    values: FloatArray,
    is_one: np.ndarray[tuple[int], np.dtype[np.bool_]],
    questions: Sequence[str],
    *,
    num_resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    """The mean of some answers minus that of the others, with a percentile-bootstrap interval over questions.

    Args:
        values: shape (N,), one number an answer.
        is_one: shape (N,), which answers are the ones.
        questions: the question of each answer; all answers of a question are resampled together.
        num_resamples: resamples of questions.
        confidence: coverage of the interval.
        rng: seeded generator.

    Returns:
        Difference, low and high end; NaN where one of the two groups is empty.

    >>> mean_gap_by_question(np.array([3.0, 1.0, 2.0]), np.array([True, False, False]), ["a", "b", "c"],
    ...                      num_resamples=9, confidence=0.95, rng=np.random.default_rng(0))[0]
    1.5
    """
    if is_one.all() or not is_one.any():
        return (np.nan, np.nan, np.nan)
    number: IntArray = pd.factorize(np.asarray(questions, dtype=object))[0]
    parts = [values * is_one, is_one * 1.0, values * ~is_one, ~is_one * 1.0]
    sums = np.column_stack([np.bincount(number, part) for part in parts])
    times = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=num_resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = [
            totals[..., 0] / totals[..., 1] - totals[..., 2] / totals[..., 3] for totals in (sums.sum(0), times @ sums)
        ]
    low, high = np.nanquantile(gaps[1], [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(gaps[0]), float(low), float(high)
