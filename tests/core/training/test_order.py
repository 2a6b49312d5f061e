from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mralign_core.training.order import aligned_passes, forward_passes, shares, step_rows, steps_per_epoch

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=30)


def epoch_order(rows, epoch, rows_per_epoch=None, batch_size=4, seed=0):
    rows_per_epoch = rows_per_epoch or len(rows)
    steps = steps_per_epoch(rows_per_epoch, batch_size)
    options = {"rows_per_epoch": rows_per_epoch, "batch_size": batch_size, "seed": seed}
    return [row for step in range(epoch * steps, (epoch + 1) * steps) for row in step_rows(rows, step=step, **options)]


def test_an_epoch_shows_every_row_once_in_an_order_that_changes_with_epoch_and_seed():
    rows = [3, 5, 8, 9, 11, 12, 20, 21, 30, 31]
    orders = [tuple(epoch_order(rows, epoch, seed=seed)) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(sorted(order) == rows for order in orders)
    assert len(set(orders)) == 6
    assert orders[4] == tuple(epoch_order(rows, 1, seed=1))


def test_the_order_of_rows_does_not_depend_on_the_batch_size_and_the_last_step_is_short():
    rows = list(range(10))
    for epoch in range(2):
        assert epoch_order(rows, epoch, batch_size=3) == epoch_order(rows, epoch, batch_size=10)
    assert len(step_rows(rows, step=3, rows_per_epoch=10, batch_size=3, seed=0)) == 1


def test_few_rows_are_cycled_evenly_over_epochs():
    seen = [row for epoch in range(3) for row in epoch_order([0, 1, 2], epoch, rows_per_epoch=7)]
    assert Counter(seen) == {0: 7, 1: 7, 2: 7}
    assert all(sorted(seen[start : start + 3]) == [0, 1, 2] for start in range(0, 21, 3))


@given(lengths=LENGTHS, budget=st.integers(1, 120), padded=st.booleans())
def test_passes_hold_every_row_once_within_the_budget(lengths, budget, padded):
    passes = forward_passes(range(len(lengths)), lengths, budget, padded=padded)
    assert sorted(row for rows in passes for row in rows) == list(range(len(lengths)))
    for rows in passes:
        sizes = [lengths[row] for row in rows]
        size = max(sizes) * len(sizes) if padded else sum(sizes)
        assert size <= budget or len(rows) == 1
        assert sizes == sorted(sizes, reverse=True)


@given(lengths=LENGTHS, num_processes=st.integers(1, 5))
def test_shares_hold_every_row_once_and_differ_by_at_most_the_longest_row(lengths, num_processes):
    parts = shares(range(len(lengths)), lengths, num_processes)
    assert sorted(row for rows in parts for row in rows) == list(range(len(lengths)))
    totals = [sum(lengths[row] for row in rows) for rows in parts]
    assert max(totals) - min(totals) <= max(lengths)


@given(lengths=LENGTHS, budget=st.integers(1, 120), num_processes=st.integers(1, 5))
def test_all_processes_make_equally_many_passes_and_fillers_add_no_row(lengths, budget, num_processes):
    plans = aligned_passes(range(len(lengths)), lengths, budget, num_processes)
    assert len({len(plan) for plan in plans}) == 1
    counted = [row for plan in plans for each in plan if not each.is_filler for row in each.rows]
    assert sorted(counted) == list(range(len(lengths)))
    assert all(each.rows for plan in plans for each in plan)
