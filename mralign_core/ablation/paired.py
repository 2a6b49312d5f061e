"""Paired differences between the arms of an ablation, with t intervals over worlds or over seeds.

Decisions:

* The unit is a world: a model, its questions and traces. Of a world's seeds the mean counts, since they are no
  independent evidence on another world. Where there is one world that is no pocket's, its seeds are the units, and the
  intervals tell of training and decoding again, not of another model.
* Arms answer the same questions with the same draws, so that the difference of two means is a paired one.
* One unit has no interval.
* t intervals, because units are few; with a bootstrap over a handful of worlds they would be too narrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from mralign_core.errors import DataError
from mralign_core.evaluation.metrics import METRICS, answer_metrics, headline_sets
from mralign_core.method import FloatArray
from mralign_core.schemas.ablation import ABLATION_DIFFERENCES, ABLATION_RESULTS

Unit = Literal["world", "seed"]
ALIKE = 1e-12
"""Spread of shares below which they are equal but for rounding."""


class Cell(NamedTuple):
    """One arm in one world under one alignment seed."""

    world: int
    seed: int
    arm: str

    def __str__(self) -> str:
        return f"{self.world}.{self.seed}.{self.arm}"

    @classmethod
    def parse(cls, text: str) -> Cell:
        """The cell whose ``str`` this is."""
        world, seed, arm = text.split(".", 2)
        return cls(int(world), int(seed), arm)


class MeanDifference(NamedTuple):
    """The mean of paired differences over units, and what is known of it; NaN where there is no interval.

    Args:
        difference: mean.
        std_error: its standard error.
        low: lower end of the t interval.
        high: upper end.
        p_value: of the two-sided t test that the mean is 0.
        num_units: units.
        num_agreeing: units whose difference has the sign of the mean.
    """

    difference: float
    std_error: float
    low: float
    high: float
    p_value: float
    num_units: int
    num_agreeing: int


def cell_results(cells: Iterable[tuple[Cell, pd.DataFrame]]) -> pd.DataFrame:
    """Every metric of every arm, world and seed.

    Args:
        cells: each with its rows of ``schemas.scores``; answers to questions without a gold answer are passed over.

    Returns:
        Rows of ``schemas.ablation.ABLATION_RESULTS``: shares in [0, 1], NaN where a metric is not defined; of several
        sets the mean over those that a headline may speak of (:func:`~mralign_core.evaluation.metrics.headline_sets`).

    Raises:
        DataError: arms of a world and seed answered other questions or draws than one another, or none that has a
            gold answer.
    """
    rows = []
    asked: dict[tuple[int, int], tuple[str, frozenset[tuple[str, int]]]] = {}
    for cell, scores in cells:
        scored = scores[scores["em_answer"].notna()]
        sets = headline_sets(answer_metrics(scored.assign(variant=cell.arm)))
        answers = pd.concat(sets) if sets else pd.DataFrame(columns=["question_id", "draw"])
        pairs = frozenset(zip(answers["question_id"], answers["draw"], strict=True))
        other, others = asked.setdefault((cell.world, cell.seed), (cell.arm, pairs))
        if pairs != others or not pairs:
            raise DataError(
                f"world {cell.world}, seed {cell.seed}: {cell.arm!r} has {len(pairs)} answers that can be scored and "
                f"{other!r} {len(others)}, not to the same questions and draws; differences are paired, so score both "
                "with the same config on questions that have gold answers"
            )
        counts = {"num_questions": answers["question_id"].nunique(), "num_answers": len(answers)}
        means = pd.DataFrame([each[[*METRICS, "well_formed"]].mean() for each in sets]).mean().to_dict()
        words = [len(thinking.split()) for thinking in scored["thinking"] if isinstance(thinking, str)]
        mean_words = float(np.mean(words)) if words else np.nan
        rows.append({**cell._asdict(), **counts, **means, "thinking_words": mean_words})
    return pd.DataFrame(rows, columns=list(ABLATION_RESULTS.columns))


def sets_left_out(scores: pd.DataFrame) -> list[str]:
    """The sets that were answered and that :func:`cell_results` doesn't compare: those with other metrics, or none.

    Args:
        scores: rows of ``schemas.scores`` of any cell.
    """
    compared = headline_sets(answer_metrics(scores[scores["em_answer"].notna()]))
    return sorted(set(scores["source"]) - {name for answers in compared for name in answers["source"]})


def mean_differences(
    results: pd.DataFrame, pairs: Sequence[tuple[str, str]], *, unit: Unit, confidence: float
) -> pd.DataFrame:
    """Differences between arms, unit by unit, and their mean with a t interval over the units.

    Args:
        results: what :func:`cell_results` returns.
        pairs: (arm, baseline) to compare.
        unit: what the intervals are over; what lies within a unit is averaged first.
        confidence: coverage of the intervals.

    Returns:
        Rows of ``schemas.ablation.ABLATION_DIFFERENCES``, a pair and metric each; shares in [-1, 1], arm minus
        baseline. Metrics that the questions do not have are left out.
    """
    by_unit = unit_differences(results, pairs, unit=unit)
    metrics = [metric for metric in METRICS if by_unit[metric].notna().any()]
    rows = [
        {"arm": arm, "baseline": baseline, "metric": metric, **t_interval(column.to_numpy(), confidence)._asdict()}
        for (arm, baseline), table in by_unit.groupby(["arm", "baseline"], sort=False)
        for metric, column in table[metrics].items()
    ]
    return pd.DataFrame(rows, columns=list(ABLATION_DIFFERENCES.columns))


def unit_differences(results: pd.DataFrame, pairs: Sequence[tuple[str, str]], *, unit: Unit) -> pd.DataFrame:
    """A row a pair and unit: ``arm, baseline``, the unit's number under its name, and the difference of each metric."""
    means = results.groupby(["arm", unit], sort=False)[list(METRICS)].mean()
    rows = [
        (means.loc[arm] - means.loc[baseline]).reset_index().assign(arm=arm, baseline=baseline)
        for arm, baseline in pairs
    ]
    return pd.concat(rows, ignore_index=True)[["arm", "baseline", unit, *METRICS]]


def t_interval(values: FloatArray, confidence: float) -> MeanDifference:
    """The mean of independent differences with its t interval.

    Values that are all alike have no interval: their spread, 0, is no estimate of the spread to expect.

    Args:
        values: a difference a unit.
        confidence: coverage, e.g. 0.95.

    Example:
        >>> found = t_interval(np.array([1.0, 2.0, 3.0]), 0.95)  # mean 2, sd 1, t(2) = 4.303
        >>> [round(value, 3) for value in found]
        [2.0, 0.577, -0.484, 4.484, 0.074, 3, 3]
    """
    from scipy import stats

    mean, num_units = float(values.mean()), len(values)
    num_agreeing = int((np.sign(values) == np.sign(mean)).sum()) if mean else 0
    if num_units < 2 or np.ptp(values) < ALIKE:
        return MeanDifference(mean, np.nan, np.nan, np.nan, np.nan, num_units, num_agreeing)
    error = float(stats.sem(values))
    low, high = stats.t.interval(confidence, num_units - 1, loc=mean, scale=error)
    p_value = float(stats.ttest_1samp(values, 0).pvalue)
    return MeanDifference(mean, error, float(low), float(high), p_value, num_units, num_agreeing)
