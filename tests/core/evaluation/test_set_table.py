"""Every variant on every set, and the questions that can be guessed apart, against numbers worked by hand."""

import pandas as pd
import pytest
from sample_run import as_scores, score

from mralign_core.evaluation.guessable_scores import guessable_scores
from mralign_core.evaluation.metrics import summarize
from mralign_core.reporting.set_table import guessable_table, set_table


@pytest.fixture
def scores():
    """Four answers to NQ-Open and two to GSM8K, of two variants."""
    rows = [
        score(variant, f"q{number}", named if variant == "on" else None, right, source="nq_open")
        for variant in ("off", "on")
        for number, (named, right) in enumerate([(True, True), (True, False), (False, True), (False, False)])
    ]
    rows += [
        score(variant, f"g{number}", None, right, source="gsm8k", scoring="number")
        for variant in ("off", "on")
        for number, right in enumerate([True, variant == "on"])
    ]
    return as_scores(rows)


def test_each_set_has_columns_of_its_own_metrics(scores):
    table = set_table(summarize(scores))
    assert table is not None
    assert table.columns == ["variant, %", "nq_open, Acc", "nq_open, Mis", "gsm8k, accuracy"]
    assert table.rows == [["think off", "–", "–", "50.0"], ["think on", "25.0", "50.0", "100.0"]]


def test_one_set_needs_no_such_table_whatever_its_strata(scores):
    alone = scores[scores["source"] == "nq_open"]
    assert set_table(summarize(alone)) is None
    strata = [("one_hop", "two_hop")[place % 2] for place in range(len(alone))]
    assert set_table(summarize(alone.assign(stratum=strata))) is None


def test_questions_that_can_be_guessed_are_told_apart_from_the_others_of_their_set(scores):
    guessable = pd.DataFrame({"question_id": ["q0", "q3", "not-asked"], "kind": ["yes_no", "in_question", "yes_no"]})
    table = guessable_table(guessable_scores(scores, guessable))
    assert table is not None
    assert [row for row in table.rows if row[1] == "think on"] == [
        ["nq_open, yes/no gold answer (1)", "think on", "100.0", "0.0", "100.0", "100.0"],
        ["nq_open, gold answer in the question (1)", "think on", "0.0", "0.0", "0.0", "0.0"],
        ["nq_open, all others (2)", "think on", "0.0", "100.0", "50.0", "50.0"],
    ]
    assert len(table.rows) == 6


@pytest.mark.parametrize("ids", [[], ["not-asked"]])
def test_without_such_questions_there_is_no_table(scores, ids):
    guessable = pd.DataFrame({"question_id": ids, "kind": ["yes_no"] * len(ids)})
    assert guessable_table(guessable_scores(scores, guessable)) is None
