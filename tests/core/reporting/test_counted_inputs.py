"""What labels cost and which traces they lack, over sets of traces that overlap: each trace counts once."""

import pandas as pd

from mralign_core.reporting.inputs import annotation_costs, joined_failures, joined_ledger


def replies(*trace_ids):
    rows = [(name, role, "m", "x", 10, 2, 0.5) for name in trace_ids for role in ("annotator_a", "annotator_b")]
    columns = ["trace_id", "role", "model", "reply", "prompt_tokens", "completion_tokens", "cost_usd"]
    return pd.DataFrame(rows, columns=columns)


def test_a_trace_of_two_sets_costs_once():
    found = annotation_costs(replies("a", "b"), replies("b", "c", "d"), replies("d", "a"))
    assert found[["role", "requests", "prompt_tokens", "cost_usd"]].to_numpy().tolist() == [
        ["annotator_a", 4, 40, 2.0],
        ["annotator_b", 4, 40, 2.0],
    ]
    pd.testing.assert_frame_equal(annotation_costs(replies("a"), replies("a")), annotation_costs(replies("a")))


def test_a_trace_that_two_sets_lack_failed_once():
    one, other = [{"trace_id": "a", "role": role} for role in ("x", "y")], [{"trace_id": "b", "role": "x"}]
    assert joined_failures(one, [*one, *other]) == [*one, *other]
    assert joined_failures(one) == one and joined_failures() == []


def test_what_a_run_paid_a_model_from_two_accounts_is_one_row():
    first = pd.DataFrame([("r", "m", 2, 1.0), ("r", "n", 1, 0.5)], columns=["run", "model", "requests", "cost_usd"])
    assert joined_ledger(first, first.head(1)).to_numpy().tolist() == [["r", "m", 4, 2.0], ["r", "n", 1, 0.5]]
    pd.testing.assert_frame_equal(joined_ledger(first), first)
    assert joined_ledger(first.head(0)).empty
