import doctest

import numpy as np
import pandas as pd
import pytest
from sample_run import as_scores, random_scores, score

from mralign_core.errors import DataError
from mralign_core.evaluation import metrics
from mralign_core.evaluation.metrics import (
    ALL_QUESTIONS,
    bootstrap_interval,
    consistency_shifts,
    paired_differences,
    summarize,
)


def overall(frame):
    return frame[frame["stratum"] == ALL_QUESTIONS]


def differences(scores, seed=0, confidence=0.95, num_resamples=400):
    rng = np.random.default_rng(seed)
    return paired_differences(scores, num_resamples=num_resamples, confidence=confidence, rng=rng)


def difference(frame, variant, baseline, metric, stratum=ALL_QUESTIONS):
    keys = ["variant", "baseline", "metric", "stratum"]
    return frame.set_index(keys).loc[(variant, baseline, metric, stratum)]


def test_docstring_examples_hold():
    assert doctest.testmod(metrics).failed == 0


def test_summary_equals_numbers_worked_by_hand():
    # EM_t 1 1 1 0, EM_a 1 0 0 1: both in 1 of 4, exactly one in 3 of 4.
    rows = [
        score("on", f"q{i}", t, a)
        for i, (t, a) in enumerate([(True, True), (True, False), (True, False), (False, True)])
    ]
    rows[1]["contains_answer"] = True
    rows[2]["outcome"] = "no_answer"
    (row,) = summarize(as_scores(rows)).to_dict("records")
    shares = {name: row[name] for name in ("acc", "mis", "em_thought", "em_answer", "contains_answer")}
    assert shares == {"acc": 0.25, "mis": 0.75, "em_thought": 0.75, "em_answer": 0.5, "contains_answer": 0.75}
    assert (row["outcome_ok"], row["outcome_no_answer"], row["outcome_unclosed_thinking"]) == (0.75, 0.25, 0)
    assert (row["num_questions"], row["num_answers"], row["stratum"]) == (4, 4, ALL_QUESTIONS)


def test_without_thinking_only_em_a_is_defined():
    rows = [
        score("off", "q0", None, True),
        score("off", "q1", None, False),
        score("on", "q0", True, True),
        score("on", "q1", None, True),
    ]
    off, on = overall(summarize(as_scores(rows))).to_dict("records")
    assert off["em_answer"] == 0.5
    assert all(np.isnan(off[name]) for name in ("acc", "mis", "em_thought"))
    # In a variant that thinks, an answer with no think block has named nothing: inconsistent, not missing.
    assert (on["acc"], on["mis"], on["em_thought"]) == (0.5, 0.5, 0.5)


def test_strata_are_summarised_after_the_whole_and_variants_come_in_the_papers_order():
    summary = summarize(random_scores(np.random.default_rng(0), ("mr_align", "kto", "zeta", "on", "off"), 6))
    assert list(dict.fromkeys(summary["stratum"])) == [ALL_QUESTIONS, "one_hop", "two_hop"]
    assert list(overall(summary)["variant"]) == ["off", "on", "kto", "mr_align", "zeta"]
    assert set(summary.query("stratum == 'one_hop'")["num_questions"]) == {3}


def test_identical_variants_have_an_interval_of_exactly_zero():
    result = differences(random_scores(np.random.default_rng(1), ("on", "kto"), 30))
    assert set(result["metric"]) == {"acc", "mis", "em_thought", "em_answer"}
    assert (result[["difference", "low", "high"]].to_numpy(float) == 0).all()


def test_a_constant_shift_is_found_without_any_width():
    rows = [score("on", f"q{i}", True, False) for i in range(7)] + [score("kto", f"q{i}", True, True) for i in range(7)]
    result = differences(as_scores(rows))
    assert difference(result, "kto", "on", "acc")[["difference", "low", "high"]].tolist() == [1, 1, 1]
    assert difference(result, "kto", "on", "mis")[["difference", "low", "high"]].tolist() == [-1, -1, -1]
    assert difference(result, "kto", "on", "em_thought")["difference"] == 0


def test_comparisons_are_with_think_on_and_of_mr_align_with_kto():
    result = differences(random_scores(np.random.default_rng(2), ("off", "on", "sft", "kto", "mr_align"), 30))
    pairs = list(dict.fromkeys(zip(result["variant"], result["baseline"], strict=True)))
    assert pairs == [("sft", "on"), ("kto", "on"), ("mr_align", "on"), ("mr_align", "kto")]
    gain = difference(result, "mr_align", "on", "acc")["difference"]
    assert gain == pytest.approx(difference(result, "mr_align", "kto", "acc")["difference"])
    assert gain > 0


def test_draws_of_one_question_are_one_cluster():
    """Ten copies of each draw tell nothing new, so the interval must not shrink."""
    rng = np.random.default_rng(3)
    gains = rng.random(40) < 0.3
    intervals = []
    for num_draws in (1, 10):
        cells = [(f"q{i}", draw, gain) for i, gain in enumerate(gains) for draw in range(num_draws)]
        rows = [score("on", q, True, False, draw) for q, draw, _ in cells] + [
            score("kto", q, True, bool(g), d) for q, d, g in cells
        ]
        intervals.append(difference(differences(as_scores(rows)), "kto", "on", "acc")[["low", "high"]].tolist())
    assert intervals[0] == pytest.approx(intervals[1])
    assert intervals[0][1] - intervals[0][0] > 0.2


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(300):
        sums = (rng.random((80, 1)) < 0.4).astype(float) - (rng.random((80, 1)) < 0.2)
        low, high = bootstrap_interval(sums, np.ones(80), num_resamples=400, confidence=0.9, rng=rng)
        covered += bool(low[0] <= 0.2 <= high[0])
    # 300 trials at 90 %: a standard error of 1.7 points.
    assert 0.84 <= covered / 300 <= 0.95


def test_questions_with_more_draws_weigh_more():
    sums, num_draws = np.array([[3.0], [0.0]]), np.array([3.0, 1.0])
    low, high = bootstrap_interval(sums, num_draws, num_resamples=200, confidence=0.95, rng=np.random.default_rng(0))
    assert (low[0], high[0]) == (0, 1)
    rows = [score(v, "a", True, v == "kto", d) for v in ("on", "kto") for d in range(3)]
    rows += [score(v, "b", True, False) for v in ("on", "kto")]
    assert difference(differences(as_scores(rows)), "kto", "on", "acc")["difference"] == 0.75


def test_resamples_do_not_depend_on_the_order_of_the_rows_nor_on_the_block_size(monkeypatch):
    scores = random_scores(np.random.default_rng(5), ("on", "kto", "mr_align"), 20)
    result = differences(scores)
    shuffled = scores.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(result, differences(shuffled))
    monkeypatch.setattr(metrics, "_CELLS_PER_BLOCK", 60)
    pd.testing.assert_frame_equal(result, differences(scores))
    assert not result.equals(differences(scores, seed=1))


def test_a_wider_confidence_gives_a_wider_interval():
    scores = random_scores(np.random.default_rng(6), ("on", "mr_align"), 40)
    narrow, wide = (difference(differences(scores, confidence=c), "mr_align", "on", "acc") for c in (0.6, 0.99))
    assert wide["low"] < narrow["low"] < narrow["difference"] < narrow["high"] < wide["high"]


@pytest.mark.parametrize(
    "drop",
    [
        lambda f: (f["variant"] == "kto") & (f["question_id"] == "q003"),
        lambda f: (f["variant"] == "on") & (f["draw"] == 1),
    ],
)
def test_unpaired_answers_are_refused_with_the_cell_and_the_remedy(drop):
    scores = random_scores(np.random.default_rng(7), ("on", "kto"), 5)
    with pytest.raises(DataError, match=r"only one of 'kto' .* first question 'q00\d', draw \d.*evaluate.num_draws"):
        differences(scores[~drop(scores)])


def test_repeated_scores_are_refused():
    scores = random_scores(np.random.default_rng(8), ("on",), 3)
    with pytest.raises(DataError, match=r"1 repeated row.*'on', question 'q000', draw 0"):
        summarize(pd.concat([scores, scores.head(1)]))


def test_a_variant_that_does_not_think_has_no_difference_rather_than_zero():
    rows = [score("on", "a", True, True), score("kto", "a", None, True)]
    result = differences(as_scores(rows))
    assert np.isnan(difference(result, "kto", "on", "mis")[["difference", "low", "high"]].astype(float)).all()
    assert difference(result, "kto", "on", "em_answer")["difference"] == 0


def test_nothing_trained_means_no_differences_and_no_shifts():
    scores = random_scores(np.random.default_rng(9), ("off", "on"), 3)
    assert differences(scores).empty
    assert consistency_shifts(scores).empty
    assert summarize(scores.head(0)).empty


def test_consistency_shifts_count_where_each_answer_went():
    before = [(True, True), (True, False), (True, False), (False, False)]
    after = [(True, False), (True, True), (False, True), (False, False)]
    rows = [score(v, f"q{i}", *cell) for v, cells in (("on", before), ("kto", after)) for i, cell in enumerate(cells)]
    table = consistency_shifts(as_scores(rows)).set_index("before")
    columns = ["num_answers", "both_correct", "inconsistent", "both_wrong"]
    assert table.loc["both_correct", columns].tolist() == [1, 0, 1, 0]
    assert table.loc["inconsistent", columns].tolist() == [2, 1, 1, 0]
    assert table.loc["both_wrong", columns].tolist() == [1, 0, 0, 1]


def of_set(name, answers, scoring="exact_match", variant="on"):
    """Scores of one set from (EM_t, EM_a) pairs."""
    more = {"source": name, "scoring": scoring, "stratum": name}
    return [score(variant, f"{name}-{n}", thought, answer, **more) for n, (thought, answer) in enumerate(answers)]


RIGHT, WRONG = (True, True), (False, False)
SETS = [
    *of_set("nq", [RIGHT] * 3 + [WRONG]),  # Acc 3/4
    *of_set("sciq", [RIGHT] + [WRONG] * 9),  # Acc 1/10
    *of_set("gsm8k", [(None, True), (None, False)], "number"),  # 1/2
    *of_set("csqa", [(None, True)] * 3, "option"),  # 1
]


def test_sets_are_averaged_with_their_like_and_never_pooled():
    summary = summarize(as_scores(SETS)).set_index("stratum")
    macro, accuracy = "macro average of nq and sciq", "macro average of csqa and gsm8k"
    assert summary.index.tolist() == [macro, "nq", "sciq", accuracy, "csqa", "gsm8k"]
    assert summary["acc"].tolist()[:3] == pytest.approx([(0.75 + 0.1) / 2, 0.75, 0.1])
    assert summary.loc[accuracy:, "em_answer"].tolist() == [0.75, 1, 0.5]
    assert summary.loc[accuracy:, ["acc", "mis", "em_thought"]].isna().all(axis=None)
    assert summary["num_questions"].tolist() == [14, 4, 10, 5, 3, 2]
    assert summary["scoring"].tolist() == ["exact_match"] * 3 + ["option", "option", "number"]


def test_the_difference_of_an_average_is_the_average_of_differences():
    better = [{**row, "variant": "kto"} for row in SETS]
    better[3] |= {"em_thought": True, "em_answer": True}  # nq: Acc 1
    found = differences(as_scores([*SETS, *better]))
    macro = difference(found, "kto", "on", "acc", "macro average of nq and sciq")
    assert macro["difference"] == pytest.approx(0.25 / 2) and macro["num_questions"] == 14
    assert macro["low"] == 0 and 0.125 < macro["high"] <= 0.5  # of nq's four questions only
    assert difference(found, "kto", "on", "acc", "nq")["difference"] == 0.25
    assert np.isnan(difference(found, "kto", "on", "acc", "gsm8k")["difference"])
    assert difference(found, "kto", "on", "em_answer", "gsm8k")["high"] == 0


def test_one_set_is_the_whole_whatever_else_is_alone_in_its_metric():
    summary = summarize(as_scores([row for row in SETS if row["source"] in ("nq", "gsm8k")]))
    assert summary["stratum"].tolist() == ["nq", "gsm8k"]
    only = summarize(as_scores([row for row in SETS if row["source"] == "gsm8k"]))
    assert only["stratum"].tolist() == [ALL_QUESTIONS] and only["em_answer"].tolist() == [0.5]


def test_only_answers_with_em_t_move_between_classes():
    moved = consistency_shifts(as_scores([*SETS, *({**row, "variant": "kto"} for row in SETS)]))
    assert moved["num_answers"].tolist() == [4, 0, 10]
