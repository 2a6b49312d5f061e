"""What is said of people and a judge."""

import numpy as np
import pandas as pd
import pytest

from mralign_core.evaluation.people import JudgeAgreement
from mralign_core.reporting.people_findings import corrected_table, judge_table, sheet_advice

RATE = {"variant": "kto", "source": "nq", "judge_rate": 0.612, "people_rate": 0.7, "corrected": 0.671, "low": 0.62}
RATE |= {"high": 0.722, "tuning": 0.8, "num_people": 100, "num_questions": 1200, "needed": 290.0}


def test_agreement_is_a_row_a_variant_and_what_is_not_defined_a_dash():
    found = JudgeAgreement(90, 0.9, 0.784, 0.6, 0.91, 0.125, np.nan)
    (row,) = judge_table({"kto": found}).rows
    assert row == ["KTO", "90", "90.0", "0.78 [0.60, 0.91]", "12.5", "–"]


def test_rates_name_the_set_where_there_are_several():
    (row,) = corrected_table(pd.DataFrame([RATE]), 0.03).rows
    assert row == ["KTO", "61.2", "70.0", "67.1", "62.0 to 72.2", "100 of 1,200", "290"]
    table = corrected_table(pd.DataFrame([RATE, RATE | {"source": "sciq", "low": None, "needed": None}]), 0.03)
    assert table.rows[1][0] == "KTO, sciq" and table.rows[1][4] == table.rows[1][6] == "–"
    assert table.columns[-1] == "for ±3"


def test_differences_are_signed():
    moved = {"variant": "kto", "baseline": "on"} | {name: RATE[name] for name in RATE if name != "variant"}
    table = corrected_table(pd.DataFrame([moved | {"low": -0.011}]), 0.03)
    assert table.rows[0][:5] == ["KTO − think on", "+61.2", "+70.0", "+67.1", "−1.1 to +72.2"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "For intervals of ±3 points people should judge about 190 more questions."),
        ({"needed": 80.0}, "All intervals are ±3 points or narrower."),
        ({"needed": None}, "can't be had with these questions"),
        ({"low": None, "needed": None}, "With fewer than 10 questions of a set judged there is no interval"),
    ],
)
def test_advice(change, says):
    assert says in sheet_advice(pd.DataFrame([RATE, RATE | change]).iloc[1:], 0.03)
