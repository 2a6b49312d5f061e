import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.method.distances import (
    WeightShift,
    matrix_distance,
    rank_correlation,
    weight_shift,
    weighted_distance,
)


def test_matrix_distance_is_over_rows_with_support_in_both():
    p, q = (
        np.array([[0.0, 0.5, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        np.array([[0, 0.9, 0.1], [0, 0, 1], [0, 0, 1]]),
    )
    counts_p, counts_q = np.diag([9.0, 5.0, 0.0]), np.diag([9.0, 0.4, 0.0])
    found = matrix_distance(p, q, counts_p, counts_q)
    assert found.mean_l1 == pytest.approx(0.8)
    assert (found.num_rows, found.num_rows_of_one) == (1, 1)
    assert found.total_variation == pytest.approx(0.4)
    assert matrix_distance(p, q, counts_p, counts_q, min_support=0.1).mean_l1 == pytest.approx((0.8 + 2) / 2)
    assert math.isnan(matrix_distance(p, q, counts_p, counts_q, min_support=99).mean_l1)


def test_weighted_distance_worked_by_hand():
    p, q = np.array([[0.5, 0.5, 0], [0, 1, 0]]), np.array([[0.5, 0, 0.5], [0, 1, 0]])
    # Rows are 1 and 0 apart, and are left 3 times and once.
    assert weighted_distance(p, q, np.array([[1.0, 2, 0], [0, 1, 0]])) == pytest.approx(3 / 4)


def test_weight_shift():
    same = weight_shift(np.array([0.5, 1.0, 2.0]), np.array([0.5, 1.0, 2.0]))
    assert (same.num_segments, same.mean_abs_log_ratio, same.share_crossing) == (3, 0.0, 0.0)
    swapped = weight_shift(np.array([0.5, 2.0]), np.array([2.0, 0.5]))
    assert swapped.num_segments == 2 and swapped.share_crossing == 1
    assert swapped.mean_abs_log_ratio == pytest.approx(math.log(4))
    assert weight_shift(np.array([]), np.array([])) == WeightShift(0, 0.0, 0.0)


def test_rank_correlation_of_equal_values_is_not_defined():
    assert rank_correlation(np.array([0.5, 1.0, 2.0]), np.array([0.5, 1.0, 2.0])) == pytest.approx(1)
    assert rank_correlation(np.array([0.5, 2.0]), np.array([2.0, 0.5])) == pytest.approx(-1)
    assert math.isnan(rank_correlation(np.ones(3), np.array([1.0, 2.0, 3.0])))


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=3, max_size=30))
def test_rank_correlation_equals_scipys(pairs):
    from scipy.stats import spearmanr

    a, b = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    if len(set(a)) > 1 and len(set(b)) > 1:
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
