from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.method.transitions import (
    base_pair_sums,
    cross_tabulate,
    e_step,
    fit_em,
    fit_frequency,
    keep_most_confident,
    log_likelihood,
    m_step,
    set_transition_probs,
    transition_mask,
)
from tests.oracles import count_set_pairs, enumerate_latent_labels, plain_algorithm_2, set_transition_prob

K = 5
LABEL_SETS = st.lists(st.integers(1, K - 2), min_size=1, max_size=2, unique=True).map(tuple)
CORPORA = st.lists(st.lists(LABEL_SETS, min_size=1, max_size=6), min_size=1, max_size=6)
PRIORS = st.just(0.0) | st.floats(1e-6, 2)
FITS = st.fixed_dictionaries({"num_iterations": st.integers(1, 12), "damping": st.floats(0.1, 1), "prior": PRIORS})


def some_matrix(seed, num_states=K, sparsity=0.0):
    rng = np.random.default_rng(seed)
    p = transition_mask(num_states) * rng.gamma(1.0, size=(num_states, num_states))
    p[:-1][rng.random((num_states - 1, num_states)) < sparsity] = 0
    p[:-1, -1] += 0.01
    return p / p.sum(axis=1, keepdims=True)


@given(st.lists(st.lists(LABEL_SETS, min_size=1, max_size=3), min_size=1, max_size=3), st.integers(0, 99))
def test_e_step_and_likelihood_equal_brute_force(traces, seed):
    p = some_matrix(seed)
    pairs = count_set_pairs(traces, K)
    brute = [enumerate_latent_labels(p, trace) for trace in traces]
    np.testing.assert_allclose(e_step(p, cross_tabulate(pairs)), sum(expected for _, expected in brute), rtol=1e-10)
    assert log_likelihood(p, cross_tabulate(pairs)) == pytest.approx(sum(np.log(likelihood) for likelihood, _ in brute))


@given(CORPORA, FITS)
def test_fit_equals_the_plain_algorithm(traces, settings):
    estimate = fit_em(count_set_pairs(traces, K), K, tolerance=0, **settings)
    p, posterior, counts = plain_algorithm_2(traces, K, **settings)
    np.testing.assert_allclose(estimate.p, p, atol=1e-12)
    np.testing.assert_allclose(estimate.posterior, posterior, atol=1e-12)
    np.testing.assert_allclose(estimate.counts, counts, atol=1e-12)


@given(CORPORA, FITS)
def test_rows_sum_to_one_under_the_mask(traces, settings):
    estimate = fit_em(count_set_pairs(traces, K), K, **settings)
    mask = transition_mask(K)
    for p in (estimate.p, fit_frequency(count_set_pairs(traces, K), K).p):
        np.testing.assert_allclose(p.sum(axis=1), 1)
        assert (p >= 0).all()
        assert (p[mask == 0] == 0).all()
    assert (estimate.posterior[mask == 0] == 0).all()
    assert estimate.counts.sum() == pytest.approx(sum(len(trace) + 1 for trace in traces))


@given(CORPORA, FITS)
def test_penalised_bound_never_falls(traces, settings):
    estimate = fit_em(count_set_pairs(traces, K), K, **settings)
    assert len(estimate.log_posterior) == len(estimate.log_likelihood) == estimate.num_iterations + 1
    assert (np.diff(estimate.log_posterior) >= -1e-9).all()
    if settings["prior"] == 0:
        assert (np.diff(estimate.log_likelihood) >= -1e-9).all()


@given(CORPORA, PRIORS, st.integers(1, 60))
def test_an_undamped_step_never_lowers_the_posterior(traces, prior, num_iterations):
    estimate = fit_em(count_set_pairs(traces, K), K, num_iterations=num_iterations, damping=1, prior=prior, tolerance=0)
    assert (np.diff(estimate.log_posterior) >= -1e-9).all()


@given(CORPORA, st.floats(1e-6, 2))
def test_the_recorded_posterior_is_likelihood_plus_prior(traces, prior):
    pairs = count_set_pairs(traces, K)
    estimate = fit_em(pairs, K, prior=prior)
    log_prior = prior * np.log(estimate.p[transition_mask(K) > 0]).sum()
    assert estimate.log_likelihood[-1] == pytest.approx(log_likelihood(estimate.p, cross_tabulate(pairs)))
    assert estimate.log_posterior[-1] == pytest.approx(estimate.log_likelihood[-1] + log_prior)


@given(CORPORA, st.integers(0, 99))
def test_many_set_transitions_at_once_equal_one_by_one(traces, seed):
    pairs = count_set_pairs(traces, K)
    p = np.stack([some_matrix(seed), some_matrix(seed + 1)])
    probs, sums = (function(p, pairs.sources, pairs.targets) for function in (set_transition_probs, base_pair_sums))
    for matrix in range(2):
        for place, (source, target) in enumerate(zip(pairs.sources, pairs.targets, strict=True)):
            states = np.flatnonzero(source), np.flatnonzero(target)
            assert probs[matrix, place] == pytest.approx(set_transition_prob(p[matrix], *states))
            assert sums[matrix, place] == pytest.approx(sum(p[matrix][pair] for pair in product(*states)))


def test_more_states_than_bits_of_a_number():
    num_states = 150
    traces = [[(1, 140), (33,), (65, 97)], [(140,), (33, 34)]] * 3
    estimate = fit_em(count_set_pairs(traces, num_states), num_states, tolerance=0)
    p, _, counts = plain_algorithm_2(traces, num_states, 5, 0.6, 0.1)
    np.testing.assert_allclose(estimate.counts, counts, atol=1e-12)
    np.testing.assert_allclose(estimate.p, p, atol=1e-12)


@given(CORPORA, st.permutations(range(1, K - 1)))
def test_renaming_labels_renames_the_estimate(traces, permutation):
    order = np.array([0, *permutation, K - 1])
    renamed = [[tuple(int(order[state]) for state in step) for step in trace] for trace in traces]
    for fit in (fit_em, fit_frequency):
        p = fit(count_set_pairs(traces, K), K).p
        np.testing.assert_allclose(fit(count_set_pairs(renamed, K), K).p[np.ix_(order, order)], p, atol=1e-12)


@given(CORPORA, st.randoms(use_true_random=False))
def test_order_of_traces_and_labels_changes_no_bit(traces, random):
    shuffled = [[step[::-1] for step in trace] for trace in traces]
    random.shuffle(shuffled)
    p = fit_em(count_set_pairs(traces, K), K).p
    assert (fit_em(count_set_pairs(shuffled, K), K).p == p).all()


@given(CORPORA)
def test_single_labels_are_counted(traces):
    """Without latent choice, EM, the frequency estimate and counting by hand are one."""
    single = [[step[:1] for step in trace] for trace in traces]
    counts = np.zeros((K, K))
    for trace in single:
        chain = [0, *(state for (state,) in trace), K - 1]
        for a, b in pairwise(chain):
            counts[a, b] += 1
    pairs = count_set_pairs(single, K)
    em, frequency = fit_em(pairs, K, damping=1), fit_frequency(pairs, K)
    np.testing.assert_allclose(em.counts, counts, atol=1e-12)
    np.testing.assert_allclose(frequency.counts, counts, atol=1e-12)
    np.testing.assert_allclose(em.p, frequency.p, atol=1e-12)


def test_pairs_are_counted_once_with_multiplicity():
    trace = [(1,), (1, 2), (2, 1), (3,)]
    once, often = count_set_pairs([trace], K), count_set_pairs([trace] * 1000, K)
    assert often.sources.shape == once.sources.shape == (5, K)
    assert (often.multiplicities == 1000 * once.multiplicities).all()
    assert (often.num_traces, often.num_transitions) == (1000, 5000)


def test_empty_steps_are_skipped_and_counted():
    gaps = count_set_pairs([[(), (1,), (), (), (2,), ()], [(), ()], []], K)
    whole = count_set_pairs([[(1,), (2,)]], K)
    assert (gaps.sources == whole.sources).all() and (gaps.targets == whole.targets).all()
    assert (gaps.num_traces, gaps.num_empty_steps, gaps.num_empty_traces) == (1, 6, 2)


def test_pairs_of_another_taxonomy_are_refused():
    with pytest.raises(ValueError, match="5 states, num_states is 6"):
        fit_em(count_set_pairs([[(1,)]], K), K + 1)


def test_no_traces_give_the_prior():
    estimate = fit_em(count_set_pairs([], K), K)
    mask = transition_mask(K)
    np.testing.assert_allclose(estimate.p, mask / mask.sum(axis=1, keepdims=True))
    assert estimate.log_likelihood.tolist() == [0] * (estimate.num_iterations + 1)


def test_impossible_pair_is_spread_evenly_over_allowed_base_pairs():
    pairs = count_set_pairs([[(1, 2), (3,)]], K)
    p = transition_mask(K) / K
    p[[1, 2], 3] = 0
    counts = e_step(p, cross_tabulate(pairs))
    assert counts[[1, 2], 3].tolist() == [0.5, 0.5]
    assert counts.sum() == pytest.approx(3)
    assert log_likelihood(p, cross_tabulate(pairs)) == -np.inf


def test_rows_without_counts_and_prior_are_uniform():
    p = m_step(np.zeros((K, K)), 0, transition_mask(K))
    assert p[1].tolist() == [0, 0.25, 0.25, 0.25, 0.25]
    assert p[-1].tolist() == [0, 0, 0, 0, 1]


def test_stop_rule_looks_one_iteration_back():
    pairs = count_set_pairs([[(1, 2), (3,)], [(1,), (3,)]] * 5, K)
    assert fit_em(pairs, K, tolerance=1e9).num_iterations == 2, "the first iteration never stops"
    assert fit_em(pairs, K, tolerance=0).num_iterations == 5
    steps = [fit_em(pairs, K, num_iterations=n, tolerance=0).p for n in range(1, 40)]
    moves = [np.abs(after - before).max() for before, after in pairwise(steps)]
    first_small = next(n for n, move in enumerate(moves, start=2) if move < 1e-3)
    assert fit_em(pairs, K, num_iterations=40, tolerance=1e-3).num_iterations == first_small


def test_damped_step_worked_by_hand():
    # One trace <start> → 1 → <stop>: uniform rows are (1/2, 1/2), the M-step gives (1.1, 0.1) / 1.2.
    p = fit_em(count_set_pairs([[(1,)]], 3), 3, num_iterations=1).p
    assert p[0, 1] == pytest.approx(0.4 * 0.5 + 0.6 * 1.1 / 1.2)
    assert p[1, 2] == pytest.approx(0.4 * 0.5 + 0.6 * 1.1 / 1.2)


def test_log_posterior_is_penalised_by_rare_transitions():
    traces = [[(1, 2), (3,)], [(1,), (3,)]]
    estimate = fit_em(count_set_pairs(traces, K), K, prior=0.5)
    log_p = np.log(estimate.p[transition_mask(K) > 0])
    assert estimate.log_posterior[-1] == pytest.approx(estimate.log_likelihood[-1] + 0.5 * log_p.sum())
    brute = sum(np.log(enumerate_latent_labels(estimate.p, trace)[0]) for trace in traces)
    assert estimate.log_likelihood[-1] == pytest.approx(brute)


def test_set_probability_worked_by_hand():
    p = some_matrix(3)
    sources, targets = np.zeros((2, 2, K), dtype=bool)
    sources[0, 1] = targets[0, 2] = sources[1, [1, 2]] = targets[1, [2, 3]] = True
    one, four = set_transition_probs(p, sources, targets)
    assert one == p[1, 2]
    assert four == pytest.approx((p[1, 2] + p[1, 3] + p[2, 2] + p[2, 3]) / 4)


def simulate(p, num_traces, distractor_prob, rng):
    """Traces of the chain; with some probability a step also carries a label that was not active."""
    num_states = len(p)
    traces = []
    for _ in range(num_traces):
        trace, state = [], rng.choice(num_states, p=p[0])
        while state != num_states - 1:
            others = [label for label in range(1, num_states - 1) if label != state]
            extra = (rng.choice(others),) if rng.random() < distractor_prob else ()
            trace.append((state, *extra))
            state = rng.choice(num_states, p=p[state])
        traces.append(trace)
    return traces


def mean_l1(p, q):
    """Mean over rows of half the L1 distance, the total variation."""
    return np.abs(p - q)[:-1].sum(axis=1).mean() / 2


def test_estimate_approaches_the_truth_as_traces_grow():
    p = some_matrix(1)
    errors = []
    for num_traces in (30, 300, 3000):
        traces = simulate(p, num_traces, 0.0, np.random.default_rng(num_traces))
        errors.append(mean_l1(fit_em(count_set_pairs(traces, K), K, damping=1).p, p))
    assert errors[0] > 1.5 * errors[1] > 1.5 * 1.5 * errors[2]
    assert errors[2] < 0.03


def test_em_recovers_from_distractor_labels_what_counting_cannot():
    num_states = 7
    p = some_matrix(0, num_states, sparsity=0.5)
    traces = simulate(p, 2000, 0.5, np.random.default_rng(0))
    pairs = count_set_pairs(traces, num_states)
    converged = fit_em(pairs, num_states, num_iterations=200, damping=1)
    assert mean_l1(converged.p, p) < 0.7 * mean_l1(fit_frequency(pairs, num_states).p, p)
    assert mean_l1(fit_em(pairs, num_states).p, p) < mean_l1(fit_frequency(pairs, num_states).p, p)


def test_most_confident_label():
    assert keep_most_confident((), ()) == ()
    assert keep_most_confident((4, 2), (6.0, 8.5)) == (2,)
    assert keep_most_confident(("a", "b"), (7, 7)) == ("a",), "the first of equals"
    with pytest.raises(ValueError, match="2 labels with 1 confidences"):
        keep_most_confident(("a", "b"), (7,))
