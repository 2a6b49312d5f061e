"""A judge of known error rates over HTTP, and people who judge a sample of what it judged."""

import numpy as np
import pytest

from mralign_core.evaluation.people import corrected_mean, corrected_rates, judge_agreement
from mralign_core.judging.judge import judge_answers, questions_to_judge
from mralign_core.llm.client import LLMClient
from tests.judging import graded, judges, question_rows, score_rows, shown_in
from tests.kept_replies import MemoryReplyStore

NUM_ANSWERS, NUM_PEOPLE, NUM_SIMULATIONS = 400, 150, 1000
MISSES, FALSE_ALARMS = 0.15, 0.25
"""Shares of right answers that it calls incorrect, and of wrong ones that it calls correct."""


@pytest.fixture
def judged(server):
    """A row an answer: ``truth`` and the judge's ``verdict``."""
    rng = np.random.default_rng(0)
    truth = rng.random(NUM_ANSWERS) < 0.6
    errs = rng.random(NUM_ANSWERS) < np.where(truth, MISSES, FALSE_ALARMS)

    def grade(request, _):
        number = int(shown_in(request)["question"].strip("Question ?"))
        return graded("CORRECT" if truth[number] != errs[number] else "INCORRECT")

    server.script = grade
    questions = question_rows(truthful=(), graded=[(f"Question {n}?", [f"gold {n}"]) for n in range(NUM_ANSWERS)])
    answers = [[f"gold {n}" if is_right else f"other {n}"] for n, is_right in enumerate(truth)]
    section = judges(server)
    scores = score_rows(questions, answers)
    client = LLMClient(MemoryReplyStore(), concurrency=section.concurrency, first_pause_s=0.01)
    result = judge_answers(questions_to_judge(scores, questions, section), "on", section, client)
    said = result.judgements.set_index("question_id")["grade"] == "correct"
    assert len(server.requests) == NUM_ANSWERS
    return scores[["variant", "question_id", "source", "draw"]].assign(
        truth=truth, verdict=scores["question_id"].map(said).astype(bool)
    )


def test_rates_are_corrected_by_a_sample_that_people_judged(judged):
    """As ``mralign judge-sheet`` does it; people see a random sample and are right."""
    rng = np.random.default_rng(1)
    sample = judged.iloc[rng.permutation(NUM_ANSWERS)[:NUM_PEOPLE]]
    people = sample[["variant", "question_id", "draw"]].assign(verdict=sample["truth"])
    (rate,) = corrected_rates(judged, people, confidence=0.95, half_width=0.03).to_dict("records")
    truth, said = judged["truth"].mean(), judged["verdict"].mean()
    assert rate["low"] <= truth <= rate["high"]
    agreement = judge_agreement(judged, people, 0.95, rng)
    assert agreement.misses == pytest.approx(MISSES, abs=0.08)
    assert agreement.false_alarms == pytest.approx(FALSE_ALARMS, abs=0.12)
    assert said == pytest.approx(truth * (1 - MISSES) + (1 - truth) * FALSE_ALARMS, abs=0.05)


def test_corrected_intervals_cover_the_truth_in_93_to_97_of_100(judged):
    """In each simulation the questions are drawn anew from those that were judged, whose true rate is known."""
    rng = np.random.default_rng(2)
    truth, said = judged["truth"].to_numpy(float), judged["verdict"].to_numpy(float)
    places = rng.integers(NUM_ANSWERS, size=(NUM_SIMULATIONS, 1000))
    found = [
        corrected_mean(truth[seen], said[seen], said[seen], said[drawn], centre=0.5, confidence=0.95)
        for drawn in places
        for seen in [drawn[:NUM_PEOPLE]]
    ]
    covered = np.mean([one.low <= truth.mean() <= one.high for one in found])
    alone = np.mean([abs(said[drawn].mean() - truth.mean()) < 1.96 * np.sqrt(0.25 / 1000) for drawn in places])
    assert 0.93 <= covered <= 0.97
    assert alone < 0.93, "the judge's own rate would not do"
