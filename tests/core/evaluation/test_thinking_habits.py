from typing import Any

import numpy as np
import pandas as pd
import pytest
from sample_run import as_scores, score

from mralign_core.evaluation.redrawn import redrawn_shifts
from mralign_core.evaluation.thinking_habits import answer_habits, find_cycle, mean_gap_by_question


@pytest.mark.parametrize(
    ("steps", "cycle"),
    [
        ("", ""),
        ("ab", ""),
        ("aaaa", ""),
        ("abab", "ab"),
        ("aabab", "ab"),
        ("xabcabcy", "abc"),
        ("abcab", ""),
        ("abacab", ""),
        ("aabaab", "aab"),
    ],
)
def test_a_loop_is_two_or_more_different_moves_made_twice_in_a_row(steps, cycle):
    assert find_cycle(list(steps)) == tuple(cycle)


def test_habits_of_answers_that_think():
    rows = [
        score("on", "q0", True, False, thinking="Oslo.\n\nHm.\n\nOslo.", num_tokens=30),
        score("on", "q1", False, False, thinking=None, num_tokens=2),
        score("off", "q0", None, True),
    ]
    habits = answer_habits(as_scores(rows))
    assert habits[["ending", "num_tokens", "num_segments", "repeats"]].to_numpy().tolist() == [
        ["named_wrong", 30.0, 3.0, 1.0],
        ["unnamed_wrong", 2.0, 0.0, 0.0],
    ]


def test_a_gap_of_means_has_an_interval_that_resamples_whole_questions():
    # Two questions of ten equal answers each: only which question is drawn can move the gap.
    questions = ["a"] * 10 + ["b"] * 10
    is_one = np.array(([True] * 5 + [False] * 5) * 2)
    values = np.where(is_one, 1.0, 0.0) * np.repeat([1.0, 3.0], 10)
    settings: dict[str, Any] = {"num_resamples": 400, "confidence": 0.95}
    gap = mean_gap_by_question(values, is_one, questions, **settings, rng=np.random.default_rng(0))
    assert gap == (2.0, 1.0, 3.0)  # means of {1, 3}: 1, 2 or 3
    assert np.isnan(
        mean_gap_by_question(values, np.ones(20, bool), questions, **settings, rng=np.random.default_rng(0))
    ).all()


def test_chance_is_what_the_next_draw_of_the_same_question_does():
    drawn = {"q0": [(True, True), (True, False), (False, False)], "q1": [(True, True)] * 3}
    rows = [score("on", question, *pair, draw) for question, pairs in drawn.items() for draw, pair in enumerate(pairs)]
    table = redrawn_shifts(as_scores(rows)).set_index("before")[["both_correct", "inconsistent", "both_wrong"]]
    # q0: right → inconsistent → wrong → right; q1 stays right three times.
    assert table.loc["both_correct"].tolist() == [3, 1, 0]
    assert table.loc["inconsistent"].tolist() == [0, 0, 1]
    assert table.loc["both_wrong"].tolist() == [1, 0, 0]


def test_one_draw_says_nothing_of_chance():
    assert redrawn_shifts(as_scores([score("on", "q0", True, True)])).empty
    assert redrawn_shifts(as_scores([score("off", "q0", None, True)])).empty
    assert list(redrawn_shifts(pd.DataFrame({"variant": [], "question_id": [], "draw": []})).columns)
