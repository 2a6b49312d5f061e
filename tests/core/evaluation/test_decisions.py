"""What a paired comparison decides: equal to statsmodels where it has the test, errors counted in simulations."""

import numpy as np
import pandas as pd
import pytest
from sample_run import as_scores, random_scores, score
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from mralign_core.evaluation.decisions import (
    DECISION_COLUMNS,
    SetDifferences,
    decide,
    equivalence_p,
    list_flips,
    mcnemar_p,
    mean_of_sets,
    questions_needed,
    sign_flip_p,
    smallest_difference,
)
from mralign_core.evaluation.metrics import MACRO, bootstrap_interval, paired_differences
from mralign_core.schemas.flips import FLIPS

LEVEL = 0.05


def set_of(values, num_draws=1):
    """Sums over draws of one set."""
    sums = np.asarray(values, float)
    return SetDifferences(sums, np.full(len(sums), float(num_draws)))


def simulated(rng, num_questions, up, down, num_draws=1):
    """Questions whose draws flip with probabilities of mean ``up`` and ``down``, alike within a question."""
    spread = 0.3
    share_up, share_down = (rng.beta(mean / spread, (1 - mean) / spread, num_questions) for mean in (up, down))
    if num_draws == 1:
        share_up, share_down = np.full(num_questions, up), np.full(num_questions, down)
    moved = rng.random((num_questions, num_draws))
    sums = (moved < share_up[:, None]).sum(axis=1) - (moved > 1 - share_down[:, None]).sum(axis=1)
    return set_of(sums, num_draws)


def rejected(p_values):
    return float(np.mean(np.array(p_values) <= LEVEL))


def most(num_simulations, share=LEVEL, sigmas=3.5):
    """A share of rejections that a test of this level exceeds once in some 4,000 times."""
    return share + sigmas * np.sqrt(share * (1 - share) / num_simulations)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (9, 1), (1, 9), (17, 12), (60, 91)])
def test_mcnemar_equals_statsmodels(better, worse):
    expected = mcnemar([[50, better], [worse, 40]], exact=True).pvalue if better + worse else 1.0
    assert mcnemar_p(better, worse) == pytest.approx(expected, abs=1e-12)


def test_sign_flips_of_single_draws_are_mcnemars_test():
    found = sign_flip_p([set_of([1] * 17 + [-1] * 7 + [0] * 60)], np.random.default_rng(0), 200_000)
    assert found == pytest.approx(mcnemar_p(17, 7), abs=4 * np.sqrt(0.06 * 0.94 / 200_000))


def test_sign_flips_equal_scipys_permutation_test():
    rng = np.random.default_rng(1)
    sums = rng.integers(-3, 5, 12).astype(float)
    exact = stats.permutation_test((sums,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p([set_of(sums, 4)], rng, 200_000) == pytest.approx(exact.pvalue, abs=0.005)


def test_sign_flips_of_two_sets_weigh_sets_alike():
    """Ten of 10 questions of a small set count as much as ten of 10 % of a set of 100."""
    small, large = set_of([1] * 3 + [0] * 7), set_of([-1] * 30 + [0] * 70)
    assert sign_flip_p([small, large], np.random.default_rng(0)) == 1.0
    assert sign_flip_p([large], np.random.default_rng(0)) < 0.001


@pytest.mark.parametrize("margin", [0.02, 0.04])
def test_equivalence_equals_statsmodels_where_flips_are_many(margin):
    values = np.repeat([1.0, -1.0, 0.0], [160, 150, 1190])
    expected = ttost_paired(values, np.zeros(1500), -margin, margin)[0]
    assert 1e-6 < expected < 0.2
    found = mean_of_sets([set_of(values)])
    assert equivalence_p(found, margin, at_margin=False) == pytest.approx(expected, rel=1e-6)
    assert expected < equivalence_p(found, margin) < 2 * expected, "of the margin's variance, a little larger"


@pytest.mark.parametrize(("num_questions", "is_equivalent"), [(1, False), (10, False), (148, False), (149, True)])
def test_nothing_flipped_is_equivalent_only_of_enough_questions(num_questions, is_equivalent):
    """0.98¹⁴⁹ < .05: the exact bound that is known as the rule of three."""
    found = mean_of_sets([set_of(np.zeros(num_questions))])
    assert bool(equivalence_p(found, 0.02) <= LEVEL) == is_equivalent


@pytest.mark.parametrize("num_draws", [1, 4])
def test_smallest_difference_and_questions_needed_equal_statsmodels(num_draws):
    rng = np.random.default_rng(3)
    data = simulated(rng, 400, 0.2, 0.12, num_draws)
    values = data.sums / num_draws
    found = mean_of_sets([data])
    effect = TTestPower().solve_power(nobs=400, alpha=LEVEL, power=0.8)
    assert smallest_difference(found, LEVEL) == pytest.approx(effect * values.std(ddof=1), rel=1e-4)
    needed = TTestPower().solve_power(effect_size=abs(values.mean()) / values.std(ddof=1), alpha=LEVEL, power=0.8)
    assert questions_needed(found, LEVEL) == pytest.approx(np.ceil(needed), abs=1)


def test_what_can_show_nothing_says_so():
    few, same = mean_of_sets([set_of([1, 1, 1, 0, 0])]), mean_of_sets([set_of(np.zeros(50))])
    assert np.isnan(smallest_difference(few, LEVEL)), "five flips have p = .0625 at best"
    assert 0.1 < smallest_difference(same, LEVEL) < 0.2, "six of 50 must flip one way"
    assert smallest_difference(mean_of_sets([set_of(np.zeros(50), 4)]), LEVEL) == pytest.approx(
        smallest_difference(same, LEVEL) / 4
    ), "in one draw of four"
    assert np.isnan(questions_needed(same, LEVEL))
    assert questions_needed(mean_of_sets([set_of(np.ones(9))]), LEVEL) == 6, "all flip, and six are enough"
    assert stats.binom.sf(5, 77, 0.1) < 0.8 < stats.binom.sf(5, 78, 0.1)
    assert questions_needed(mean_of_sets([set_of([1] * 5 + [0] * 45)]), LEVEL) == 78
    alone = mean_of_sets([set_of([1])])
    assert (
        np.isnan(alone.std_error)
        and np.isnan(smallest_difference(alone, LEVEL))
        and np.isnan(equivalence_p(alone, 0.02))
    )


def test_unequal_draws_are_a_ratio_whose_variance_is_right():
    rng = np.random.default_rng(4)
    draws = rng.integers(1, 6, (4000, 60)).astype(float)
    sums = rng.binomial(draws.astype(int), rng.beta(2, 2, (4000, 60))).astype(float)
    found = [mean_of_sets([SetDifferences(*rows)]) for rows in zip(sums, draws, strict=True)]
    spread = np.std([each.difference for each in found])
    assert np.sqrt(np.mean([each.std_error**2 for each in found])) == pytest.approx(spread, rel=0.04)


def test_the_mean_of_sets_has_the_mean_of_their_variances_over_their_number():
    rng = np.random.default_rng(5)
    sets = [simulated(rng, size, 0.2, 0.1, 3) for size in (30, 80, 200)]
    found, alone = mean_of_sets(sets), [mean_of_sets([each]) for each in sets]
    assert found.difference == pytest.approx(np.mean([each.difference for each in alone]))
    assert found.std_error**2 == pytest.approx(np.mean([each.std_error**2 for each in alone]) / 3)
    variances = np.array([each.std_error**2 for each in alone])
    welch = variances.sum() ** 2 / (variances**2 / np.array([29, 79, 199])).sum()
    assert found.dof() == pytest.approx(welch)


NUM = 1500
"""Simulated evaluations of each kind."""


@pytest.mark.parametrize("num_draws", [1, 4])
@pytest.mark.parametrize(("num_questions", "share"), [(50, 0.03), (240, 0.1)])
def test_the_paired_test_keeps_its_level(num_questions, share, num_draws):
    rng = np.random.default_rng([6, num_questions, num_draws])
    data = [simulated(rng, num_questions, share, share, num_draws) for _ in range(NUM)]
    exact = [mcnemar_p(int((one.sums > 0).sum()), int((one.sums < 0).sum())) for one in data]
    p_values = exact if num_draws == 1 else [sign_flip_p([one], rng, 999) for one in data]
    assert rejected(p_values) <= most(NUM)
    if share == 0.1:
        assert rejected(p_values) > 0.02, "a test that never rejects keeps any level"


def test_the_paired_test_of_a_macro_average_keeps_its_level():
    rng = np.random.default_rng(7)
    data = [[simulated(rng, size, 0.08, 0.08, 2) for size in (40, 150, 400)] for _ in range(NUM)]
    assert 0.03 < rejected([sign_flip_p(sets, rng, 999) for sets in data]) <= most(NUM)


@pytest.mark.parametrize("num_draws", [1, 4])
@pytest.mark.parametrize(("num_questions", "down"), [(160, 0.001), (240, 0.005), (600, 0.005), (2000, 0.05)])
def test_equivalence_of_what_differs_by_the_margin_is_seldom_declared(num_questions, down, num_draws):
    rng = np.random.default_rng([8, num_questions, num_draws])
    data = [mean_of_sets([simulated(rng, num_questions, down + 0.02, down, num_draws)]) for _ in range(NUM)]
    assert rejected([equivalence_p(found, 0.02) for found in data]) <= most(NUM)


def test_equivalence_of_a_macro_average_that_differs_by_the_margin_is_seldom_declared():
    rng = np.random.default_rng(15)
    moved = [(120, 0.05, 0.0), (300, 0.03, 0.02), (600, 0.02, 0.02)]  # 5, 1 and 0 points: 2 on average
    data = [
        mean_of_sets([simulated(rng, size, up + 1e-9, down + 1e-9) for size, up, down in moved]) for _ in range(NUM)
    ]
    assert rejected([equivalence_p(found, 0.02) for found in data]) <= most(NUM)


def test_t_alone_would_declare_it_far_too_often():
    """What the exact side is there for."""
    rng = np.random.default_rng(9)
    data = [mean_of_sets([simulated(rng, 60, 0.02, 1e-9)]) for _ in range(NUM)]
    by_t = [not one.std_error or (0.02 - one.difference) / one.std_error > stats.t.ppf(0.95, 59) for one in data]
    assert np.mean(by_t) > 0.25 and rejected([equivalence_p(found, 0.02) for found in data]) == 0


def test_equivalence_of_what_is_equal_is_found_where_questions_are_many():
    rng = np.random.default_rng(10)
    found = [mean_of_sets([simulated(rng, 1200, 0.02, 0.02)]) for _ in range(200)]
    assert rejected([equivalence_p(each, 0.02) for each in found]) > 0.8


@pytest.mark.parametrize(("num_questions", "share"), [(240, 0.01), (600, 0.05)])
def test_the_smallest_difference_is_shown_about_four_times_in_five(num_questions, share):
    rng = np.random.default_rng([11, num_questions])
    gained = 0.05
    for _ in range(30):  # the variance depends on the difference
        values = np.repeat(
            [1.0, -1.0, 0.0], np.round(1e4 * np.array([share + gained, share, 1 - 2 * share - gained])).astype(int)
        )
        found = mean_of_sets([set_of(values)])
        gained = smallest_difference(found._replace(variances=found.variances * 1e4 / num_questions,
                                                    sizes=np.array([float(num_questions)])), LEVEL)  # fmt: skip
    data = [simulated(rng, num_questions, share + gained, share) for _ in range(NUM)]
    shown = rejected([mcnemar_p(int((one.sums > 0).sum()), int((one.sums < 0).sum())) for one in data])
    assert 0.72 < shown < 0.84


@pytest.mark.parametrize(("num_questions", "num_draws", "least"), [(60, 1, 0.925), (240, 1, 0.93), (240, 4, 0.92)])
def test_the_bootstrap_interval_covers_the_truth(num_questions, num_draws, least):
    rng = np.random.default_rng([12, num_questions, num_draws])
    covered = []
    for _ in range(500):
        one = simulated(rng, num_questions, 0.15, 0.1, num_draws)
        ((low,), (high,)) = bootstrap_interval(
            one.sums[:, None], one.num_draws, num_resamples=300, confidence=0.95, rng=rng
        )
        covered.append(low <= 0.05 <= high)
    assert least < np.mean(covered) < 0.975


def decisions_of(scores, **options):
    wanted = {"margin": 0.02, "confidence": 0.95} | options
    differences = paired_differences(
        scores, num_resamples=300, confidence=wanted["confidence"], rng=np.random.default_rng(0)
    )
    return decide(scores, differences, rng=np.random.default_rng(1), **wanted)


def test_decisions_of_answers_written_by_hand():
    """30 questions: training rights 9 and wrongs 1, in thinking and answer."""
    rows = []
    for number in range(30):
        before, after = number >= 9, number != 9
        rows += [score("on", f"q{number:02}", before, before), score("kto", f"q{number:02}", after, after)]
    acc, mis = decisions_of(as_scores(rows)).to_dict("records")
    assert list(acc) == list(DECISION_COLUMNS) and (acc["metric"], mis["metric"]) == ("acc", "mis")
    assert (acc["better"], acc["worse"], acc["test"], acc["decision"]) == (9, 1, "mcnemar", "shown")
    assert acc["difference"] == pytest.approx(8 / 30) and acc["p_value"] == pytest.approx(22 / 1024)
    assert (mis["better"], mis["worse"], mis["p_value"], mis["decision"]) == (0, 0, 1.0, "open")
    assert not mis["is_equivalent"] and mis["num_questions"] == 30 == mis["num_answers"]


def test_fewer_misses_are_better():
    rows = [score("on", f"q{n}", True, False) for n in range(20)] + [
        score("kto", f"q{n}", True, True) for n in range(20)
    ]
    _, mis = decisions_of(as_scores(rows)).to_dict("records")
    assert (mis["difference"], mis["better"], mis["worse"]) == (-1.0, 20, 0)


def test_draws_are_tested_by_question_and_decisions_follow_the_margin():
    rng = np.random.default_rng(13)
    scores = random_scores(rng, ("off", "on", "kto", "mr_align"), 60)
    found = decisions_of(scores).set_index(["variant", "baseline", "metric"])
    assert set(found["stratum"]) == {"(all)"}, "strata of one set are no comparison of their own"
    assert found.loc[("mr_align", "on", "acc")]["decision"] == "shown"
    assert found.loc[("kto", "on", "acc")][["test", "p_value", "decision"]].tolist() == ["sign_flip", 1.0, "open"]
    wider = decisions_of(scores, margin=0.1).set_index(["variant", "baseline", "metric"])
    assert wider.loc[("kto", "on", "acc")]["decision"] == "equivalent"


def two_sets(num=40):
    rng = np.random.default_rng(14)
    rows = []
    for source, scoring in (("nq", "exact_match"), ("sciq", "exact_match"), ("gsm8k", "number")):
        for number in range(num):
            for variant in ("on", "kto"):
                right = bool(rng.random() < 0.5)
                named = None if scoring == "number" else right
                rows.append(score(variant, f"{source}{number}", named, right, source=source, scoring=scoring))
    return as_scores(rows)


def test_several_sets_are_decided_on_average_and_each():
    found = decisions_of(two_sets())
    acc = found[found["metric"] != "mis"]
    assert list(acc["stratum"]) == [f"{MACRO}nq and sciq", "nq", "sciq", "gsm8k"]
    assert list(acc["metric"]) == ["acc", "acc", "acc", "em_answer"]
    assert list(acc["test"]) == ["sign_flip", "mcnemar", "mcnemar", "mcnemar"]
    assert list(acc["num_questions"]) == [80, 40, 40, 40]


def questions_of(scores):
    ids = sorted(set(scores["question_id"]))
    return pd.DataFrame(
        {"question_id": ids, "question": [f"Which {one}?" for one in ids], "answers": [["Oslo"]] * len(ids)}
    )


def test_flips_can_be_read_and_add_up_to_the_counts():
    scores = two_sets()
    scores.loc[scores.index[0], "answer"] = None
    flips = FLIPS.require(list_flips(scores, questions_of(scores)))
    found = decisions_of(scores)
    for source in ("nq", "sciq", "gsm8k"):
        row = found[(found["stratum"] == source) & (found["metric"] != "mis")].iloc[0]
        kinds = flips.loc[flips["source"] == source, "flip"].value_counts()
        assert kinds.to_dict() == {"wrong to right": row["better"], "right to wrong": row["worse"]}
    first = flips.iloc[0]
    assert first["question"] == f"Which {first['question_id']}?" and first["answers"] == ["Oslo"]
    gained = flips[(flips["flip"] == "wrong to right") & (flips["question_id"] != scores["question_id"].iloc[0])]
    assert set(zip(gained["answer_before"], gained["answer_after"], strict=True)) == {("Bergen", "Oslo")}


def test_without_a_comparison_nothing_is_decided():
    scores = as_scores([score("on", "q", True, True)])
    assert decisions_of(scores).empty and list_flips(scores, questions_of(scores)).empty
