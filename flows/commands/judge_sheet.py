"""People's verdicts on the last run's answers: what ``mralign judge-sheet`` calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.errors import DataError
from mralign_core.evaluation.held_out import all_answers
from mralign_core.evaluation.judge_sheet import JudgedSheet, WrittenJudgeSheet, read_judge_sheet, write_judge_sheet
from mralign_core.evaluation.metrics import comparisons, order_variants
from mralign_core.evaluation.people import ANSWER_KEY, corrected_differences, corrected_rates, judge_agreement
from mralign_core.evaluation.variants import variants_to_judge, variants_to_score
from mralign_core.judging.criteria import JudgedAnswers, answers_to_check, verdicts_to_check
from mralign_core.reporting.people_findings import corrected_table, judge_table, sheet_advice
from mralign_core.reporting.result_table import ResultTable
from mralign_core.schemas.scores import SCORES
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.judge import read_judge_failures, read_judgements

COLUMNS = ["variant", "question_id", "source", "scoring", "draw", "answer", "em_answer"]
ALL = "all variants"


def write(
    config: RunConfig, of: Callable[[str], ArtifactRef], path: Path, num_questions: int, seed: int
) -> WrittenJudgeSheet:
    """Write a blinded sheet of the last run's answers."""
    questions = ArtifactStore(config.storage).read_table(of("evaluation-questions"), "questions.parquet")
    answers = answers_to_check(_judged(config, of))
    return write_judge_sheet(path, answers, questions, num_questions=num_questions, rng=np.random.default_rng(seed))


def read(
    config: RunConfig, of: Callable[[str], ArtifactRef], path: Path, half_width: float, judge: str = ""
) -> tuple[JudgedSheet, list[ResultTable], str]:
    """A filled sheet: what it holds, tables of κ, of corrected rates and differences, and advice on its size.

    Args:
        config: the config of the run.
        of: its artifacts.
        path: the sheet.
        half_width: of the intervals that are wanted.
        judge: whom people are compared with; see :func:`~mralign_core.judging.criteria.verdicts_to_check`.
    """
    run = _judged(config, of)
    said = verdicts_to_check(run, judge)
    sheet = read_judge_sheet(path, answers_to_check(run))
    tables, rates = [], []
    for name, judged in said.items():
        people = sheet.verdicts[sheet.verdicts["criterion"] == name].merge(judged[ANSWER_KEY])
        if len(people):
            of_criterion, corrected = _tables(config, judged, people, name, half_width)
            tables += of_criterion
            rates.append(corrected)
    if not rates:
        raise DataError(
            f"--in: {path} has verdicts on none of the answers that {judge or 'the judge'} judged; fill in rows of its "
            "sets, or name another with --judge"
        )
    return sheet, tables, sheet_advice(pd.concat(rates, ignore_index=True), half_width)


def _tables(
    config: RunConfig, judged: pd.DataFrame, people: pd.DataFrame, criterion: str, half_width: float
) -> tuple[list[ResultTable], pd.DataFrame]:
    """Tables of one criterion, and the corrected rates."""
    confidence = config.evaluate.confidence
    rng = np.random.default_rng([config.seed, 10])
    variants = order_variants(list(judged["variant"].unique()))
    groups = {ALL: people} | {name: people[people["variant"] == name] for name in variants}
    agreements = {
        name: judge_agreement(judged, members, confidence, rng) for name, members in groups.items() if len(members)
    }
    options = {"confidence": confidence, "half_width": half_width}
    rates = corrected_rates(judged, people, **options)
    moved = corrected_differences(judged, people, comparisons(variants), **options)
    corrected = [corrected_table(rows, half_width, criterion) for rows in (rates, moved) if len(rows)]
    return [judge_table(agreements, criterion), *corrected], rates


def _judged(config: RunConfig, of: Callable[[str], ArtifactRef]) -> JudgedAnswers:
    """All variants' answers, and what the judges say of them."""
    store = ArtifactStore(config.storage)
    tables = [
        store.read_columns(of(f"scores:{name}"), "scores.parquet", SCORES, COLUMNS)
        for name in variants_to_score(config)
    ]
    answers = all_answers(tables)
    if answers is None:
        raise DataError("questions.eval names no set, so there is no answer to judge")
    given = {name: of(f"judgements:{name}") for name in variants_to_judge(config)}
    judges = [endpoint.model for endpoint in config.judge.endpoints]
    compared = answers[answers["scoring"] != "claims"]  # a long answer is neither right nor wrong
    return JudgedAnswers(compared, read_judgements(store, given), read_judge_failures(store, given), judges)
