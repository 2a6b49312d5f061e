"""What people's verdicts say of a judge, as tables and sentences."""

from __future__ import annotations

import pandas as pd

from mralign_core.evaluation.people import FEWEST, JudgeAgreement
from mralign_core.reporting.result_table import ResultTable
from mralign_core.reporting.run_findings import points
from mralign_core.reporting.titles import METRIC_TITLES, UNDEFINED, variant_title


def judge_table(agreements: dict[str, JudgeAgreement], criterion: str = "right") -> ResultTable:
    """Agreement of people and judge, a row a variant.

    Args:
        agreements: variant, or what else the answers have in common → agreement.
        criterion: what both say of an answer: ``right``, or one of the judged metrics.
    """
    rows = [
        [
            variant_title(name),
            f"{found.num_answers:,}",
            points(found.observed),
            f"{_kappa(found.kappa)} [{_kappa(found.kappa_low)}, {_kappa(found.kappa_high)}]",
            points(found.misses),
            points(found.false_alarms),
        ]
        for name, found in agreements.items()
    ]
    return ResultTable(
        [f"{_named(criterion)}: answers of", "judged", "agree, %", "κ", "misses, %", "false alarms, %"], rows
    )


def corrected_table(corrected: pd.DataFrame, half_width: float, criterion: str = "right") -> ResultTable:
    """Rates or differences as the judge has them, as people have them on their sample, and corrected.

    Args:
        corrected: what ``people.corrected_rates`` or ``people.corrected_differences`` returns.
        half_width: what ``needed`` is told for.
        criterion: as for :func:`judge_table`.
    """
    is_difference = "baseline" in corrected
    has_sets = corrected["source"].nunique() > 1
    rows = [
        [
            _title(row, has_sets),
            *(points(row[name], signed=is_difference) for name in ("judge_rate", "people_rate", "corrected")),
            _interval(row, signed=is_difference),
            f"{row['num_people']:,} of {row['num_questions']:,}",
            UNDEFINED if pd.isna(row["needed"]) else f"{row['needed']:,.0f}",
        ]
        for row in corrected.to_dict("records")
    ]
    name = f"{_named(criterion)}, {'difference in points' if is_difference else '%'}"
    wanted = f"for ±{100 * half_width:.3g}"
    return ResultTable([name, "judge", "people", "corrected", "interval", "questions", wanted], rows)


def sheet_advice(corrected: pd.DataFrame, half_width: float) -> str:
    """How many more questions people should judge, in a sentence.

    Args:
        corrected: what ``people.corrected_rates`` returns.
        half_width: of the intervals that are wanted.
    """
    width = f"±{100 * half_width:.3g} points"
    if corrected["low"].isna().any():
        return f"With fewer than {FEWEST} questions of a set judged there is no interval: judge {FEWEST} or more."
    if corrected["needed"].isna().any():
        return (
            f"Intervals of {width} can't be had with these questions: evaluate more of them, or take a wider interval."
        )
    more = (corrected["needed"] - corrected["num_people"]).clip(lower=0).max()
    if more == 0:
        return f"All intervals are {width} or narrower."
    return f"For intervals of {width} people should judge about {more:,.0f} more questions."


def _named(criterion: str) -> str:
    return METRIC_TITLES.get(criterion, criterion)


def _title(row: dict[str, object], has_sets: bool) -> str:
    names = [variant_title(str(row[name])) for name in ("variant", "baseline") if name in row]
    return " − ".join(names) + (f", {row['source']}" if has_sets else "")


def _interval(row: dict[str, float], *, signed: bool) -> str:
    if pd.isna(row["low"]):
        return UNDEFINED
    return f"{points(row['low'], signed=signed)} to {points(row['high'], signed=signed)}"


def _kappa(value: float) -> str:
    return UNDEFINED if pd.isna(value) else f"{value:.2f}".replace("-", "−")
