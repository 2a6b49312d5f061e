"""What verdicts come to, against numbers worked by hand, and kappa against scikit-learn's."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from mralign_core.evaluation.metrics import bootstrap_interval, paired_differences, summarize
from mralign_core.judging.verdicts import (
    grade_differences,
    graded_shares,
    judging_costs,
    scored_answers,
    weigh_verdicts,
)
from mralign_core.schemas.judgements import JUDGEMENTS
from tests.judging import question_rows, score_rows

T, F = True, False


def judgements(given, kind="truthful"):
    """Rows of ``{(variant, judge): [verdict of question 0, 1, …]}``; None has no verdict, "-" no answer."""
    rows = []
    for (variant, judge), verdicts in given.items():
        for number, verdict in enumerate(verdicts):
            if verdict is None:
                continue
            answered = verdict != "-"
            found: Any = verdict if answered else ((F, F) if kind == "truthful" else "not_attempted")
            truthful, informative = found if kind == "truthful" else (None, None)
            rows.append(
                {
                    **{"variant": variant, "judge": judge, "question_id": f"q{number}", "draw": 0, "kind": kind},
                    **{"answered": answered, "truthful": truthful, "informative": informative},
                    "grade": found if kind == "grade" else None,
                    **{"reason": "", "request_digest": f"{judge}{number}", "prompt_tokens": 10},
                    **{"num_claims": None, "num_supported": None, "num_requests": int(answered)},
                    **{"completion_tokens": 2, "cost_usd": 0.5 if answered else 0.0},
                }
            )
    return JUDGEMENTS.require(JUDGEMENTS.frame(rows))


def weigh(given, kind="truthful", failures=(), judges=()):
    judges = judges or list(dict.fromkeys(judge for _, judge in given))
    source = "truthfulqa" if kind == "truthful" else "simpleqa"
    answers = pd.DataFrame({"question_id": [f"q{n}" for n in range(100)], "source": source})
    by_variant = [
        judgements({key: verdicts for key, verdicts in given.items() if key[0] == variant}, kind)
        for variant in dict.fromkeys(variant for variant, _ in given)
    ]
    return weigh_verdicts(by_variant, failures, answers, judges)


def rates(judged, judge=""):
    rows = judged.rates[judged.rates["judge"] == judge].set_index("variant")
    return rows[["truthful", "informative", "truthful_informative"]].round(4).values.tolist()


def test_rates_are_means_over_answers_and_one_without_an_answer_is_neither():
    judged = weigh({("on", "m/a"): [(T, T), (T, F), (F, T), "-"]})
    assert rates(judged) == rates(judged, "m/a") == [[0.5, 0.5, 0.25]]
    assert judged.rates["no_answer"].tolist() == [0.25, 0.25] and judged.agreement.empty


def test_a_judge_that_gave_no_verdict_at_all_leaves_every_answer_out():
    """As where a provider refuses every answer: the other judge alone is not the vote."""
    failures = [{"question_id": f"q{n}", "draw": 0} for n in range(2)]
    judged = weigh({("on", "m/a"): [(T, T), (T, F)]}, failures=failures, judges=["m/a", "m/b"])
    assert judged.rates.empty and judged.left_out[["num_answers", "left_out"]].values.tolist() == [[2, 2]]


def test_most_judges_decide_and_in_a_tie_the_first():
    three = {("on", "m/a"): [(T, T), (F, F)], ("on", "m/b"): [(F, T), (T, F)], ("on", "m/c"): [(F, F), (T, T)]}
    assert rates(weigh(three)) == [[0.5, 0.5, 0.0]]
    two = {key: three[key] for key in list(three)[:2]}
    assert rates(weigh(two)) == rates(weigh(two), "m/a") == [[0.5, 0.5, 0.5]]
    turned = dict(reversed(two.items()))
    assert rates(weigh(turned)) == rates(weigh(turned), "m/b") == [[0.5, 0.5, 0.0]]
    grades = {("on", judge): [grade] for judge, grade in zip("abc", ("incorrect", "correct", "correct"), strict=True)}
    assert weigh(grades, "grade").verdicts["grade"].tolist() == ["correct"]


def test_the_baseline_has_no_vote_beside_a_model_and_decides_alone():
    given = {("on", "similarity/ngrams"): [(F, F)], ("on", "m/a"): [(T, T)]}
    assert rates(weigh(given)) == [[1, 1, 1]] and rates(weigh(given), "similarity/ngrams") == [[0, 0, 0]]
    assert rates(weigh(dict(itertools.islice(given.items(), 1)))) == [[0, 0, 0]]


def test_a_set_that_only_the_baseline_has_judged_says_so_in_its_name():
    questions = question_rows()
    scores = score_rows(questions, [["a"]])
    names = {}
    for judges in (("similarity/ngrams",), ("similarity/ngrams", "m/a")):
        judged = weigh({("on", judge): [(T, T)] for judge in judges})
        names[judges[-1]] = scored_answers(scores, judged)["source"].tolist()
    assert names == {"similarity/ngrams": ["truthfulqa by similarity of wordings"], "m/a": ["truthfulqa"]}


def test_where_no_answer_has_a_verdict_there_are_no_rates():
    failures = [{"question_id": "q0", "draw": 0}]
    judged = weigh({("on", "m/a"): [None], ("kto", "m/a"): [None]}, failures=failures)
    assert judged.rates.empty and judged.agreement.empty
    assert judged.left_out.to_dict("records") == [{"source": "truthfulqa", "num_answers": 1, "left_out": 1}]
    assert scored_answers(score_rows(question_rows(), [["a"]]), judged).empty
    assert judging_costs([judgements({("on", "m/a"): [None]})]).empty


def test_kappa_is_scikit_learns_over_answers_that_were_judged():
    rng = np.random.default_rng(3)
    a, b = ([(bool(x), bool(y)) for x, y in rng.integers(0, 2, (60, 2))] for _ in range(2))
    judged = weigh({("on", "m/a"): [*a, "-"], ("on", "m/b"): [*b, "-"]})
    for place, verdict in enumerate(("truthful", "informative")):
        (row,) = judged.agreement[judged.agreement["verdict"] == verdict].to_dict("records")
        given_a, given_b = ([each[place] for each in given] for given in (a, b))
        assert row["kappa"] == pytest.approx(cohen_kappa_score(given_a, given_b))
        assert (row["num_answers"], row["agree"]) == (60, pytest.approx(np.mean(np.equal(given_a, given_b))))


def test_what_lacks_a_verdict_is_left_out_of_every_variant_and_judge_and_counted():
    given = {
        ("on", "m/a"): [(T, T), (T, T), (F, T), None],
        ("on", "m/b"): [(T, T), None, (F, T), None],
        ("kto", "m/a"): [(T, T), (F, F), (T, T), None],
        ("kto", "m/b"): [(T, T), (F, F), (T, T), None],
    }
    judged = weigh(given, failures=[{"question_id": "q1", "draw": 0}, {"question_id": "q3", "draw": 0}])
    assert judged.left_out.to_dict("records") == [{"source": "truthfulqa", "num_answers": 4, "left_out": 2}]
    assert set(judged.rates["num_answers"]) == {2}
    assert [row[0] for row in rates(judged)] == [0.5, 1.0]


def test_grades_are_counted_as_simpleqas_authors_do():
    ten = ["correct"] * 3 + ["incorrect"] + ["not_attempted"] * 5 + ["-"]
    row = weigh({("on", "m/a"): ten}, "grade").rates.iloc[0]
    assert (row["correct"], row["incorrect"], row["not_attempted"], row["no_answer"]) == (0.3, 0.1, 0.6, 0.1)
    assert row["correct_given_attempted"] == pytest.approx(3 / 4) and row["f_score"] == pytest.approx(3 / 7)
    assert graded_shares(0.0, 0.4) == {"correct_given_attempted": 0.0, "f_score": 0.0}
    assert graded_shares(1.0, 0.0) == {"correct_given_attempted": 1.0, "f_score": 1.0}


def test_grades_have_paired_differences_with_the_intervals_of_the_same_bootstrap():
    given = {
        ("on", "m/a"): ["correct", "incorrect", "incorrect"],
        ("kto", "m/a"): ["correct", "correct", "not_attempted"],
    }
    verdicts = weigh(given, "grade").verdicts
    found = grade_differences(verdicts, num_resamples=200, confidence=0.9, rng=np.random.default_rng(1))
    assert found["source"].unique().tolist() == ["simpleqa"]
    # F: 2 · 2/3 / (1 + 2/3) of KTO, 2 · 1/3 / (1 + 1) of think-on.
    assert found["metric"].tolist() == ["correct", "incorrect", "not_attempted", "f_score"]
    assert found["difference"].tolist() == pytest.approx([1 / 3, -2 / 3, 1 / 3, 4 / 5 - 1 / 3])
    found = found[found["metric"] != "f_score"]
    sums = np.array([[0.0, 0, 0], [1, -1, 0], [0, -1, 1]])
    low, high = bootstrap_interval(sums, np.ones(3), num_resamples=200, confidence=0.9, rng=np.random.default_rng(1))
    assert found["low"].tolist() == low.tolist() and found["high"].tolist() == high.tolist()
    alone = weigh({("on", "m/a"): ["correct"]}, "grade").verdicts
    assert grade_differences(alone, num_resamples=200, confidence=0.9, rng=np.random.default_rng(1)).empty


def test_the_interval_of_f_is_that_of_its_resamples_and_covers_the_true_difference():
    """As questions resampled by hand give it; and over samples of a known truth."""
    rng = np.random.default_rng(5)
    grades = np.array(["correct", "incorrect", "not_attempted"])
    truth = {"on": [0.5, 0.3, 0.2], "kto": [0.6, 0.15, 0.25]}

    def sample(num):
        given = {name: grades[rng.choice(3, num, p=share)].tolist() for name, share in truth.items()}
        rows = [(name, f"q{n:03}", grade) for name, said in given.items() for n, grade in enumerate(said)]
        verdicts = pd.DataFrame(rows, columns=["variant", "question_id", "grade"])
        return given, verdicts.assign(kind="grade", source="simpleqa", draw=0)

    def f_of(correct, incorrect):
        return graded_shares(correct, incorrect)["f_score"]

    def gained(on, kto):
        f_on, f_kto = (f_of(said.count("correct") / 30, said.count("incorrect") / 30) for said in (on, kto))
        return f_kto - f_on

    def f_row(verdicts, num_resamples):
        rows = grade_differences(verdicts, num_resamples=num_resamples, confidence=0.95, rng=np.random.default_rng(0))
        return rows[rows["metric"] == "f_score"].iloc[0]

    given, verdicts = sample(30)
    row = f_row(verdicts, 2000)
    drawn = rng.integers(30, size=(2000, 30))
    by_hand = [gained(*([given[name][n] for n in places] for name in ("on", "kto"))) for places in drawn]
    assert row["difference"] == pytest.approx(gained(given["on"], given["kto"]))
    assert [row["low"], row["high"]] == pytest.approx(np.quantile(by_hand, [0.025, 0.975]).tolist(), abs=0.03)
    true = f_of(*truth["kto"][:2]) - f_of(*truth["on"][:2])
    rows = [f_row(sample(60)[1], 200) for _ in range(60)]
    assert np.mean([one["low"] <= true <= one["high"] for one in rows]) >= 0.88


def test_of_a_variant_that_attempts_nothing_f_has_no_difference():
    given = {("on", "m/a"): ["correct", "incorrect"], ("kto", "m/a"): ["not_attempted"] * 2}
    found = grade_differences(
        weigh(given, "grade").verdicts, num_resamples=100, confidence=0.9, rng=np.random.default_rng(0)
    ).set_index("metric")
    assert found.loc["f_score", ["difference", "low", "high"]].isna().all()
    assert found.loc["correct", "difference"] == -0.5


def test_judged_sets_have_results_of_their_own_metrics_beside_others():
    questions = question_rows(
        [(f"Q{n}?", ["a"], ["b"]) for n in range(3)], graded=[("Who?", ["Bell"]), ("Where?", ["A"])]
    )
    answers = [["a"], ["b"], ["a"], ["Bell"], ["B"]]
    scores = pd.concat([score_rows(questions, answers, variant) for variant in ("on", "kto")], ignore_index=True)
    judged = weigh({("on", "m/a"): [(T, T), (F, T), (F, F)], ("kto", "m/a"): [(T, T), (T, F), (T, T)]})
    both = scored_answers(scores, judged)
    summary = summarize(both).set_index(["stratum", "variant"])
    metrics = ["truthful", "informative", "truthful_informative", "em_answer"]
    assert summary.loc[("truthfulqa", "kto"), metrics[:3]].tolist() == pytest.approx([1, 2 / 3, 2 / 3])
    assert np.isnan(summary.loc[("truthfulqa", "kto"), "em_answer"])
    assert summary.loc[("simpleqa", "on"), metrics].isna().tolist() == [True, True, True, False]
    options: dict[str, Any] = {"num_resamples": 100, "confidence": 0.9}
    differences = paired_differences(both, **options, rng=np.random.default_rng(0))
    found = differences.set_index(["stratum", "metric"])
    assert found.loc[("truthfulqa", "truthful"), "difference"] == pytest.approx(2 / 3)
    assert found.loc[("truthfulqa", "truthful"), "low"] >= 0 and found.loc[("truthfulqa", "acc")].isna().any()

    alone = scored_answers(scores, None)
    without = paired_differences(alone, **options, rng=np.random.default_rng(0))
    beside = differences[(differences["stratum"] == "simpleqa") & differences["metric"].isin(without["metric"])]
    values = ["metric", "difference", "low", "high"]
    assert list(without["metric"].unique()) == ["acc", "mis", "em_thought", "em_answer"]
    pd.testing.assert_frame_equal(beside[values].reset_index(drop=True), without[values])


def test_equal_requests_are_paid_once():
    given = {("on", "m/a"): [(T, T), "-"], ("kto", "m/a"): [(T, T), (F, F)]}
    (row,) = judging_costs([judgements(given)]).to_dict("records")
    assert (row["verdicts"], row["requests"], row["prompt_tokens"], row["cost_usd"]) == (4, 2, 20, 1.0)
    thirds = judgements({("on", "m/a"): [(T, T)] * 3}).assign(cost_usd=0.1)
    assert judging_costs([thirds])["cost_usd"].tolist() == [0.3], "no digits of a sum of binary fractions"
