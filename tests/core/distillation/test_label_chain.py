"""The sequence model: against the enumeration of all sequences, and at its own optimum."""

import itertools

import numpy as np
import pytest
from scipy import sparse

from mralign_core.distillation.label_chain import LabelChain, fit_label_chain
from mralign_core.method.transitions import transition_mask


def random_chain(num_features, num_labels, seed=0):
    rng = np.random.default_rng(seed)
    mask = transition_mask(num_labels + 2) > 0
    return LabelChain(rng.normal(size=(num_features, num_labels)), np.where(mask, rng.normal(size=mask.shape), 0.0))


def paths(chain, rows):
    """Every sequence of labels of one trace, and the log of its potential."""
    scores = rows @ chain.emission
    for path in itertools.product(range(scores.shape[1]), repeat=len(rows)):
        states = [0, *(label + 1 for label in path), scores.shape[1] + 1]
        moves = sum(chain.transition[a, b] for a, b in itertools.pairwise(states))
        yield path, moves + sum(scores[place, label] for place, label in enumerate(path))


def objective(chain, traces, given, l2):
    """The penalised log-likelihood, by enumeration."""
    total = -0.5 * l2 * ((chain.emission**2).sum() + (chain.transition**2).sum())
    for rows, labels in zip(traces, given, strict=True):
        everything = list(paths(chain, rows))
        for end in (0, -1):  # the first label of each segment, then the last one
            wanted = [set(np.flatnonzero(row)[[end]]) if row.any() else set(range(len(row))) for row in labels]
            right = [log for path, log in everything if all(label in wanted[place] for place, label in enumerate(path))]
            total += 0.5 * (np.logaddexp.reduce(right) - np.logaddexp.reduce([log for _, log in everything]))
    return total


def test_marginals_are_those_of_all_sequences():
    rng, chain, lengths = np.random.default_rng(1), random_chain(4, 3), [3, 1, 4]
    features = rng.normal(size=(sum(lengths), 4))
    found = chain.marginals(sparse.csr_matrix(features), lengths)
    ends = np.cumsum(lengths)
    for start, end in zip(ends - lengths, ends, strict=True):
        expected = np.zeros((end - start, 3))
        for path, log in paths(chain, features[start:end]):
            expected[np.arange(len(path)), list(path)] += np.exp(log)
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found[start:end], expected, atol=1e-12)


@pytest.mark.parametrize("has_two", [False, True])
def test_no_step_away_from_a_fitted_chain_is_better(has_two):
    rng, lengths, l2 = np.random.default_rng(2), [3, 2, 4, 3], 0.5
    features = rng.normal(size=(sum(lengths), 3))
    given = np.eye(3, dtype=bool)[rng.integers(3, size=sum(lengths))]
    if has_two:
        given[::3] |= np.roll(given[::3], 1, axis=1)
        given[1] = False  # a segment without labels
    chain = fit_label_chain(sparse.csr_matrix(features), lengths, given, l2)
    ends = np.cumsum(lengths)[:-1]
    traces, labels = np.split(features, ends), np.split(given, ends)
    best = objective(chain, traces, labels, l2)
    mask = transition_mask(5) > 0
    for _ in range(25):
        moved = LabelChain(
            chain.emission + 0.05 * rng.normal(size=chain.emission.shape),
            chain.transition + np.where(mask, 0.05 * rng.normal(size=mask.shape), 0.0),
        )
        assert objective(moved, traces, labels, l2) < best


def test_a_segment_without_labels_takes_no_part():
    rng = np.random.default_rng(3)
    features = sparse.csr_matrix(rng.normal(size=(6, 2)))
    given = np.eye(2, dtype=bool)[[0, 1, 0, 1, 0, 1]]
    given[4:] = False
    alone = fit_label_chain(features[:4], [4], given[:4], 1.0)
    # A second trace of which nothing is known leaves the chain as it was.
    both = fit_label_chain(features, [4, 2], given, 1.0)
    np.testing.assert_allclose(both.emission, alone.emission, atol=1e-4)


def test_what_can_not_be_fitted_is_refused():
    features = sparse.csr_matrix(np.ones((2, 1)))
    with pytest.raises(ValueError, match="l2 must be above 0"):
        fit_label_chain(features, [2], np.ones((2, 2), dtype=bool), 0.0)
    assert random_chain(1, 2).marginals(features[:0], []).shape == (0, 2)
