import math
import typing
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mralign_core.method.segment_weights import (
    WeightForm,
    clip_ratios,
    neutral_weight,
    segment_weights,
    set_pair_ratios,
    shrink_ratios,
    weights_of_ratios,
)
from mralign_core.method.set_pairs import members_of_codes, moves_into_steps
from mralign_core.method.transitions import fit_em, transition_mask
from tests.oracles import count_set_pairs, trace_ratios

NUM_STATES = 5
LABEL_SETS = st.lists(st.integers(1, NUM_STATES - 2), max_size=2, unique=True).map(tuple)
LABELLED_SETS = st.lists(st.integers(1, NUM_STATES - 2), min_size=1, max_size=2, unique=True).map(tuple)
STEPS = st.lists(LABEL_SETS, max_size=6)
MATRICES = arrays(np.float64, (NUM_STATES, NUM_STATES), elements=st.floats(0.01, 1)).map(
    lambda values: values * transition_mask(NUM_STATES)
)

#                     start  1     2    stop
P_PLUS = np.array([[0.0, 0.6, 0.4, 0.0], [0, 0.2, 0.6, 0.2], [0, 0.5, 0.1, 0.4], [0, 0, 0, 1]])
P_ALL = np.array([[0.0, 0.3, 0.7, 0.0], [0, 0.4, 0.4, 0.2], [0, 0.3, 0.5, 0.2], [0, 0, 0, 1]])


def ratios_along(steps, p, q):
    """The ratio into each step of one trace, as the reward stage makes it: from the columns of its labels."""
    labels = np.array([(*sorted(step), 0, 0)[:2] for step in steps], dtype=np.int64).reshape(-1, 2)
    moves = moves_into_steps(labels, np.zeros(len(steps), dtype=np.int64), len(p))
    sources, targets = members_of_codes(moves.sources * len(p) ** 2 + moves.targets, len(p))
    ratios = np.ones(len(steps))
    ratios[moves.steps] = set_pair_ratios(p, q, sources, targets)
    return ratios


def test_ratios_worked_by_hand():
    # start → {1}: 0.6 / 0.3; {1} → {1, 2}: (0.2 + 0.6) / (0.4 + 0.4); {1, 2} → {2}: (0.6 + 0.1) / (0.4 + 0.5)
    assert ratios_along([(1,), (1, 2), (2,)], P_PLUS, P_ALL) == pytest.approx([2, 1, 0.7 / 0.9])


def test_unlabelled_step_is_passed_over():
    ratios = ratios_along([(), (1,), (), (), (2,), ()], P_PLUS, P_ALL)
    assert ratios == pytest.approx([1, 2, 1, 1, 1.5, 1])


def test_nothing_to_weigh():
    assert ratios_along([], P_PLUS, P_ALL).shape == (0,)
    assert ratios_along([(), ()], P_PLUS, P_ALL).tolist() == [1, 1]


def test_impossible_transitions():
    never = transition_mask(4)
    never[0, 1] = 0
    assert ratios_along([(1,)], P_PLUS, never).tolist() == [math.inf]
    assert ratios_along([(1,)], never, P_ALL).tolist() == [0]
    assert ratios_along([(1,)], never, never).tolist() == [1]
    assert clip_ratios(np.array([math.inf, 0.0]), 0.5, 2).tolist() == [2, 0.5]


@given(STEPS, MATRICES, MATRICES, st.booleans())
def test_the_kernel_equals_the_plain_formula(steps, p, q, with_gap):
    p[1, 2] *= not with_gap  # an impossible transition has its own rule
    q[1] *= not with_gap
    np.testing.assert_allclose(ratios_along(steps, p, q), trace_ratios(steps, p, q))


@given(st.lists(LABELLED_SETS, min_size=1, max_size=6), MATRICES, MATRICES, st.booleans())
def test_many_ratios_at_once_equal_those_along_a_trace(steps, p, q, with_gap):
    p[1, 2] *= not with_gap  # an impossible transition has its own rule
    q[1] *= not with_gap
    sources, targets = np.zeros((2, len(steps), NUM_STATES), dtype=bool)
    for place, (source, target) in enumerate(zip([(0,), *steps], steps, strict=False)):
        sources[place, list(source)] = targets[place, list(target)] = True
    expected = trace_ratios(steps, p, q)
    np.testing.assert_allclose(set_pair_ratios(p, q, sources, targets), expected)
    both = set_pair_ratios(np.stack([p, q]), np.stack([q, p]), sources, targets)
    np.testing.assert_allclose(both, [expected, trace_ratios(steps, q, p)])


def test_shrinkage_worked_by_hand():
    # n / (n + τ) is 1/4, 1/2, 3/4 and 0
    shrunk = shrink_ratios(np.array([16, 16, 16, 1 / 16]), np.array([1.0, 3.0, 9.0, 0.0]), 3.0)
    assert shrunk == pytest.approx([2, 4, 8, 1])


@given(arrays(np.float64, 5, elements=st.floats(0.01, 100)), arrays(np.float64, 5, elements=st.floats(0, 1e6)))
def test_shrinkage_goes_from_the_ratio_to_one(ratios, support):
    assert shrink_ratios(ratios, support, 0.0).tolist() == ratios.tolist(), "the paper's"
    assert shrink_ratios(ratios, support, 1e15) == pytest.approx(np.ones(5), abs=1e-7)
    some, more = (np.abs(np.log(shrink_ratios(ratios, support, shrinkage))) for shrinkage in (1.0, 10.0))
    assert (more <= some + 1e-12).all() and (some <= np.abs(np.log(ratios)) + 1e-12).all()


def test_negative_shrinkage_is_refused():
    with pytest.raises(ValueError, match=r"shrinkage is -1\.0"):
        shrink_ratios(np.ones(1), np.ones(1), -1.0)


@given(STEPS, MATRICES)
def test_equal_matrices_weigh_nothing(steps, p):
    assert ratios_along(steps, p, p).tolist() == [1] * len(steps)


@given(STEPS, MATRICES, MATRICES)
def test_swapped_matrices_give_inverse_ratios(steps, p, q):
    assert ratios_along(steps, p, q) * ratios_along(steps, q, p) == pytest.approx(np.ones(len(steps)))


@given(STEPS, MATRICES, MATRICES)
def test_unlabelled_steps_change_no_other_ratio(steps, p, q):
    labelled = [step for step in steps if step]
    ratios = ratios_along(steps, p, q)
    assert ratios[[bool(step) for step in steps]].tolist() == ratios_along(labelled, p, q).tolist()


@given(st.lists(LABELLED_SETS, min_size=1, max_size=4), STEPS)
def test_smoothed_estimates_give_finite_positive_ratios(seen, unseen):
    p_plus = fit_em(count_set_pairs([seen], NUM_STATES), NUM_STATES).p
    p_all = fit_em(count_set_pairs([seen, seen[::-1]], NUM_STATES), NUM_STATES).p
    ratios = ratios_along(unseen, p_plus, p_all)
    assert np.isfinite(ratios).all() and (ratios > 0).all()


@given(arrays(np.float64, 5, elements=st.floats(0, 1e6)), st.floats(0.01, 1), st.floats(1, 100))
def test_weights_stay_inside_the_clip(ratios, low, high):
    weights = clip_ratios(ratios, low, high)
    assert ((weights >= low) & (weights <= high)).all()
    inside = (ratios >= low) & (ratios <= high)
    assert (weights[inside] == ratios[inside]).all()


def test_what_the_clip_moved_is_told():
    # 16 ** (1 / 4) is 2, inside the clip though 16 is not; 16 is beyond it.
    found = segment_weights(np.array([16.0, 16.0]), np.array([1.0, 1e15]), shrinkage=3.0, low=0.5, high=3.0)
    assert found.weights == pytest.approx([2, 3]) and found.is_clipped.tolist() == [False, True]


@pytest.mark.parametrize(("low", "high"), [(0, 2), (1.1, 2), (0.5, 0.9), (-1, 1)])
def test_bounds_must_enclose_one(low, high):
    with pytest.raises(ValueError, match="enclose 1"):
        clip_ratios(np.ones(1), low, high)


FORMS = typing.get_args(WeightForm)
RATIOS = arrays(np.float64, 6, elements=st.floats(1e-3, 1e3))


@given(RATIOS, st.floats(0.1, 5), st.sampled_from(FORMS))
def test_whatever_the_form_a_larger_ratio_weighs_more_and_ratio_1_is_neutral(ratios, gamma, form):
    weights = weights_of_ratios(np.sort(ratios), form, gamma)
    assert (np.diff(weights) >= 0).all()
    assert weights_of_ratios(np.ones(1), form, gamma) == neutral_weight(form)


@given(RATIOS)
def test_power_1_is_the_paper_s_form_to_the_last_bit(ratios):
    assert weights_of_ratios(ratios, "power", 1.0).tolist() == weights_of_ratios(ratios, "ratio", 1.0).tolist()


@given(st.floats(-1e-4, 1e-4), st.floats(0.1, 5))
def test_power_linear_and_signed_agree_for_moves_that_tell_little(log_ratio, gamma):
    ratio = np.exp(np.array([log_ratio]))
    power, linear, signed = (weights_of_ratios(ratio, form, gamma)[0] for form in ("power", "linear", "signed"))
    assert linear == pytest.approx(power, abs=1e-6)
    assert signed == pytest.approx(linear - 1, abs=1e-12)


def test_signed_weights_of_a_right_and_a_wrong_trace_sum_to_the_odds_of_its_ends():
    # a process over habits with chances h to end right: along a trace, the logs of h(b)/h(a) telescope
    h = np.array([0.5, 0.8, 0.3, 0.6])
    ups, downs = h[1:] / h[:-1], (1 - h[1:]) / (1 - h[:-1])
    bounds: dict[str, Any] = {"shrinkage": 0.0, "low": 1e-9, "high": 1e9, "form": "signed", "gamma": 1.0}
    right = segment_weights(ups, np.ones(3), **bounds).weights.sum()
    wrong = segment_weights(downs, np.ones(3), **bounds).weights.sum()
    odds = h / (1 - h)
    assert right - wrong == pytest.approx(np.log(odds[-1] / odds[0]))


def test_the_clip_flag_is_of_the_ratio_in_every_form():
    for form in FORMS:
        found = segment_weights(
            np.array([0.1, 1.0, 9.0]), np.ones(3), shrinkage=0, low=0.5, high=2.0, form=form, gamma=2
        )
        assert found.is_clipped.tolist() == [True, False, True]


def test_gamma_below_0_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        weights_of_ratios(np.ones(1), "power", 0.0)
