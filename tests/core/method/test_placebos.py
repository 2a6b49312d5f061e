"""Placebos: what they keep, what they take away, and that neither the order of rows nor other traces matter."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.errors import DataError
from mralign_core.method.placebos import (
    permuted_polarities,
    rows_by_trace,
    sources_in_other_traces,
    sources_within_traces,
)

IDS = st.lists(st.sampled_from("abcdefg"), max_size=30)
SEEDS = st.integers(0, 2**31 - 1)


def lent(trace_ids, sources):
    """Trace → the traces that its segments take their weights from."""
    return {trace_id: {trace_ids[n] for n in sources[rows]} for trace_id, rows in rows_by_trace(trace_ids).items()}


def sequences(trace_ids, sources):
    """Trace → where its weights come from, as (trace, segment of that trace) in order."""
    of_trace = rows_by_trace(trace_ids)
    number = {int(row): place for rows in of_trace.values() for place, row in enumerate(rows)}
    return {name: [(trace_ids[n], number[int(n)]) for n in sources[own]] for name, own in of_trace.items()}


@given(IDS, SEEDS)
def test_within_traces_every_weight_is_kept_once_and_stays_in_its_trace(trace_ids, seed):
    sources = sources_within_traces(trace_ids, seed=seed)
    assert sorted(sources) == list(range(len(trace_ids)))
    assert all(lenders == {trace_id} for trace_id, lenders in lent(trace_ids, sources).items())


@given(IDS, SEEDS)
def test_from_other_traces_each_gets_one_other_of_its_polarity_in_order_and_again_from_the_first(trace_ids, seed):
    is_positive = [trace_id in "abc" for trace_id in trace_ids]
    if 1 in Counter(trace_id in "abc" for trace_id in set(trace_ids)).values():
        with pytest.raises(DataError, match="is the only labelled one that is"):
            sources_in_other_traces(trace_ids, is_positive, seed=seed)
        return
    sources = sources_in_other_traces(trace_ids, is_positive, seed=seed)
    lengths = Counter(trace_ids)
    for trace_id, taken in sequences(trace_ids, sources).items():
        (lender,) = {name for name, _ in taken}
        assert lender != trace_id
        assert (lender in "abc") == (trace_id in "abc")
        assert [place for _, place in taken] == [n % lengths[lender] for n in range(lengths[trace_id])]


@given(st.permutations(list("aabbbccdd")), SEEDS)
def test_the_order_of_rows_does_not_matter(shuffled, seed):
    in_order = sorted(shuffled)
    for draw in (
        lambda ids: sources_within_traces(ids, seed=seed),
        lambda ids: sources_in_other_traces(ids, [name in "ab" for name in ids], seed=seed),
    ):
        assert sequences(shuffled, draw(shuffled)) == sequences(in_order, draw(in_order))


def test_within_a_trace_other_traces_do_not_matter():
    both = sequences(list("aaaabbb"), sources_within_traces(list("aaaabbb"), seed=3))
    alone = sequences(list("aaaa"), sources_within_traces(list("aaaa"), seed=3))
    assert both["a"] == alone["a"]


def test_lenders_and_permutations_are_uniform():
    ids = [f"t{n}" for n in range(4) for _ in range(3)]
    lenders: Counter[tuple[str, int]] = Counter()
    orders: Counter[tuple[int, ...]] = Counter()
    for seed in range(1200):
        lenders.update(sequences(ids, sources_in_other_traces(ids, [True] * 12, seed=seed))["t1"][:1])
        orders[tuple(sources_within_traces(["x"] * 3, seed=seed).tolist())] += 1
    assert set(lenders) == {("t0", 0), ("t2", 0), ("t3", 0)}
    assert len(orders) == 6
    # Each count is binomial: 6 standard deviations around its mean.
    assert all(abs(count - 400) < 6 * np.sqrt(1200 * 2 / 9) for count in lenders.values())
    assert all(abs(count - 200) < 6 * np.sqrt(1200 * 5 / 36) for count in orders.values())


def test_a_seed_repeats_and_another_differs():
    ids = [f"t{n}" for n in range(20) for _ in range(5)]
    for draw in (
        lambda seed: sources_within_traces(ids, seed=seed),
        lambda seed: sources_in_other_traces(ids, [True] * 100, seed=seed),
        lambda seed: permuted_polarities(sorted(set(ids)), [n % 2 == 0 for n in range(20)], seed=seed),
    ):
        assert (draw(0) == draw(0)).all()
        assert (draw(0) != draw(1)).any()


@given(st.permutations(list("abcdefgh")), SEEDS)
def test_permuted_polarities_keep_their_number_whatever_the_order(ids, seed):
    permuted = permuted_polarities(ids, [name in "abc" for name in ids], seed=seed)
    assert permuted.sum() == 3
    in_order = permuted_polarities(sorted(ids), [name in "abc" for name in sorted(ids)], seed=seed)
    assert dict(zip(ids, permuted, strict=True)) == dict(zip(sorted(ids), in_order, strict=True))


def test_every_trace_can_get_the_other_polarity():
    drawn = np.array([permuted_polarities(list("abcd"), [True, True, False, False], seed=seed) for seed in range(200)])
    assert (np.abs(drawn.mean(axis=0) - 0.5) < 0.2).all()
