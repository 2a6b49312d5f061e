"""Held-out questions, and what each variant answers them with (§4).

Every variant gets the same questions and, from the transformers sampler, the same random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from mralign_core.config import EvaluateConfig, RunConfig
from mralign_core.errors import DataError
from mralign_core.evaluation.variants import variants_to_judge
from mralign_core.generation import Decoding, Sample, Sampler, SampleRequest, sample_all
from mralign_core.generation.scoring import score_answers
from mralign_core.method.matching import MatchRules
from mralign_core.schemas.outcomes import FAILED

WHY_UNSCORED = {
    "truthful": "is scored by a judge, and none is named (judge.endpoints)",
    "claims": "is scored by its supported claims, and no evidence is named (judge.endpoints, judge.evidence)",
}
"""How a set is scored whose answers may be in no figure → why."""


def by_benchmark(questions: pd.DataFrame) -> pd.DataFrame:
    """Questions of several sets, to be reported set by set; those of one set by its own strata."""
    return questions.assign(stratum=questions["source"]) if questions["source"].nunique() > 1 else questions


def answer_questions(
    sampler: Sampler,
    questions: pd.DataFrame,
    variant: str,
    section: EvaluateConfig,
    *,
    seed: int,
    rules: MatchRules,
    on_progress: Callable[..., None],
) -> pd.DataFrame:
    """Answer questions with one variant, and score the answers.

    Args:
        sampler: samples from the variant.
        questions: rows of :data:`~mralign_core.schemas.questions.QUESTIONS`.
        variant: ``off`` answers without thinking, all others with it.
        section: decoding, and draws a question.
        seed: of the run.
        rules: how answers are compared.
        on_progress: called with answers done and asked for.

    Returns:
        Rows of :data:`~mralign_core.schemas.scores.SCORES`.

    Raises:
        DataError: a server failed to answer some of them; figures over the others would be of other questions.
    """
    requests = requests_of(questions, "off" if variant == "off" else "on", section.num_draws)
    samples = sample_all(sampler, requests, Decoding.of(section, seed), on_progress)
    refuse_failed(requests, samples, variant)
    return score_answers(requests, samples, questions, sampler.family, rules).assign(variant=variant)


def requests_of(questions: pd.DataFrame, thinking_mode: str, num_draws: int) -> list[SampleRequest]:
    """A request for each question and draw."""
    return [
        SampleRequest(row.question_id, row.question, thinking_mode, draw)
        for row in questions.itertuples()
        for draw in range(num_draws)
    ]


def refuse_failed(requests: Sequence[SampleRequest], samples: Sequence[Sample], variant: str) -> None:
    """Refuse samples that a server failed to make.

    Raises:
        DataError: there are some; figures over the others would be of other questions.
    """
    failed = [request for request, sample in zip(requests, samples, strict=True) if sample.finish_reason == FAILED]
    if failed:
        raise DataError(
            f"the server failed to answer {len(failed)} of {len(requests)} requests of variant {variant!r}, first "
            f"question {failed[0].question_id!r}, draw {failed[0].draw}. All other replies are kept: run again to ask "
            "for these alone. Where it fails on them again, its log says why: raise its limits, or take them out"
        )


def with_strata(scores: pd.DataFrame, questions: pd.DataFrame) -> pd.DataFrame:
    """Scores with the sets and strata of these questions: the same answers may have been scored beside other sets.

    Args:
        scores: rows of :data:`~mralign_core.schemas.scores.SCORES`.
        questions: what :func:`by_benchmark` returns.
    """
    asked = questions.set_index("question_id")
    return scores.assign(**{name: scores["question_id"].map(asked[name]) for name in ("stratum", "source")})


def all_answers(tables: Sequence[pd.DataFrame]) -> pd.DataFrame | None:
    """The answers of all variants; None where no question is held out."""
    return pd.concat(tables, ignore_index=True) if tables else None


def with_gold(answers: pd.DataFrame) -> pd.DataFrame:
    """The answers to questions that have a gold answer and need no judge; the others are scored by one, or by none."""
    return answers[answers["em_answer"].notna()]


def notes_on_answers(config: RunConfig, asked: Mapping[str, Any], answers: pd.DataFrame | None) -> list[str]:
    """What a reader of the results must know about the questions: sentences.

    Args:
        config: the run config.
        asked: the counts of the questions' manifest.
        answers: all answers; None where nothing was held out.
    """
    notes = []
    if taken_out := asked.get("taken out of train"):
        notes.append(
            f"{taken_out} training question(s) are evaluated on too and were taken out (questions.on_overlap: drop); "
            "overlap.json beside the questions names them."
        )
    if config.generate.source == "traces":
        notes.append(
            "The traces were imported. Their polarity is given in the file or judged by whether the answer is right; "
            "no think-off draws stand against them, as the paper's selection asks."
        )
    if answers is None:
        notes.append("There are no held-out questions (questions.eval is empty), so nothing was evaluated.")
    else:
        kinds = [
            *(["truthful"] if variants_to_judge(config) else []),
            *(["claims"] if config.judge.evidence.is_named else []),
        ]
        is_judged = answers["scoring"].isin(kinds)
        notes += [_note_on_unscored(name, rows) for name, rows in answers[~is_judged].groupby("source", sort=True)]
    return [note for note in notes if note]


def _note_on_unscored(name: Any, answers: pd.DataFrame) -> str:
    """That the answers to a set are in no figure, and why; empty where all are."""
    unscored = answers[answers["em_answer"].isna()]
    if unscored.empty:
        return ""
    why = WHY_UNSCORED.get(unscored["scoring"].iloc[0], "has questions without a gold answer")
    return (
        f"{name} {why}: {unscored['question_id'].nunique()} of its questions were answered, and the answers are in the "
        "artifacts, but they are in none of the figures below."
    )
