"""What a paired comparison decides: whether a difference is shown, or too small to matter, or left open by the data.

Everything rests on one paired difference a question, the mean over its draws, because draws of one question are no
independent evidence. Of several sets the difference is the plain mean of the sets' (:mod:`~.metrics`), and its variance
the mean of their variances over their number. docs/deciding.md has the simulations.

Decisions:

* **Test**: signs of whole questions are flipped at random, which is exact whenever the variant and its baseline are
  exchangeable on a question. With one draw a question and one set that is McNemar's exact test, computed as such, but
  for F1@K, whose differences are of many sizes. The t
  test kept its level in simulations too (.03 to .06), but nothing promises that where flips are few.
* **Equivalence**: two one-sided t tests against the margin (TOST), with the variance that there would be if the
  difference were the margin, as a score test has: with the observed one the test errs too often where flips are few (up
  to 7 % at a level of 5 %), and calls three questions equivalent of which none flipped. As t is only nearly right
  there, each side must also pass the exact binomial test against flips that all go one way and add up to the margin.
* **Power**: of the t test, as usual, but never better than the paired test could be: for p ≤ .05 it needs six flips,
  all one way.
* Nothing is corrected for the number of comparisons.

Shapes: Q questions of a set, S sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mralign_core.evaluation.metrics import (
    DIFFERENCE_COLUMNS,
    PairedPart,
    answer_metrics,
    comparisons,
    metrics_of,
    paired_parts,
)
from mralign_core.method import FloatArray
from mralign_core.method.benchmarks import METRIC_SIGNS
from mralign_core.schemas.flips import FLIP_KINDS, FLIPS, MAIN_METRICS

Decision = Literal["shown", "edge", "equivalent", "open"]
"""``shown``: the test rejects and the interval excludes 0. ``edge``: only one of the two. ``equivalent``: neither, and
within the margin. ``open``: none of these."""
WANTED_POWER = 0.8
"""The chance to show a difference at which it counts as one that could have been shown."""
NUM_FLIPS = 100_000
"""Random sign flips behind a p-value that has no closed form."""
DECISION_COLUMNS = (
    *("variant", "baseline", "stratum", "metric", "num_questions", "num_answers", *DIFFERENCE_COLUMNS, "std_error"),
    *("better", "worse", "p_value", "test", "equivalence_p", "margin", "is_equivalent"),
    *("smallest_difference", "questions_needed", "decision"),
)
# Sums of flips are compared up to rounding.
_ALIKE = 1e-12


class SetDifferences(NamedTuple):
    """Of one set, each question's paired differences summed over its draws, (Q,), and its number of draws, (Q,)."""

    sums: FloatArray
    num_draws: FloatArray


class MeanOfSets(NamedTuple):
    """The mean over sets of a paired difference, and what its variance is made of.

    Args:
        means: (S,) each set's difference.
        variances: (S,) its squared standard error; NaN of a set with one question.
        sizes: (S,) questions.
        flip_sizes: (S,) Σ d² / Σ |d| over the questions that differ: 1 where they flip in all draws; 1 without any.
        num_draws: draws a question, on average.
    """

    means: FloatArray
    variances: FloatArray
    sizes: FloatArray
    flip_sizes: FloatArray
    num_draws: float

    @property
    def difference(self) -> float:
        """The mean of the sets' differences."""
        return float(self.means.mean())

    @property
    def std_error(self) -> float:
        """√(Σ variances) / S."""
        return float(np.sqrt(self.variances.sum()) / len(self.sizes))

    @property
    def effective_size(self) -> float:
        """Questions of one set that would be as good as these of S sets if all varied alike: S² / Σ 1/Q."""
        return float(len(self.sizes) ** 2 / (1 / self.sizes).sum())

    def dof(self, factor: float = 1.0) -> float:
        """Degrees of freedom of the standard error by Welch and Satterthwaite; Q − 1 of one set.

        Args:
            factor: as if each set had so many times as many questions.
        """
        if not self.variances.sum() > 0:
            return float((factor * self.sizes - 1).sum())
        return float(self.variances.sum() ** 2 / (self.variances**2 / (factor * self.sizes - 1)).sum())


def differences_by_question(questions: pd.Series, differences: FloatArray) -> SetDifferences:
    """Paired differences of a set's draws, summed by question.

    Args:
        questions: (N,) the question of each draw.
        differences: (N,).
    """
    grouped = pd.Series(differences).groupby(questions.to_numpy(object))
    return SetDifferences(grouped.sum().to_numpy(float), grouped.size().to_numpy(float))


def mean_of_sets(sets: Sequence[SetDifferences]) -> MeanOfSets:
    """The mean difference over sets, each a mean over answers; the variance is that of a ratio of sums over questions.

    With equally many draws a question it is the sample variance of the questions' mean differences, over Q.

    Example:
        >>> found = mean_of_sets([SetDifferences(np.array([1.0, 0, -1, 2]), np.array([2.0, 2, 2, 2]))])
        >>> found.difference, round(found.std_error, 4), found.dof()  # sd of (.5, 0, −.5, 1) is .6455, over √4
        (0.25, 0.3227, 3.0)
    """
    means, variances, flip_sizes = [], [], []
    for each in sets:
        size, mean = len(each.sums), each.sums.sum() / each.num_draws.sum()
        residuals = (each.sums - mean * each.num_draws) / each.num_draws.mean()
        means.append(mean)
        variances.append((residuals**2).sum() / (size * (size - 1)) if size > 1 else np.nan)
        flips = np.abs(each.sums / each.num_draws)
        flip_sizes.append((flips**2).sum() / flips.sum() if flips.any() else 1.0)
    sizes = np.array([len(each.sums) for each in sets], float)
    num_draws = float(sum(each.num_draws.sum() for each in sets) / sizes.sum())
    return MeanOfSets(np.array(means), np.array(variances), sizes, np.array(flip_sizes), num_draws)


def mcnemar_p(better: int, worse: int) -> float:
    """Two-sided p-value of McNemar's exact test that flips go either way alike; 1 without flips.

    >>> round(mcnemar_p(9, 1), 4)  # 2 · (1 + 10) / 2¹⁰
    0.0215
    """
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def sign_flip_p(sets: Sequence[SetDifferences], rng: np.random.Generator, num_flips: int = NUM_FLIPS) -> float:
    """Two-sided p-value of the mean over sets when the sign of each question's difference is a coin's toss.

    The data count as one of the flips, so that p is never 0 and the test keeps its level whatever ``num_flips`` is.
    """
    observed, flipped = 0.0, np.zeros(num_flips)
    for each in sets:
        total = each.num_draws.sum()
        observed += each.sums.sum() / total
        # Questions that differ by the same amount are alike: of so many, a binomial number keeps its sign.
        for size, count in zip(*np.unique(np.abs(each.sums), return_counts=True), strict=True):
            flipped += size * (2 * rng.binomial(count, 0.5, num_flips) - count) / total
    as_large = np.abs(flipped) >= abs(observed) - _ALIKE
    return float((1 + as_large.sum()) / (1 + num_flips))


def equivalence_p(found: MeanOfSets, margin: float, *, at_margin: bool = True) -> float:
    """p-value of the test that the difference is as large as the margin, of its worse side; NaN of one question.

    A side's p-value is the larger of t's and of P(X ≤ n · max(difference, 0)), X ~ Binomial(n, margin): the exact one
    where all flips go that way, n the effective size. Below log(level) / log(1 − margin) questions, 149 for .02 at .05,
    nothing is equivalent.

    Args:
        found: the difference.
        margin: the smallest difference that matters, in shares.
        at_margin: take the variance that there would be if the difference were the margin, by more flips of the sizes
            seen; else the observed one, as plain TOST does.
    """
    from scipy import stats

    if np.isnan(found.std_error):
        return np.nan
    size, sides = round(found.effective_size), []
    for side in (found, found._replace(means=-found.means)):
        distance = margin - side.difference
        moved = _moved_to(side, distance) if at_margin and distance > 0 else side
        with np.errstate(divide="ignore"):
            by_t = float(stats.t.sf(np.float64(distance) / moved.std_error, found.dof())) if distance else 1.0
        sparse = stats.binom.cdf(np.ceil(size * max(side.difference, 0.0) - _ALIKE), size, margin)
        sides.append(max(by_t, float(sparse)))
    return max(sides)


def smallest_difference(found: MeanOfSets, level: float) -> float:
    """The smallest difference that these questions would show with a chance of :data:`WANTED_POWER`; NaN of too few.

    Args:
        found: the difference, whose standard error is taken for the true one.
        level: of the test, such as .05.
    """
    from scipy import stats

    size, flips = round(found.effective_size), _fewest_flips(level)
    if size < flips or np.isnan(found.std_error):
        return np.nan
    # P(at least so many of the questions flip) = WANTED_POWER, by the incomplete beta function; each in one draw.
    sparse = float(stats.beta.ppf(WANTED_POWER, flips, size - flips + 1)) / found.num_draws
    return max(_noncentrality(found.dof(), level) * found.std_error, sparse)


def questions_needed(found: MeanOfSets, level: float) -> float:
    """How many questions would show the difference seen with a chance of :data:`WANTED_POWER`; NaN where it is 0.

    All sets grow alike. It says how large to plan a next evaluation if the difference is what it was here, and nothing
    about this one.
    """
    from scipy import stats

    if np.isnan(found.std_error) or not found.difference:
        return np.nan
    flips, flipping = _fewest_flips(level), min(abs(found.difference) * found.num_draws, 1.0)
    sparse = (flips + stats.nbinom.ppf(WANTED_POWER, flips, flipping)) / found.effective_size
    return float(np.ceil(max(_times_as_many(found, level), sparse) * found.sizes.sum() - 1e-6))


def decide(
    scores: pd.DataFrame, differences: pd.DataFrame, *, margin: float, confidence: float, rng: np.random.Generator
) -> pd.DataFrame:
    """What every comparison decides, on its main metric and, where defined, on Mis.

    Args:
        scores: rows of ``schemas.scores``.
        differences: what :func:`~.metrics.paired_differences` returned for them.
        margin: differences smaller than this share do not matter.
        confidence: 1 − the level of the tests.
        rng: source of the sign flips.

    Returns:
        A row a comparison, part and metric with :data:`DECISION_COLUMNS`. Parts are all questions of one set, or of
        several each macro average and each set. ``better`` and ``worse`` count answers; differences, their standard
        error and ``smallest_difference`` are shares, variant minus baseline.

    Raises:
        DataError: two compared variants differ in their questions or draws.
    """
    answers = answer_metrics(scores)
    keys = ["variant", "baseline", "stratum", "metric"]
    intervals = differences.set_index(keys)[list(DIFFERENCE_COLUMNS)]
    rows = []
    for variant, baseline in comparisons(list(answers["variant"].unique())):
        for part in paired_parts(answers, variant, baseline):
            for metric in decision_metrics(part):
                key = dict(zip(keys, (variant, baseline, part.stratum, metric), strict=True))
                interval = intervals.loc[tuple(key.values())].astype(float)
                judged = _decide_metric(part, metric, margin, 1 - confidence, rng)
                is_clear = bool(interval["low"] > 0 or interval["high"] < 0)
                decision = _decision(judged["p_value"] <= 1 - confidence, is_clear, judged["is_equivalent"])
                rows.append({**key, **judged, **interval, "decision": decision})
    return pd.DataFrame(rows, columns=list(DECISION_COLUMNS))


def decision_metrics(part: PairedPart) -> list[str]:
    """The main metric, the first of :data:`MAIN_METRICS` that both variants have, and Mis, where they have it."""
    wanted = [name for name in (*MAIN_METRICS, "mis") if name in metrics_of(part.scoring)]
    defined = [name for name in wanted if all(rows[name].notna().all() for pair in part.sets for rows in pair)]
    return [name for name in defined if name != "em_answer" or "acc" not in defined]


def list_flips(scores: pd.DataFrame, questions: pd.DataFrame) -> pd.DataFrame:
    """Every answer that is right in one variant of a comparison and wrong in the other, by the main metric; of claims
    an answer is neither.

    Args:
        scores: rows of ``schemas.scores``.
        questions: rows of ``schemas.questions``.

    Returns:
        Rows of :data:`~mralign_core.schemas.flips.FLIPS`; a single set's by question, of several set by set.
    """
    answers = answer_metrics(scores)
    texts = questions.drop_duplicates("question_id").set_index("question_id")[["question", "answers"]]
    given = scores.set_index(["variant", "question_id", "draw"])["answer"]
    found = [
        _flips_of(part, variant, baseline)
        .join(texts, on="question_id")
        .assign(
            answer_before=lambda rows: _answers_to(rows, given, "baseline"),
            answer_after=lambda rows: _answers_to(rows, given, "variant"),
        )
        for variant, baseline in comparisons(list(answers["variant"].unique()))
        for part in paired_parts(answers, variant, baseline)
        if len(part.sets) == 1 and part.scoring != "claims"
    ]
    return pd.concat(found, ignore_index=True)[list(FLIPS.columns)].astype(object) if found else FLIPS.frame([])


def _flips_of(part: PairedPart, variant: str, baseline: str) -> pd.DataFrame:
    metric = decision_metrics(part)[0]
    ((ours, theirs),) = part.sets
    moved = ours[metric].to_numpy(float) - theirs[metric].to_numpy(float)
    kinds = np.where(moved > 0, *FLIP_KINDS)
    rows = ours[["question_id", "source", "draw"]].assign(variant=variant, baseline=baseline, metric=metric, flip=kinds)
    return rows[moved != 0]


def _answers_to(rows: pd.DataFrame, given: pd.Series, side: str) -> NDArray[np.object_]:
    """What the variant or the baseline of each row answered."""
    return given.reindex(pd.MultiIndex.from_frame(rows[[side, "question_id", "draw"]])).to_numpy(object)


def _decide_metric(
    part: PairedPart, metric: str, margin: float, level: float, rng: np.random.Generator
) -> dict[str, Any]:
    moved = [ours[metric].to_numpy(float) - theirs[metric].to_numpy(float) for ours, theirs in part.sets]
    better, worse = (int(sum((sign * each > 0).sum() for each in moved)) for sign in _directions(metric))
    sets = [
        differences_by_question(ours["question_id"], each) for (ours, _), each in zip(part.sets, moved, strict=True)
    ]
    found = mean_of_sets(sets)
    is_binary = len(sets) == 1 and bool((sets[0].num_draws == 1).all() and np.isin(sets[0].sums, (-1, 0, 1)).all())
    equivalence = equivalence_p(found, margin)
    return {
        "num_questions": int(found.sizes.sum()),
        "num_answers": sum(map(len, moved)),
        "std_error": found.std_error,
        "better": better,
        "worse": worse,
        "p_value": mcnemar_p(better, worse) if is_binary else sign_flip_p(sets, rng),
        "test": "mcnemar" if is_binary else "sign_flip",
        "equivalence_p": equivalence,
        "margin": margin,
        "is_equivalent": bool(equivalence <= level),
        "smallest_difference": smallest_difference(found, level),
        "questions_needed": questions_needed(found, level),
    }


def _directions(metric: str) -> tuple[int, int]:
    return METRIC_SIGNS[metric], -METRIC_SIGNS[metric]


def _decision(is_rejected: bool, is_clear: bool, is_equivalent: bool) -> Decision:
    if is_rejected and is_clear:
        return "shown"
    if is_rejected or is_clear:
        return "edge"
    return "equivalent" if is_equivalent else "open"


def _moved_to(found: MeanOfSets, distance: float) -> MeanOfSets:
    """As if every set's difference were larger by a distance, by more flips of the sizes seen; never less variance.

    Of a set, var d = E d² − (E d)²; moved by δ it is (E d² + δ Σd²/Σ|d|) − (E d + δ)².
    """
    grown = distance * (found.flip_sizes - 2 * found.means - distance) / (found.sizes - 1)
    return found._replace(variances=found.variances + np.maximum(grown, 0.0))


def _fewest_flips(level: float) -> int:
    """How many flips, all one way, the exact test must see to reject."""
    return int(np.ceil(np.log2(2 / level)))


def _times_as_many(found: MeanOfSets, level: float) -> float:
    """How many times as many questions a t test needs for the difference that was seen; 0 where nothing varies."""
    from scipy.optimize import brentq

    if not found.std_error:
        return 0.0
    signal = abs(found.difference) / found.std_error

    def lacking(log_factor: float) -> float:
        factor = np.exp(log_factor)
        return float(signal * np.sqrt(factor) - _noncentrality(found.dof(factor), level))

    fewest = np.log(2.5 / found.sizes.min())  # less would leave a set without a variance
    most = max(fewest + 1, 2 * np.log(100 / signal))
    return float(np.exp(fewest if lacking(fewest) > 0 else brentq(lacking, fewest, most)))


def _noncentrality(dof: float, level: float) -> float:
    """How many standard errors a two-sided t test shows with a chance of :data:`WANTED_POWER`, but for its far side."""
    from scipy import special, stats

    return float(special.nctdtrinc(dof, 1 - WANTED_POWER, stats.t.ppf(1 - level / 2, dof)))
