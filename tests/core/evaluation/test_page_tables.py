"""Tables of a run's page: every column has a name, numbers are read without a calculator."""

import doctest

import pandas as pd
import pytest

from mralign_core.reporting import page_tables
from mralign_core.reporting.page_tables import draw_counts, ledger_table, page_records, rule_counts, weight_table
from mralign_core.reporting.result_table import ResultTable
from mralign_core.schemas.outcomes import DRAW_OUTCOMES
from tests.page_artifacts import check_table


def test_doctests():
    assert doctest.testmod(page_tables).failed == 0


def test_draws_are_counted_by_thinking_mode():
    zeros = dict.fromkeys(DRAW_OUTCOMES, 0)
    counts = pd.DataFrame([{"thinking_mode": mode, "draws": 1200, **zeros, "ok": 1200} for mode in ("off", "on")])
    rows = page_records(draw_counts(counts))
    check_table("draws", rows)
    assert rows[0] == {"counted": "draws", "think-off": "1,200", "think-on": "1,200"}


def test_rules_have_their_share_of_the_segments():
    rows = page_records(rule_counts(pd.DataFrame({"rule": ["agree", "agree", "agree", "merged"]})))
    assert rows == [
        {"rule": "agree", "segments": "3", "share": "75.0%"},
        {"rule": "merged", "segments": "1", "share": "25.0%"},
    ]


def test_a_ledger_has_dollars_with_cents_and_no_gap_where_an_amount_is_not_known():
    amounts = {"requests": 12_345, "cost_usd": 1234.5, "lost_usd": float("nan")}
    rows = page_records(ledger_table(pd.DataFrame([{"run": "r", "model": "m", **amounts}])))
    check_table("ledger", rows)
    assert rows == [{"run": "r", "model": "m", "requests": "12,345", "cost $": "1,234.50", "lost $": "–"}]


def test_weights_are_told_by_their_middle_and_ends():
    rows = page_records(weight_table(pd.DataFrame({"weight": [0.5, 1.0, 1.5], "clipped": [True, False, False]})))
    values = {row["of the weights"]: row["value"] for row in rows}
    assert values["clipped"] == "1"
    assert (values["least weight"], values["mean weight"], values["most weight"]) == ("0.500", "1.000", "1.500")


@pytest.mark.parametrize("columns", [["", "a"], ["a", "a"]])
def test_a_column_that_a_page_cannot_show_is_refused(columns):
    with pytest.raises(ValueError, match="a name each"):
        page_records(ResultTable(columns, [["x", "y"]]))
