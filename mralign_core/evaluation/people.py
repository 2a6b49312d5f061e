"""What people say of a judge: agreement beyond chance, and the judge's rates corrected by a sample that people judged.

A judge is anything that says of an answer whether it is right: exact match, a program, a language model. It judges
every answer, people only some of them. Implements prediction-powered inference with power tuning (PPI++, arXiv
2311.01453), where what people judge is a part of what the judge judged: the people's mean on their sample, plus λ times
what the judge says of all answers beyond what it says of that sample,

    θ = Ȳ + λ (f̄_all − f̄_sample),   λ = cov(Y, f) / var(f), kept within [0, 1]
    var θ = var(Y − λf) / n + (2λ cov(Y, F) − λ² var(F)) / Q

λ = 1 takes the judge at its word but for its mean error, 0 forgets it, so that a useless judge costs nothing.

Decisions:

* The unit is a question: Y and f are means over those draws of it that people judged, F the judge's mean over all.
* To find λ and the variance, two judgements are added in which people and the judge disagree, one either way.
  Without them a sample in which they happen to agree everywhere would have no error at all: its intervals covered the
  truth in as few as 83 % of simulations with 50 answers. docs/deciding.md has the figures.
* People are taken for the truth; where several judged, compare their sheets first.
* Sets are not pooled: each has rates of its own.

Shapes: n questions in the people's sample, Q questions in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mralign_core.errors import DataError
from mralign_core.method import FloatArray
from mralign_core.method.agreement import agreement, agreement_intervals

ANSWER_KEY = ["variant", "question_id", "draw"]
"""What names an answer."""
CORRECTED_COLUMNS = (
    *("source", "judge_rate", "people_rate", "corrected", "low", "high", "tuning", "num_people", "num_questions"),
    "needed",
)
FEWEST = 10
"""Fewer questions that people judged give no interval."""
HALF_WIDTH = 0.03
"""Of the intervals that advice is on, unless another is asked for."""


class JudgeAgreement(NamedTuple):
    """How far people and the judge agree, with percentile-bootstrap intervals over questions.

    Args:
        num_answers: answers that both judged.
        observed: share on which they agree.
        kappa: Cohen's κ; NaN where both always say the same one thing.
        kappa_low: lower end of its interval.
        kappa_high: upper end.
        misses: share of what people call right that the judge calls wrong; NaN where there is none.
        false_alarms: share of what people call wrong that the judge calls right; NaN where there is none.
    """

    num_answers: int
    observed: float
    kappa: float
    kappa_low: float
    kappa_high: float
    misses: float
    false_alarms: float


class Corrected(NamedTuple):
    """A mean of the judge's, corrected by people; low and high are NaN where people judged fewer than :data:`FEWEST`.

    Args:
        estimate: θ.
        low: lower end of the interval.
        high: upper end.
        tuning: λ.
        by_person: var(Y − λf), which the people's sample divides by n.
        by_question: what is left of the variance when people judge every question.
    """

    estimate: float
    low: float
    high: float
    tuning: float
    by_person: float
    by_question: float


def judge_agreement(
    judged: pd.DataFrame, people: pd.DataFrame, confidence: float, rng: np.random.Generator
) -> JudgeAgreement:
    """How far a judge and people agree on the answers that both judged.

    Args:
        judged: ``variant, question_id, draw, verdict`` of the judge.
        people: the same columns, of people.
        confidence: coverage of the interval.
        rng: source of the resamples of questions.
    """
    both = _both(judged, people)
    theirs, ours = ([{"right"} if right else {"wrong"} for right in both[name]] for name in ("people", "judge"))
    found = agreement(theirs, ours)
    codes, questions = pd.factorize(both["question_id"])
    draws = rng.multinomial(len(questions), np.full(len(questions), 1 / len(questions)), 2000).astype(float)
    kappa = agreement_intervals(theirs, ours, codes, draws, confidence=confidence).kappa
    right = both["people"].to_numpy(bool)
    says_right = both["judge"].to_numpy(bool)
    misses, false_alarms = (
        float(wrong.mean()) if len(wrong) else np.nan for wrong in (~says_right[right], says_right[~right])
    )
    return JudgeAgreement(len(both), found.observed, found.kappa, *kappa, misses, false_alarms)


def corrected_rates(
    judged: pd.DataFrame, people: pd.DataFrame, *, confidence: float, half_width: float
) -> pd.DataFrame:
    """The share of right answers of each variant and set as people would find it, from all that the judge says.

    Args:
        judged: ``variant, question_id, draw, source, verdict`` of every answer that the judge judged.
        people: ``variant, question_id, draw, verdict`` of a random sample of them.
        confidence: coverage of the intervals.
        half_width: what ``needed`` is told for.

    Returns:
        A row a variant and set: ``variant`` and :data:`CORRECTED_COLUMNS`. ``judge_rate`` is over all answers and
        ``people_rate`` over the sample; ``needed`` is how many questions people must judge for an interval of
        ± half_width, NaN where these questions don't suffice.
    """
    both = _both(judged, people)
    rows = []
    for (variant, source), answers in judged.groupby(["variant", "source"], sort=False):
        sample = both[(both["variant"] == variant) & (both["source"] == source)]
        if len(sample):
            found = _corrected_row(answers["verdict"], answers["question_id"], sample, 0.5, confidence, half_width)
            rows.append({"variant": variant, "source": source, **found})
    return pd.DataFrame(rows, columns=["variant", *CORRECTED_COLUMNS])


def corrected_differences(
    judged: pd.DataFrame,
    people: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    *,
    confidence: float,
    half_width: float,
) -> pd.DataFrame:
    """Paired differences of two variants as people would find them, on what was judged of both.

    Args:
        judged: as for :func:`corrected_rates`.
        people: as for :func:`corrected_rates`; counted where both answers to a question and draw were judged.
        pairs: (variant, baseline).
        confidence: coverage of the intervals.
        half_width: what ``needed`` is told for.

    Returns:
        A row a pair and set: ``variant, baseline`` and :data:`CORRECTED_COLUMNS`, of differences.
    """
    both = _both(judged, people)
    rows = []
    for variant, baseline in pairs:
        answers, sample = (
            _differences(frame, variant, baseline) for frame in (judged.rename(columns={"verdict": "judge"}), both)
        )
        for source, members in answers.groupby("source", sort=False):
            of_set = sample[sample["source"] == source]
            if len(of_set):
                found = _corrected_row(members["judge"], members["question_id"], of_set, 0.0, confidence, half_width)
                rows.append({"variant": variant, "baseline": baseline, "source": source, **found})
    return pd.DataFrame(rows, columns=["variant", "baseline", *CORRECTED_COLUMNS])


def corrected_mean(
    people: FloatArray,
    judge: FloatArray,
    in_sample: FloatArray,
    of_all: FloatArray,
    *,
    centre: float,
    confidence: float,
) -> Corrected:
    """The mean that people would find, from a sample of theirs and all that the judge says.

    Args:
        people: (n,) Y, the people's mean on the judged answers to each question of their sample.
        judge: (n,) f, the judge's mean on the same answers.
        in_sample: (n,) F, the judge's mean over all answers to these questions.
        of_all: (Q,) the judge's mean over all answers to each question.
        centre: middle of the scale: .5 of shares, 0 of differences of shares.
        confidence: coverage of the interval.

    Example:
        >>> Y, f = np.array([1.0, 1, 0, 0] * 10), np.array([1.0, 1, 1, 0] * 10)  # a judge that is too kind
        >>> found = corrected_mean(Y, f, f, np.repeat([1.0, 0.0], [300, 100]), centre=0.5, confidence=0.95)
        >>> found.estimate, round(found.low, 2), round(found.high, 2)
        (0.5, 0.35, 0.65)
    """
    from scipy import stats

    num = len(people)
    unlike = centre + np.array([0.5, -0.5])
    with_doubt, judged = np.append(people, unlike), np.append(judge, unlike[::-1])
    tuning = float(np.clip(np.cov(with_doubt, judged)[0, 1] / judged.var(ddof=1), 0, 1))
    least, most = (0.0, 1.0) if centre else (-1.0, 1.0)
    estimate = float(np.clip(people.mean() + tuning * (of_all.mean() - judge.mean()), least, most))
    if num < FEWEST:
        return Corrected(estimate, np.nan, np.nan, tuning, np.nan, np.nan)
    by_person = float((with_doubt - tuning * judged).var(ddof=2))
    shared = float(np.cov(people, in_sample)[0, 1])
    by_question = max(2 * tuning * shared - tuning**2 * float(of_all.var(ddof=1)), 0.0) / len(of_all)
    half = float(stats.t.ppf((1 + confidence) / 2, num - 1) * np.sqrt(by_person / num + by_question))
    return Corrected(estimate, max(estimate - half, least), min(estimate + half, most), tuning, by_person, by_question)


def questions_for_people(found: Corrected, half_width: float, num_questions: int, confidence: float) -> float:
    """How many questions people must judge for an interval of ± ``half_width``; NaN where all would not suffice."""
    from scipy import stats

    left = (half_width / stats.norm.ppf((1 + confidence) / 2)) ** 2 - found.by_question
    if not left > 0:
        return np.nan
    needed = float(np.ceil(found.by_person / left))
    return needed if needed <= num_questions else np.nan


def _both(judged: pd.DataFrame, people: pd.DataFrame) -> pd.DataFrame:
    """The answers that both judged, in columns ``judge`` and ``people``.

    Raises:
        DataError: there is none, or people judged one twice.
    """
    repeated = people[people.duplicated(ANSWER_KEY)]
    if len(repeated):
        raise DataError(
            f"people judged {len(repeated)} answer(s) twice, first {repeated[ANSWER_KEY].iloc[0].to_dict()}; keep one"
        )
    found = judged.rename(columns={"verdict": "judge"}).merge(
        people[[*ANSWER_KEY, "verdict"]].rename(columns={"verdict": "people"}), on=ANSWER_KEY
    )
    if found.empty:
        raise DataError(
            f"none of the {len(people)} answers that people judged was judged by the judge; check the sheet"
        )
    return found


def _differences(frame: pd.DataFrame, variant: str, baseline: str) -> pd.DataFrame:
    """Variant minus baseline in each column of verdicts, on the questions and draws that both have."""
    verdicts = [name for name in ("judge", "people") if name in frame]
    ours, theirs = (
        frame[frame["variant"] == name].set_index(["source", "question_id", "draw"])[verdicts].astype(float)
        for name in (variant, baseline)
    )
    return (ours - theirs).dropna().reset_index()


def _corrected_row(
    judged: pd.Series, questions: pd.Series, sample: pd.DataFrame, centre: float, confidence: float, half_width: float
) -> dict[str, float]:
    of_all = judged.astype(float).groupby(questions.to_numpy(object)).mean()
    means = sample[["people", "judge"]].astype(float).groupby(sample["question_id"].to_numpy(object)).mean()
    people, judge = means["people"].to_numpy(), means["judge"].to_numpy()
    in_sample = of_all.loc[means.index].to_numpy()
    found = corrected_mean(people, judge, in_sample, of_all.to_numpy(), centre=centre, confidence=confidence)
    return {
        "judge_rate": float(of_all.mean()),
        "people_rate": float(people.mean()),
        "corrected": found.estimate,
        "low": found.low,
        "high": found.high,
        "tuning": found.tuning,
        "num_people": len(people),
        "num_questions": len(of_all),
        "needed": questions_for_people(found, half_width, len(of_all), confidence),
    }
