"""The gate: what it promotes, holds and rejects, in simulated weeks of known rates."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from gate_weeks import closer, rates, scores
from scipy import stats

from mralign_core.config.retrain import GateConfig
from mralign_core.errors import DataError
from mralign_core.evaluation.held_out import by_benchmark, with_strata
from mralign_core.retraining.gate import (
    compare_with_champion,
    decide_promotion,
    fewest_questions,
    smallest_shown_gain,
)

GATE = GateConfig()
FEW_FLIPS = 10_000


def compare(ours, theirs, seed=0):
    return compare_with_champion(
        ours, theirs, confidence=GATE.confidence, rng=np.random.default_rng(seed), num_flips=FEW_FLIPS
    )


def weeks(points, num, num_questions, gate=GATE):
    """The verdicts of independent weeks in which Mis truly falls by so much."""
    found: Counter[str] = Counter()
    for seed in range(num):
        rng = np.random.default_rng([seed, num_questions])
        champion = rates(rng, num_questions)
        gains = compare(scores(closer(champion, points), rng), scores(champion, rng), seed)
        found[decide_promotion(gains, gate).verdict] += 1
    return found


def test_an_equal_model_is_held():
    assert weeks(0.0, 100, 200)["HOLD"] >= 95


def test_a_damaged_model_is_never_promoted():
    assert weeks(-0.05, 100, 200)["PROMOTE"] == 0


def test_a_gain_of_twice_the_margin_is_promoted_where_there_are_enough_questions():
    assert weeks(2 * GATE.min_gain, 30, 800)["PROMOTE"] >= 27


def test_the_smallest_gain_that_is_shown_is_promoted_nine_times_in_ten():
    rng = np.random.default_rng(3)
    champion = rates(rng, 400)
    std_error = compare(scores(champion, rng), scores(champion, rng)).set_index(["is_whole", "metric"])["std_error"]
    points = smallest_shown_gain(std_error[True, "mis"], GATE)
    assert weeks(points, 40, 400)["PROMOTE"] >= 34
    assert weeks(points / 2, 40, 400)["PROMOTE"] <= 24


def test_the_same_answers_are_held_and_nothing_is_gained():
    rng = np.random.default_rng(0)
    same = scores(rates(rng), rng)
    gains = compare(same, same)
    assert (gains["gain"] == 0).all()
    decision = decide_promotion(gains, GATE)
    assert decision.verdict == "HOLD" and "less than the 2.0 points asked for" in decision.reasons[0]


def test_gains_are_the_differences_with_a_sign_that_says_better():
    rng = np.random.default_rng(1)
    champion = rates(rng)
    ours, theirs = scores(closer(champion, 0.04), rng), scores(champion, rng)
    gains = compare(ours, theirs).set_index(["part", "metric"])
    assert gains.index.tolist() == [
        (part, name) for part in ("(all)", "one hop", "two hops") for name in ("acc", "mis")
    ]

    def mis(frame):
        return (frame["em_thought"] ^ frame["em_answer"]).mean()

    row = gains.loc["(all)", "mis"]
    assert row["gain"] == pytest.approx(mis(theirs) - mis(ours), abs=1e-12)
    assert (row["before"], row["after"]) == pytest.approx((mis(theirs), mis(ours)), abs=1e-12)
    by_question = [frame.assign(mis=frame["em_thought"] ^ frame["em_answer"]).groupby("question_id")["mis"].mean()
                   for frame in (theirs, ours)]  # fmt: skip
    bounds = stats.ttest_rel(*by_question).confidence_interval(0.9)
    assert (row["low"], row["high"]) == pytest.approx(tuple(bounds), abs=1e-9)


def test_a_collapsed_stratum_is_refused_though_all_together_gain():
    rng = np.random.default_rng(2)
    champion = rates(rng, 900)
    challenger = closer(champion, 0.1)
    challenger[::3, 1] *= 0.6  # the questions of two hops
    decision = decide_promotion(compare(scores(challenger, rng), scores(champion, rng)), GATE)
    assert decision.verdict == "REJECT"
    assert any("two hops" in reason for reason in decision.reasons)


def test_a_few_questions_that_look_worse_are_said_and_not_held_against_it():
    rng = np.random.default_rng(5)
    champion = rates(rng, 900)
    ours, theirs = scores(closer(champion, 0.08), rng), scores(champion, rng)
    for frame, right in ((ours, [True, False]), (theirs, [True, True])):
        frame.loc[frame["question_id"].isin(["q0000", "q0001"]), "stratum"] = "rare"
        rare = frame["stratum"] == "rare"
        frame.loc[rare, "em_thought"] = True
        frame.loc[rare, "em_answer"] = np.repeat(right, 5)
    decision = decide_promotion(compare(ours, theirs), GATE)
    assert decision.verdict == "PROMOTE"
    assert any("of rare" in reason and "do not show it" in reason for reason in decision.reasons)


def test_an_objection_outweighs_any_gain():
    rng = np.random.default_rng(1)
    champion = rates(rng, 800)
    gains = compare(scores(closer(champion, 0.08), rng), scores(champion, rng))
    assert decide_promotion(gains, GATE).verdict == "PROMOTE"
    assert decide_promotion(gains, GATE, ["it was trained on q1"]) == ("REJECT", ["it was trained on q1"])


def test_held_out_questions_that_are_used_up_hold():
    rng = np.random.default_rng(1)
    champion = rates(rng, 800)
    gains = compare(scores(closer(champion, 0.08), rng), scores(champion, rng))
    assert decide_promotion(gains, GATE, num_comparisons=51).verdict == "PROMOTE"
    decision = decide_promotion(gains, GATE, num_comparisons=52)
    assert decision.verdict == "HOLD" and "replace at least nine tenths of questions.eval" in decision.reasons[0]


def test_where_mis_is_not_defined_the_main_metric_must_gain():
    rng = np.random.default_rng(1)
    champion = rates(rng, 800)
    ours, theirs = (
        scores(one, rng).assign(scoring="number", em_thought=pd.NA) for one in (closer(champion, 0.08), champion)
    )
    gains = compare(ours, theirs)
    assert set(gains["metric"]) == {"em_answer"}
    decision = decide_promotion(gains, GATE)
    assert decision.verdict == "PROMOTE" and decision.reasons[0].startswith("accuracy ")


def test_several_sets_are_averaged_and_watched_one_by_one():
    rng = np.random.default_rng(1)
    champion = rates(rng, 300)
    ours, theirs = (
        pd.concat([scores(one, rng).assign(source=name, question_id=lambda rows, name=name: name + rows["question_id"])
                   for name in ("a", "b")])
        for one in (closer(champion, 0.08), champion)
    )  # fmt: skip
    parts = compare(ours, theirs)["part"].unique().tolist()
    assert parts == ["macro average of a and b", "a", "b", "a: one hop", "a: two hops", "b: one hop", "b: two hops"]


def test_without_a_score_there_is_nothing_to_decide():
    rng = np.random.default_rng(0)
    none = scores(rates(rng, 3), rng).iloc[:0]
    with pytest.raises(DataError, match=r"questions\.eval"):
        compare(none, none)


def test_with_too_few_questions_it_says_how_many_could_show_anything():
    rng = np.random.default_rng(1)
    ours, theirs = (scores(np.column_stack([np.ones(8), np.full(8, follows)]), rng) for follows in (1.0, 0.0))
    assert compare(ours, theirs)["gain"].max() == 1
    decision = decide_promotion(compare(ours, theirs), GATE)
    assert decision.verdict == "HOLD" and "fewer than 11 questions can show nothing" in decision.reasons[0]
    assert fewest_questions(GATE) == 11


def test_what_only_one_of_them_has_is_compared_with_nothing():
    rng = np.random.default_rng(1)
    champion = rates(rng, 100)
    ours, theirs = scores(champion, rng), scores(champion, rng)
    gains = compare(ours.iloc[5:], theirs.iloc[:-5])
    assert gains["num_questions"].max() == 98


def test_answers_that_were_scored_set_by_set_get_their_strata_back():
    rng = np.random.default_rng(1)
    champion = rates(rng, 60)
    plain = pd.concat(
        [
            scores(champion, rng).assign(source=name, question_id=lambda rows, name=name: name + rows["question_id"])
            for name in ("a", "b")
        ]
    )
    questions = plain.drop_duplicates("question_id")[["question_id", "source", "stratum"]]
    scored = with_strata(plain, by_benchmark(questions))
    assert set(scored["stratum"]) == {"a", "b"}
    back = with_strata(scored, questions)
    parts = compare(back, back)["part"].unique().tolist()
    assert parts == ["macro average of a and b", "a", "b", "a: one hop", "a: two hops", "b: one hop", "b: two hops"]
