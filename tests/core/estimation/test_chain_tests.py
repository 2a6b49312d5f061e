"""Stationarity and order of chains, on numbers worked by hand and on chains whose truth is known."""

import numpy as np
import pytest

from mralign_core.estimation.chain_tests import compare_orders, stationarity_test
from mralign_core.method.stationarity import chi2_tail, split_halves

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


def test_traces_without_halves_are_refused():
    with pytest.raises(ValueError, match="none has halves"):
        stationarity_test([[(1,), (2,)]], K, np.random.default_rng(0))


def test_p_values_of_one_chain_are_spread_and_those_of_the_naive_tests_are_not():
    rng = np.random.default_rng(0)
    results = [
        stationarity_test(walks(random_chain(rng, UNEVEN_STOP), rng), K, rng, num_resamples=49) for _ in range(150)
    ]
    trusted = np.array([result.simulated_p_value for result in results])
    # Three standard errors around what even p-values have.
    assert 0.03 < (trusted <= 0.1).mean() < 0.17 and 0.43 < trusted.mean() < 0.57
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
    def test_of(vague):
        # First halves go 1 → vague → 1, second halves 1 → 1 → 1.
        return stationarity_test([[(1,), vague, (1,), (1,), (1,)]] * 20, K, np.random.default_rng(0), num_resamples=9)

    # p(1 | 1) = 1 makes both halves certain, since 1 is in {1, 2}: as a state of its own it would not be.
    assert test_of((1, 2)).statistic == pytest.approx(0, abs=0.05)
    # 1 is not in {2, 3}: of 60 transitions from 1 a third, those of the first halves, go there.
    expected = -2 * (20 * np.log(1 / 3) + 40 * np.log(2 / 3))
    assert test_of((2, 3)).statistic == pytest.approx(expected, abs=0.01)


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
    result = compare_orders(second_order_walks(rng, 120), rng, num_resamples=200, num_simulations=99)
    assert result.gain_low > 0.2 and result.simulated_p_value == 0.01
    assert result.gain == pytest.approx(result.second - result.first)


def test_a_second_order_chain_is_found_behind_vague_labels():
    rng = np.random.default_rng(5)
    vague = [
        [(step[0], 1 + step[0] % 4) if rng.random() < 0.5 else step for step in trace]
        for trace in second_order_walks(rng, 200)
    ]
    result = compare_orders(vague, rng, num_resamples=200, num_simulations=99)
    assert result.gain_low > 0.1 and result.simulated_p_value == 0.01


def first_order(rng):
    return walks(random_chain(rng, EVEN_STOP), rng, 120)


def first_order_in_sets(rng, number=120):
    """A chain whose states are eight sets of one or two labels: the present set is all that matters."""
    sets = [(1,), (2,), (3,), (4,), (1, 2), (2, 3), (3, 4), (1, 4)]
    p = rng.dirichlet(np.full(8, 0.5), 8)
    traces = []
    for _ in range(number):
        steps = [int(rng.integers(8))]
        while rng.random() > 0.12:
            steps.append(int(rng.choice(8, p=p[steps[-1]])))
        traces.append([sets[step] for step in steps])
    return traces


def first_order_in_labels(rng):
    """Eq. 6: an active label of the present set is left, and the one entered comes in company or alone."""
    p, traces = random_chain(rng, EVEN_STOP), []
    for _ in range(120):
        present: tuple[int, ...] = (0,)
        steps = []
        while (entered := int(rng.choice(K, p=p[rng.choice(present)]))) != K - 1:
            present = (entered, 1 + entered % 4) if rng.random() < 0.5 else (entered,)
            steps.append(present)
        traces.append(steps)
    return traces


@pytest.mark.parametrize("make", [first_order, first_order_in_sets, first_order_in_labels])
def test_chains_without_memory_are_not_said_to_have_any(make):
    results = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        results.append(compare_orders(make(rng), rng, num_resamples=200, num_simulations=39))
    p_values = np.array([result.simulated_p_value for result in results])
    assert (p_values <= 0.1).sum() <= 4 and 0.3 < p_values.mean() < 0.8
    assert not any(result.gain_low > 0 for result in results)
    assert all(result.first > result.zeroth for result in results)


def test_many_traces_of_two_labels_do_not_make_memory():
    rng = np.random.default_rng(0)
    result = compare_orders(first_order_in_sets(rng, 1000), rng, num_resamples=200, num_simulations=39)
    assert result.gain_high < 0 and result.simulated_p_value > 0.05


def test_hand_worked_orders():
    # Two folds of one trace each, y = 1, 1; the other trace gives C: (start,1)→1 and (1,1)→stop.
    result = compare_orders(
        [[(1,), (1,)], [(1,), (1,)]],
        np.random.default_rng(0),
        num_folds=2,
        kappa=1.0,
        prior=1.0,
        num_resamples=9,
        num_simulations=3,
    )
    # P(1) = P(stop) = (1 + 1) / 4; P(1 | 1) = (1 + 0.5) / (2 + 1); P(1 | start, 1) = (1 + 0.5) / (1 + 1).
    assert result.zeroth == pytest.approx(np.log(0.5))
    assert result.first == pytest.approx(np.log(0.5))
    assert result.second == pytest.approx(np.log(0.75))
    assert (result.num_transitions, result.num_traces, result.num_sets) == (4, 2, 1)
    # All traces alike: every simulated number of repetitions of 1 can only be less telling, or the same.
    assert 0 < result.simulated_p_value <= 1


def test_too_few_traces_for_the_folds_are_refused():
    with pytest.raises(ValueError, match="1 questions are fewer than the 10 folds"):
        compare_orders([[(1,)], [()]], np.random.default_rng(0))
