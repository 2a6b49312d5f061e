import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mralign_core.method.stationarity import chi2_tail, max_log_likelihoods, split_halves
from mralign_core.method.transitions import fit_em
from tests.oracles import count_set_pairs

K = 6


@pytest.mark.parametrize(("statistic", "freedom", "tail"), [(3.841459, 1, 0.05), (18.307, 10, 0.05), (2.706, 1, 0.1)])
def test_chi2_tail_equals_the_printed_table(statistic, freedom, tail):
    assert chi2_tail(statistic, freedom) == pytest.approx(tail, abs=1e-4)


def test_short_and_unlabelled_traces_have_no_halves():
    halves = split_halves([[(1,), (2,)], [()], [(1,), (), (2,), (3,)]], K)
    assert halves.first.shape == (1, 2) and halves.first.sum() == halves.second.sum() == 1


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
