"""Stationarity and order of chains, on numbers worked by hand and on chains whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mralign_core.method.chain_tests import (
    chi2_tail,
    compare_orders,
    max_log_likelihoods,
    split_halves,
    stationarity_test,
)
from mralign_core.method.transitions import count_set_pairs, fit_em

K = 6
EVEN_STOP = np.full(K - 2, 0.12)
UNEVEN_STOP = np.array([0.01, 0.02, 0.05, 0.6])
"""A chain that mostly stops from its last label: the end of a trace looks unlike its beginning, though P is one."""


def random_chain(rng, stop):
    p = np.zeros((K, K))
    p[:-1, 1:-1] = rng.dirichlet(np.full(K - 2, 0.7), K - 1)
    p[1:-1] *= 1 - stop[:, None]
    p[1:-1, -1] = stop
    p[-1, -1] = 1
    return p


def walk(p, rng):
    state, steps = 0, []
    while state != K - 1:
        state = int(rng.choice(K, p=p[state]))
        steps.append((state,))
    return steps[:-1]


def walks(p, rng, number=80):
    return [walk(p, rng) for _ in range(number)]


def test_hand_worked_likelihood_ratio():
    # First halves go 1→1, second halves 1→2, from 1 only: log-likelihood 0 with two matrices, 4·2·log ½ with one.
    traces = [[(1,), (1,), (1,), (2,)]] * 4
    halves = split_halves(traces, 4)
    assert halves.first.sum() == halves.second.sum() == 4
    result = stationarity_test(traces, 4, np.random.default_rng(0), num_resamples=9)
    assert result.statistic == pytest.approx(2 * 8 * np.log(2), abs=1e-3)
    assert (result.degrees_of_freedom, result.num_traces, result.num_transitions) == (1, 4, 8)
    assert result.chi2_p_value == pytest.approx(chi2_tail(result.statistic, 1))


@pytest.mark.parametrize(("statistic", "freedom", "tail"), [(3.841459, 1, 0.05), (18.307, 10, 0.05), (2.706, 1, 0.1)])
def test_chi2_tail_equals_the_printed_table(statistic, freedom, tail):
    assert chi2_tail(statistic, freedom) == pytest.approx(tail, abs=1e-4)


def test_short_and_unlabelled_traces_have_no_halves():
    halves = split_halves([[(1,), (2,)], [()], [(1,), (), (2,), (3,)]], K)
    assert halves.first.shape == (1, 2) and halves.first.sum() == halves.second.sum() == 1
    with pytest.raises(ValueError, match="none has halves"):
        stationarity_test([[(1,), (2,)]], K, np.random.default_rng(0))


LABEL_SETS = st.lists(st.integers(1, K - 2), min_size=1, max_size=2, unique=True).map(lambda s: tuple(sorted(s)))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(LABEL_SETS, min_size=2, max_size=5), min_size=1, max_size=5))
def test_the_largest_likelihood_equals_that_of_the_plain_estimator(traces):
    pairs = count_set_pairs(traces, K)
    found, counts = max_log_likelihoods(
        pairs.sources, pairs.targets, pairs.multiplicities[None].astype(float), tolerance=1e-10, num_iterations=400
    )
    plain = fit_em(pairs, K, num_iterations=400, damping=1.0, prior=0.0, tolerance=0)
    sizes = pairs.sources.sum(axis=1) * pairs.targets.sum(axis=1)
    rho = float(pairs.multiplicities @ np.log(sizes))
    assert found[0] == pytest.approx(plain.log_likelihood[-1] + rho, abs=1e-3)
    assert counts[0].sum() == pytest.approx(pairs.num_transitions)


def test_p_values_of_one_chain_are_spread_and_those_of_the_naive_tests_are_not():
    rng = np.random.default_rng(0)
    results = [
        stationarity_test(walks(random_chain(rng, UNEVEN_STOP), rng), K, rng, num_resamples=49) for _ in range(40)
    ]
    trusted = np.array([result.simulated_p_value for result in results])
    assert (trusted <= 0.1).mean() < 0.25 and 0.35 < trusted.mean() < 0.65
    # Why the simulated one is there: the chain is stationary, and the other two deny it.
    assert np.mean([result.permutation_p_value <= 0.1 for result in results]) > 0.6
    assert np.mean([result.chi2_p_value <= 0.1 for result in results]) > 0.6


def test_a_change_of_the_chain_along_the_trace_is_found():
    rng = np.random.default_rng(1)
    early, late = (random_chain(rng, np.zeros(K - 2))[1:-1, 1:-1] for _ in range(2))

    def trace():
        state, steps = 0, [(1,)]
        for place in range(12):
            state = int(rng.choice(K - 2, p=(early if place < 6 else late)[state]))
            steps.append((state + 1,))
        return steps

    result = stationarity_test([trace() for _ in range(60)], K, rng, num_resamples=49)
    assert result.simulated_p_value == result.permutation_p_value == 0.02
    assert result.chi2_p_value < 1e-6


def test_sets_enter_by_their_members():
    rng = np.random.default_rng(2)
    traces = walks(random_chain(rng, EVEN_STOP), rng)
    vague = [[(1, 2) if step == (1,) and rng.random() < 0.5 else step for step in trace] for trace in traces]
    sharp, blurred = (stationarity_test(t, K, np.random.default_rng(0), num_resamples=9) for t in (traces, vague))
    assert sharp.num_transitions == blurred.num_transitions
    assert blurred.statistic > 0 and blurred.degrees_of_freedom <= sharp.degrees_of_freedom


def test_the_same_seed_gives_the_same_result_and_progress_ends():
    traces = walks(random_chain(np.random.default_rng(3), EVEN_STOP), np.random.default_rng(3), 20)
    seen = []
    one = stationarity_test(
        traces, K, np.random.default_rng(0), num_resamples=9, on_progress=lambda done, total: seen.append((done, total))
    )
    assert one == stationarity_test(traces, K, np.random.default_rng(0), num_resamples=9)
    assert seen[-1] == (18, 18)


def second_order_walks(rng, number):
    """After a, b comes a again with probability .8: the state before the last decides."""
    traces = []
    for _ in range(number):
        steps = [int(state) for state in rng.integers(1, K - 1, size=2)]
        while rng.random() > 0.08:
            steps.append(steps[-2] if rng.random() < 0.8 else int(rng.integers(1, K - 1)))
        traces.append([(state,) for state in steps])
    return traces


def test_a_second_order_chain_is_found():
    rng = np.random.default_rng(4)
    result = compare_orders(second_order_walks(rng, 120), K, rng, num_resamples=200)
    assert result.gain_low > 0.2
    assert result.gain == pytest.approx(result.second - result.first)


@pytest.mark.parametrize("seed", range(3))
def test_a_first_order_chain_gains_nothing_by_a_second(seed):
    rng = np.random.default_rng(seed)
    result = compare_orders(walks(random_chain(rng, EVEN_STOP), rng, 120), K, rng, num_resamples=200)
    assert result.gain < 0.01 and result.gain_low < 0
    assert result.first > result.zeroth


def test_hand_worked_orders():
    # Two folds of one trace each, y = 1, 1; the other trace gives C: (start,1)→1 and (1,1)→stop.
    result = compare_orders(
        [[(1,), (1,)], [(1,), (1,)]], 3, np.random.default_rng(0), num_folds=2, kappa=1.0, prior=1.0, num_resamples=9
    )
    # P(1) = P(stop) = (1 + 1) / 4; P(1 | 1) the same; P(1 | start, 1) = (1 + 0.5) / 2.
    assert result.zeroth == pytest.approx(np.log(0.5))
    assert result.first == pytest.approx(np.log(0.5))
    assert result.second == pytest.approx(np.log(0.75))
    assert (result.num_transitions, result.num_traces) == (4, 2)


def test_too_few_traces_for_the_folds_are_refused():
    with pytest.raises(ValueError, match="1 traces are fewer than the 10 folds"):
        compare_orders([[(1,)], [()]], K, np.random.default_rng(0))
