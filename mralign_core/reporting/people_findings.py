"""What people's verdicts say of a judge, as tables and sentences.

Decision: a sheet that has rows on answers which the run does not have, as after a variant was trained anew, corrects
nothing. Without those rows what is left would be no random sample of the new answers, and its intervals would be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.errors import DataError
from mralign_core.evaluation.judge_sheet import PEOPLE_FIELD, JudgedSheet, read_judge_sheet
from mralign_core.evaluation.metrics import comparisons, order_variants
from mralign_core.evaluation.people import (
    ANSWER_KEY,
    FEWEST,
    HALF_WIDTH,
    JudgeAgreement,
    corrected_differences,
    corrected_rates,
    judge_agreement,
)
from mralign_core.judging.criteria import JudgedAnswers, answers_to_check, verdicts_to_check
from mralign_core.reporting.result_table import ResultTable
from mralign_core.reporting.run_findings import points
from mralign_core.reporting.titles import METRIC_TITLES, UNDEFINED, variant_title

ALL = "all variants"
THE_JUDGE = "the judges' vote where judges judge a set, exact match elsewhere"
"""Whom people are compared with unless a judge is named."""


class PeopleFindings(NamedTuple):
    """A filled sheet: what it holds, tables of κ, of corrected rates and differences, and advice on its size."""

    sheet: JudgedSheet
    tables: list[ResultTable]
    advice: str


class PeopleSection(NamedTuple):
    """What a report says of people's verdicts: sentences and tables; of a sheet that does not fit, why."""

    notes: list[str]
    tables: Sequence[ResultTable] = ()


def people_findings(
    run: JudgedAnswers, config: RunConfig, path: Path, half_width: float, judge: str = "", option: str = "--in"
) -> PeopleFindings:
    """What the verdicts in a filled sheet say of a judge.

    Args:
        run: the answers of a run, and what its judges say of them.
        config: of the run.
        path: the sheet.
        half_width: of the intervals that are wanted.
        judge: whom people are compared with; see :func:`~mralign_core.judging.criteria.verdicts_to_check`.
        option: what named the sheet.

    Raises:
        ConfigError: nobody is called like the judge.
        DataError: the sheet does not fit the answers, or has verdicts on none of those that the judge judged.
    """
    said = verdicts_to_check(run, judge)
    sheet = read_judge_sheet(path, answers_to_check(run), option)
    tables, rates = [], []
    for name, judged in said.items():
        people = sheet.verdicts[sheet.verdicts["criterion"] == name].merge(judged[ANSWER_KEY])
        if len(people):
            of_criterion, corrected = people_tables(
                judged,
                people,
                name,
                confidence=config.evaluate.confidence,
                seed=config.seed,
                half_width=half_width,
            )
            tables += of_criterion
            rates.append(corrected)
    if not rates:
        raise DataError(
            f"{option}: {path} has verdicts on none of the answers that {judge or 'the judge'} judged; fill in rows of "
            "its sets, or name another with --judge"
        )
    return PeopleFindings(sheet, tables, sheet_advice(pd.concat(rates, ignore_index=True), half_width))


def people_section(run: JudgedAnswers, config: RunConfig, path: Path) -> PeopleSection:
    """What a report shows of the sheet that ``evaluate.people_sheet`` names; it fails no run that is all but done.

    Args:
        run: the answers of the run, and what its judges say of them.
        config: of the run.
        path: the sheet.
    """
    try:
        found = people_findings(run, config, path, HALF_WIDTH, option=PEOPLE_FIELD)
    except DataError as error:
        remedy = (
            "Write a new sheet of this run's answers with mralign judge-sheet --out, have it filled in, name it in "
            f"{PEOPLE_FIELD} and run again: only the report is made anew."
        )
        return PeopleSection(
            [f"Nothing is corrected by people's verdicts: {str(error).replace(str(path), path.name)}", remedy]
        )
    counted = f"{found.sheet.num_items:,} answers are in the people's sheet, {found.sheet.num_not_judged:,} not judged."
    notes = [counted, *variants_left_out(found.sheet), f"People are compared with {THE_JUDGE}.", found.advice]
    return PeopleSection(notes, found.tables)


def variants_left_out(sheet: JudgedSheet) -> list[str]:
    """Which variants people's verdicts say nothing of, and why, a sentence each."""
    return [
        f"{variant_title(variant)} is left out: {missing:,} of its answers to the sheet's questions are not in the "
        "sheet, which is older, or lacks rows. For it write a new one."
        for variant, missing in sheet.left_out.items()
    ]


def people_tables(
    judged: pd.DataFrame, people: pd.DataFrame, criterion: str, *, confidence: float, seed: int, half_width: float
) -> tuple[list[ResultTable], pd.DataFrame]:
    """Tables of one criterion: agreement, corrected rates and differences; and the corrected rates.

    Args:
        judged: ``variant, question_id, draw, source, verdict`` of the judge.
        people: the same of people, on their sample.
        criterion: as for :func:`judge_table`.
        confidence: coverage of the intervals.
        seed: of the resamples.
        half_width: of the intervals that are wanted.
    """
    rng = np.random.default_rng([seed, 10])
    variants = order_variants(list(judged["variant"].unique()))
    groups = {ALL: people} | {name: people[people["variant"] == name] for name in variants}
    agreements = {
        name: judge_agreement(judged, members, confidence, rng) for name, members in groups.items() if len(members)
    }
    options: dict[str, Any] = {"confidence": confidence, "half_width": half_width}
    rates = corrected_rates(judged, people, **options)
    moved = corrected_differences(judged, people, comparisons(variants), **options)
    corrected = [corrected_table(rows, half_width, criterion) for rows in (rates, moved) if len(rows)]
    return [judge_table(agreements, criterion), *corrected], rates


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
