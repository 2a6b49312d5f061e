"""The area under the ROC curve against scikit-learn's, by pairs, and the number of questions against its formula."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm
from sklearn.metrics import roc_auc_score

from mralign_core.method import FloatArray
from mralign_core.method.discrimination import area_under_curve, questions_to_show


@pytest.mark.parametrize("levels", [3, 1000])
def test_it_equals_scikit_learn_and_mann_whitney_with_ties_or_without(levels):
    rng = np.random.default_rng(levels)
    for _ in range(20):
        size = int(rng.integers(2, 60))
        scores: FloatArray = (rng.integers(levels, size=size) / 7 - 3).astype(np.float64)
        positive = rng.random(size) < 0.4
        positive[:2] = [True, False]
        area = float(area_under_curve(scores, positive, np.zeros(size, dtype=int))[0])
        assert area == pytest.approx(roc_auc_score(positive, scores))
        u = mannwhitneyu(scores[positive], scores[~positive]).statistic
        assert area == pytest.approx(u / (positive.sum() * (~positive).sum()))


def test_within_strata_only_pairs_of_one_stratum_count():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(5, size=40).astype(np.float64), rng.random(40) < 0.5
    strata = rng.integers(3, size=40)
    pairs = [(a, b) for a in np.flatnonzero(positive) for b in np.flatnonzero(~positive) if strata[a] == strata[b]]
    won = [(scores[a] > scores[b]) + 0.5 * (scores[a] == scores[b]) for a, b in pairs]
    assert area_under_curve(scores, positive, strata)[0] == pytest.approx(np.mean(won))


def test_resamples_are_areas_of_the_traces_as_often_as_they_were_drawn():
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(6, size=30).astype(np.float64), rng.random(30) < 0.5
    strata = rng.integers(2, size=30)
    times = rng.integers(3, size=(5, 30))
    found = area_under_curve(scores, positive, strata, times)
    for row, area in zip(times, found, strict=True):
        drawn = np.repeat(np.arange(30), row)
        assert area == pytest.approx(area_under_curve(scores[drawn], positive[drawn], strata[drawn])[0])


def test_without_a_pair_there_is_no_area():
    one_side = area_under_curve(np.array([1.0, 2.0]), np.array([True, True]), np.zeros(2, dtype=int))
    apart = area_under_curve(np.array([1.0, 2.0]), np.array([True, False]), np.array([0, 1]))
    assert np.isnan(one_side).all() and np.isnan(apart).all()


def test_at_the_number_of_questions_it_is_shown_with_the_power_asked_for():
    number = questions_to_show(0.58, 100, 0.05, 0.04, significance=0.05, power=0.8)
    assert number
    shrink = np.sqrt(100 / number)
    bound = 0.5 + norm.ppf(0.975) * 0.05 * shrink
    assert norm.sf(bound, loc=0.58, scale=0.04 * shrink) == pytest.approx(0.8, abs=0.005)
    assert questions_to_show(0.5, 100, 0.05, 0.04, significance=0.05, power=0.8) is None
