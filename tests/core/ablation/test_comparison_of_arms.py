"""Paired differences over units, against numbers worked by hand and against scipy."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mralign_core.ablation.paired import (
    Cell,
    cell_results,
    mean_differences,
    sets_left_out,
    t_interval,
    unit_differences,
)
from mralign_core.errors import DataError
from mralign_core.schemas.ablation import ABLATION_DIFFERENCES, ABLATION_RESULTS
from mralign_core.schemas.scores import SCORES


def scores(*answers, draws=1, thinks=True, variant="any"):
    """Rows of SCORES from (EM_t, EM_a) pairs; question after question, ``draws`` of each."""
    rows = [
        {
            "variant": variant,
            "question_id": f"q{place // draws}",
            "source": "s",
            "scoring": "exact_match",
            "stratum": "",
            "draw": place % draws,
            "completion": "",
            "thinking": "a b " * (1 + place) if thinks else None,
            "answer": "x",
            "outcome": "ok",
            "em_thought": bool(thought) if thinks else None,
            "em_answer": None if answer is None else bool(answer),
            "contains_answer": None if answer is None else bool(answer),
            "num_prompt_tokens": 9,
            "num_tokens": 7,
        }
        for place, (thought, answer) in enumerate(answers)
    ]
    return SCORES.require(pd.DataFrame(rows).astype(object))


RIGHT, WRONG, GAP, LUCK = (1, 1), (0, 0), (1, 0), (0, 1)


def results(**accs):
    """Rows of ABLATION_RESULTS: arm → {(world, seed): Acc}, Mis being 1 − Acc."""
    rows = [
        dict(zip(ABLATION_RESULTS.columns, (world, seed, arm, 10, 10, acc, 1 - acc, 1.0, acc, 1.0, 9), strict=True))
        for arm, cells in accs.items()
        for (world, seed), acc in cells.items()
    ]
    return pd.DataFrame(rows)


def test_metrics_of_a_cell_worked_by_hand():
    found = cell_results(
        [
            (Cell(0, 3, "off"), scores(RIGHT, GAP, RIGHT, GAP, thinks=False, draws=2)),
            (Cell(0, 3, "on"), scores(RIGHT, GAP, LUCK, WRONG, draws=2)),
        ]
    )
    assert found[["world", "seed", "arm"]].to_numpy().tolist() == [[0, 3, "off"], [0, 3, "on"]]
    assert found[["num_questions", "num_answers"]].to_numpy().tolist() == [[2, 4], [2, 4]]
    on = found.iloc[1]
    assert on[["acc", "mis", "em_thought", "em_answer"]].tolist() == [0.25, 0.5, 0.5, 0.5]
    assert found.iloc[0][["acc", "mis", "em_thought"]].isna().all()
    assert found.iloc[0]["em_answer"] == 0.5
    assert on[["well_formed", "thinking_words"]].tolist() == [1.0, 5.0], "2, 4, 6 and 8 words"
    assert found.iloc[0]["well_formed"] == 1.0 and np.isnan(found.iloc[0]["thinking_words"])
    ABLATION_RESULTS.require(found.astype(object))


def test_questions_without_a_gold_answer_are_passed_over():
    found = cell_results([(Cell(0, 0, "on"), scores(RIGHT, (1, None), GAP))])
    assert found.iloc[0][["num_questions", "acc"]].tolist() == [2, 0.5]


@pytest.mark.parametrize("other", [scores(RIGHT), scores(RIGHT, RIGHT, RIGHT), scores(RIGHT, GAP, draws=2)])
def test_arms_that_answered_something_else_are_not_compared(other):
    with pytest.raises(DataError, match=r"world 1, seed 2: 'kto' .* not to the same questions and draws"):
        cell_results([(Cell(1, 2, "on"), scores(RIGHT, GAP)), (Cell(1, 2, "kto"), other)])
    with pytest.raises(DataError, match="0 answers that can be scored"):
        cell_results([(Cell(1, 2, "on"), scores((1, None)))])


def test_worlds_are_the_units_and_their_seeds_are_averaged_first():
    table = results(
        kto={(0, 0): 0.50, (0, 1): 0.60, (1, 0): 0.70, (1, 1): 0.70, (2, 0): 0.4, (2, 1): 0.4},
        mr_align={(0, 0): 0.60, (0, 1): 0.70, (1, 0): 0.75, (1, 1): 0.85, (2, 0): 0.5, (2, 1): 0.3},
    )
    pairs = [("mr_align", "kto")]
    by_unit = unit_differences(table, pairs, unit="world")
    assert by_unit["world"].tolist() == [0, 1, 2]
    assert by_unit["acc"].tolist() == pytest.approx([0.10, 0.10, 0.0])
    found = mean_differences(table, pairs, unit="world", confidence=0.95).set_index("metric")
    ABLATION_DIFFERENCES.require(found.reset_index().astype(object))
    acc, mis = found.loc["acc"], found.loc["mis"]
    # mean 1/15, sd 1/√300, three worlds: t(2) = 4.3027
    assert acc["difference"] == pytest.approx(1 / 15)
    assert acc["std_error"] == pytest.approx(1 / 30)
    assert acc["high"] - acc["difference"] == pytest.approx(4.3027 / 30, rel=1e-4)
    assert (acc["num_units"], acc["num_agreeing"]) == (3, 2)
    assert (mis["difference"], mis["low"]) == pytest.approx((-acc["difference"], -acc["high"]))
    assert found.loc["em_thought", ["difference", "num_agreeing"]].tolist() == [0, 0]
    assert pd.isna(found.loc["em_thought", "low"]), "no spread, no interval"


def accuracy_scores(*answers, scoring="number", source="gsm8k"):
    """The same of a set without EM_t; of ``claims`` nothing is scored."""
    rows = scores(*((1, None if scoring == "claims" else answer) for answer in answers))
    rows = rows.assign(em_thought=None, scoring=scoring, source=source, question_id=source + rows["question_id"])
    return SCORES.require(rows.astype(object))


@pytest.mark.parametrize("scoring", ["number", "option"])
def test_sets_with_accuracy_alone_are_compared_in_it(scoring):
    arms = {"on": (1, 0, 0), "kto": (1, 1, 0), "mr_align": (1, 1, 1)}
    table = cell_results([(Cell(0, 0, arm), accuracy_scores(*of, scoring=scoring)) for arm, of in arms.items()])
    ABLATION_RESULTS.require(table.astype(object))
    found = mean_differences(table, [("kto", "on"), ("mr_align", "kto")], unit="seed", confidence=0.95)
    ABLATION_DIFFERENCES.require(found.astype(object))
    assert found["metric"].tolist() == ["em_answer"] * 2
    assert found["difference"].tolist() == pytest.approx([1 / 3, 1 / 3])


def test_sets_that_are_not_compared_are_named():
    mixed = pd.concat(
        [scores(RIGHT, GAP), accuracy_scores(1, 1), accuracy_scores(1, scoring="claims", source="longfact")],
        ignore_index=True,
    )
    assert sets_left_out(mixed) == ["gsm8k", "longfact"]
    assert cell_results([(Cell(0, 0, "on"), mixed)]).iloc[0][["num_questions", "acc"]].tolist() == [2, 0.5]
    assert sets_left_out(scores(RIGHT)) == sets_left_out(accuracy_scores(1)) == []


def test_seeds_are_the_units_where_there_is_one_world():
    table = results(kto={(0, 0): 0.5, (0, 1): 0.6}, mr_align={(0, 0): 0.6, (0, 1): 0.8})
    pairs = [("mr_align", "kto")]
    by_seed = mean_differences(table, pairs, unit="seed", confidence=0.9).iloc[0]
    assert (by_seed["num_units"], by_seed["difference"]) == (2, pytest.approx(0.15))
    low, high = stats.t.interval(0.9, 1, loc=0.15, scale=0.05)
    assert (by_seed["low"], by_seed["high"]) == pytest.approx((low, high))
    by_world = mean_differences(table, pairs, unit="world", confidence=0.9).iloc[0]
    assert by_world["num_units"] == 1
    assert by_world[["std_error", "low", "high", "p_value"]].isna().all()


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_is_scipys_and_agrees_with_its_p_value(values, confidence):
    found = t_interval(np.array(values), confidence)
    if np.isnan(found.low):
        assert np.ptp(values) < 1e-12
        return
    expected = stats.ttest_1samp(values, 0)
    interval = expected.confidence_interval(confidence)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-9)
    if abs(found.p_value - (1 - confidence)) > 1e-6:
        assert (found.p_value < 1 - confidence) == (found.low > 0 or found.high < 0)


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [t_interval(rng.normal(0.3, 1, size=4), 0.9) for _ in range(2000)]
    share = np.mean([each.low < 0.3 < each.high for each in found])
    assert abs(share - 0.9) < 4 * np.sqrt(0.09 / 2000)


def test_a_cell_survives_as_text():
    cell = Cell(3, 1, "undesirable_0.5")
    assert Cell.parse(str(cell)) == cell
