"""People's verdicts on the last run's answers: what ``mralign judge-sheet`` calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.errors import DataError
from mralign_core.evaluation.held_out import all_answers
from mralign_core.evaluation.judge_sheet import JudgedSheet, WrittenJudgeSheet, read_judge_sheet, write_judge_sheet
from mralign_core.evaluation.metrics import comparisons, order_variants
from mralign_core.evaluation.people import corrected_differences, corrected_rates, judge_agreement
from mralign_core.evaluation.variants import variants_to_judge, variants_to_score
from mralign_core.judging.verdicts import scored_answers, weigh_verdicts
from mralign_core.reporting.people_findings import corrected_table, judge_table, sheet_advice
from mralign_core.reporting.result_table import ResultTable
from mralign_core.schemas.scores import SCORES
from mralign_core.storage import ArtifactStore
from tasks.engine.one_task import Inputs
from tasks.judge import read_judge_failures, read_judgements

COLUMNS = ["variant", "question_id", "source", "scoring", "draw", "answer", "em_answer"]
ALL = "all variants"


def write(config: RunConfig, of: Inputs, path: Path, num_questions: int, seed: int) -> WrittenJudgeSheet:
    """Write a blinded sheet of the last run's answers."""
    questions = ArtifactStore(config.storage).read_table(of("evaluation-questions"), "questions.parquet")
    answers = _judged(config, of)
    return write_judge_sheet(path, answers, questions, num_questions=num_questions, rng=np.random.default_rng(seed))


def read(config: RunConfig, of: Inputs, path: Path, half_width: float) -> tuple[JudgedSheet, list[ResultTable], str]:
    """A filled sheet: what it holds, tables of κ, of corrected rates and differences, and advice on its size."""
    scores = _judged(config, of)
    sheet = read_judge_sheet(path, scores)
    if sheet.verdicts.empty:
        raise DataError(
            f"--in: {path} has no verdict in its {sheet.num_items} rows; write right or wrong in column verdict"
        )
    judged = scores.drop(columns="answer")
    confidence, people = config.evaluate.confidence, sheet.verdicts
    rng = np.random.default_rng([config.seed, 10])
    variants = order_variants(list(judged["variant"].unique()))
    groups = {ALL: people} | {name: people[people["variant"] == name] for name in variants}
    agreements = {
        name: judge_agreement(judged, members, confidence, rng) for name, members in groups.items() if len(members)
    }
    options = {"confidence": confidence, "half_width": half_width}
    rates = corrected_rates(judged, people, **options)
    moved = corrected_differences(judged, people, comparisons(variants), **options)
    tables = [judge_table(agreements), corrected_table(rates, half_width)]
    return (
        sheet,
        [*tables, *([corrected_table(moved, half_width)] if len(moved) else [])],
        sheet_advice(rates, half_width),
    )


def _judged(config: RunConfig, of: Inputs) -> pd.DataFrame:
    """The answers of all variants that have a verdict: of exact match, or of what else scores their set.

    Of judged sets it is whether the judges call an answer truthful and informative.
    """
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
    judged = (
        weigh_verdicts(read_judgements(store, given), read_judge_failures(store, given), answers, judges)
        if given
        else None
    )
    scored = scored_answers(answers, judged)
    scored = scored[scored["scoring"] != "claims"]  # a long answer is neither right nor wrong
    both = scored["truthful_informative"] if "truthful_informative" in scored else scored["em_answer"]
    return scored.assign(verdict=scored["em_answer"].where(scored["em_answer"].notna(), both).astype(bool))
