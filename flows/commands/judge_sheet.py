"""People's verdicts on the last run's answers: what ``mralign judge-sheet`` calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mralign_core.config import RunConfig
from mralign_core.evaluation.judge_sheet import WrittenJudgeSheet, write_judge_sheet
from mralign_core.evaluation.variants import variants_to_judge, variants_to_score
from mralign_core.judging.criteria import JudgedAnswers, answers_to_check
from mralign_core.reporting.people_findings import PeopleFindings, people_findings
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.judge import read_judged_answers


def write(
    config: RunConfig, of: Callable[[str], ArtifactRef], path: Path, num_questions: int, seed: int
) -> WrittenJudgeSheet:
    """Write a blinded sheet of the last run's answers."""
    questions = ArtifactStore(config.storage).read_table(of("evaluation-questions"), "questions.parquet")
    answers = answers_to_check(_judged(config, of))
    return write_judge_sheet(path, answers, questions, num_questions=num_questions, rng=np.random.default_rng(seed))


def read(
    config: RunConfig, of: Callable[[str], ArtifactRef], path: Path, half_width: float, judge: str = ""
) -> PeopleFindings:
    """What a filled sheet says of a judge.

    Args:
        config: the config of the run.
        of: its artifacts.
        path: the sheet.
        half_width: of the intervals that are wanted.
        judge: whom people are compared with; see :func:`~mralign_core.judging.criteria.verdicts_to_check`.
    """
    return people_findings(_judged(config, of), config, path, half_width, judge)


def _judged(config: RunConfig, of: Callable[[str], ArtifactRef]) -> JudgedAnswers:
    """All variants' answers, and what the judges say of them."""
    scores = {name: of(f"scores:{name}") for name in variants_to_score(config)}
    judgements = {name: of(f"judgements:{name}") for name in variants_to_judge(config)}
    return read_judged_answers(config, scores, judgements)
