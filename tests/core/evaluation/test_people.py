"""What people say of a judge: κ as scikit-learn has it, and corrected intervals that cover the truth."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from mralign_core.errors import DataError
from mralign_core.evaluation.people import (
    FEWEST,
    corrected_differences,
    corrected_mean,
    corrected_rates,
    judge_agreement,
    questions_for_people,
)

NUM = 1000
"""Simulations of each kind."""
LEVEL = 0.95


def judge(rng, truth, sensitivity, specificity):
    """What a judge with these error rates says."""
    return np.where(truth, rng.random(truth.shape) < sensitivity, rng.random(truth.shape) >= specificity)


def covered(rng, *, rate, sensitivity, specificity, num_people, num_questions=1000):
    """The share of intervals that cover the true rate, and their mean width."""
    intervals = []
    for _ in range(NUM):
        truth = rng.random(num_questions) < rate
        says = judge(rng, truth, sensitivity, specificity).astype(float)
        sample = says[:num_people]
        intervals.append(
            corrected_mean(truth[:num_people].astype(float), sample, sample, says, centre=0.5, confidence=LEVEL)[1:3]
        )
    low, high = np.array(intervals).T
    return float(np.mean((low <= rate) & (rate <= high))), float(np.mean(high - low))


@pytest.mark.parametrize("num_people", [100, 200, 400])
@pytest.mark.parametrize(
    ("rate", "sensitivity", "specificity"), [(0.5, 0.8, 0.85), (0.3, 0.7, 0.8), (0.7, 0.9, 0.75), (0.2, 0.95, 0.85)]
)
def test_intervals_cover_the_truth_in_93_to_97_of_100(rate, sensitivity, specificity, num_people):
    rng = np.random.default_rng([1, num_people, round(100 * rate)])
    share, width = covered(rng, rate=rate, sensitivity=sensitivity, specificity=specificity, num_people=num_people)
    assert 0.93 <= share <= 0.97
    assert width < 2 * 1.96 * np.sqrt(rate * (1 - rate) / num_people), "no wider than from people alone"


@pytest.mark.parametrize(("num_people", "sensitivity"), [(20, 0.8), (50, 0.98), (100, 1.0)])
def test_small_samples_and_judges_that_hardly_err_have_too_wide_intervals_and_never_too_narrow(num_people, sensitivity):
    rng = np.random.default_rng([2, num_people])
    share, _ = covered(rng, rate=0.5, sensitivity=sensitivity, specificity=sensitivity, num_people=num_people)
    assert share > 0.95


def test_without_a_doubt_intervals_of_a_good_judge_would_be_too_narrow():
    """What the two added judgements are there for: 50 answers on which it errs seldom."""
    rng = np.random.default_rng(3)
    plain = []
    for _ in range(NUM):
        truth = rng.random(1000) < 0.9
        says = judge(rng, truth, 0.98, 0.98)
        rest = truth[:50].astype(float) - says[:50]
        error = np.sqrt(rest.var(ddof=1) / 50 + says.var() / 1000)
        plain.append(abs(says.mean() + rest.mean() - 0.9) < 2.01 * error)
    guarded, _ = covered(rng, rate=0.9, sensitivity=0.98, specificity=0.98, num_people=50)
    assert np.mean(plain) < 0.9 < 0.93 < guarded


def test_a_good_judge_saves_people_much_work_and_a_useless_one_costs_nothing():
    rng = np.random.default_rng(4)
    alone = 2 * 1.96 * np.sqrt(0.25 / 200)
    _, good = covered(rng, rate=0.5, sensitivity=0.97, specificity=0.97, num_people=200)
    _, useless = covered(rng, rate=0.5, sensitivity=0.5, specificity=0.5, num_people=200)
    assert good < 0.6 * alone and useless < 1.05 * alone


def cells(values, variant="on", source="s", draws=1):
    """Rows of verdicts: (questions, draws) of one variant."""
    values = np.asarray(values, bool).reshape(-1, draws)
    return pd.DataFrame(
        [
            {
                "variant": variant,
                "question_id": f"{source}{row}",
                "draw": draw,
                "source": source,
                "verdict": values[row, draw],
            }
            for row in range(len(values))
            for draw in range(draws)
        ]
    )


def test_intervals_over_draws_and_of_differences_cover_the_truth():
    """Four draws a question, alike within it; people judge one draw of both variants."""
    rng = np.random.default_rng(5)
    hits, rates = [], []
    for _ in range(NUM):
        share = rng.beta(1, 1, (300, 1))
        before, after = (rng.random((300, 4)) < chance for chance in (share, share + 0.2 * (1 - share)))
        says = [judge(rng, truth, 0.85, 0.8).astype(float) for truth in (before, after)]
        judged, people = says[1] - says[0], after[:150, 0].astype(float) - before[:150, 0]
        found = corrected_mean(
            people, judged[:150, 0], judged[:150].mean(axis=1), judged.mean(axis=1), centre=0.0, confidence=LEVEL
        )
        hits.append(found.low <= 0.1 <= found.high)
        one = corrected_mean(
            after[:150, 0].astype(float), says[1][:150, 0], says[1][:150].mean(axis=1), says[1].mean(axis=1),
            centre=0.5, confidence=LEVEL,
        )  # fmt: skip
        rates.append(one.low <= 0.6 <= one.high)
    assert 0.93 <= np.mean(hits) <= 0.97 and 0.93 <= np.mean(rates) <= 0.97


def test_people_who_judged_everything_are_the_answer():
    rng = np.random.default_rng(6)
    truth = rng.random(200) < 0.6
    says = judge(rng, truth, 0.7, 0.7).astype(float)
    found = corrected_mean(truth.astype(float), says, says, says, centre=0.5, confidence=LEVEL)
    assert found.estimate == pytest.approx(truth.mean())
    assert found.high - found.low == pytest.approx(2 * 1.972 * truth.std() / np.sqrt(200), rel=0.03)


@pytest.mark.parametrize("half_width", [0.03, 0.05])
def test_as_many_as_advised_have_intervals_of_that_width(half_width):
    rng = np.random.default_rng(7)
    truth = rng.random(4000) < 0.6
    says = judge(rng, truth, 0.9, 0.85).astype(float)

    def found(num):
        return corrected_mean(truth[:num].astype(float), says[:num], says[:num], says, centre=0.5, confidence=LEVEL)

    needed = questions_for_people(found(300), half_width, 4000, LEVEL)
    achieved = found(int(needed))
    assert (achieved.high - achieved.low) / 2 == pytest.approx(half_width, rel=0.12)
    assert np.isnan(questions_for_people(found(300), 0.001, 4000, LEVEL))


def test_kappa_equals_scikit_learns_and_errors_are_counted():
    rng = np.random.default_rng(8)
    truth = rng.random(120) < 0.6
    says = judge(rng, truth, 0.8, 0.9)
    both = judge_agreement(cells(says), cells(truth).drop(columns="source").iloc[:90], LEVEL, rng)
    assert both.num_answers == 90
    assert both.kappa == pytest.approx(cohen_kappa_score(truth[:90], says[:90]))
    assert both.kappa_low < both.kappa < both.kappa_high
    assert both.misses == pytest.approx((~says[:90][truth[:90]]).mean())
    assert both.false_alarms == pytest.approx(says[:90][~truth[:90]].mean())


def test_rates_and_differences_of_variants_by_set():
    rng = np.random.default_rng(9)
    frames, people = [], []
    for source in ("nq", "sciq"):
        before = rng.random((60, 2)) < 0.5
        after = before | (rng.random((60, 2)) < 0.4)
        for variant, truth in (("on", before), ("kto", after)):
            frames.append(cells(judge(rng, truth, 0.9, 0.9), variant, source, 2))
            people.append(cells(truth, variant, source, 2).query("draw == 0").head(40))
    judged, sample = pd.concat(frames, ignore_index=True), pd.concat(people, ignore_index=True)
    rates = corrected_rates(judged, sample, confidence=LEVEL, half_width=0.1).set_index(["variant", "source"])
    assert len(rates) == 4 and (rates["num_people"] == 40).all() and (rates["num_questions"] == 60).all()
    moved = corrected_differences(judged, sample, [("kto", "on")], confidence=LEVEL, half_width=0.1)
    assert list(moved["source"]) == ["nq", "sciq"]
    for row in moved.to_dict("records"):
        judge_rates = [rates.loc[(name, row["source"]), "judge_rate"] for name in ("kto", "on")]
        assert row["judge_rate"] == pytest.approx(judge_rates[0] - judge_rates[1])
        assert row["low"] < row["corrected"] < row["high"]
    reordered = corrected_rates(
        judged.sample(frac=1, random_state=0), sample.sample(frac=1, random_state=1), confidence=LEVEL, half_width=0.1
    )
    pd.testing.assert_frame_equal(reordered.set_index(["variant", "source"]).loc[rates.index], rates)


def test_too_few_have_no_interval_and_no_overlap_is_refused():
    judged = cells(np.ones(30))
    few = corrected_rates(judged, judged.head(FEWEST - 1), confidence=LEVEL, half_width=0.1).iloc[0]
    assert few["corrected"] == 1 and np.isnan(few["low"]) and np.isnan(few["needed"])
    with pytest.raises(DataError, match="none of the 30 answers"):
        corrected_rates(judged, judged.assign(variant="kto"), confidence=LEVEL, half_width=0.1)
    with pytest.raises(DataError, match="twice"):
        corrected_rates(judged, pd.concat([judged, judged.head(1)]), confidence=LEVEL, half_width=0.1)
