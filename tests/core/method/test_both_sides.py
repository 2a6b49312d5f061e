"""Which draws of a question count: all, or as many right as wrong ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.method.both_sides import draws_on_both_sides

DRAWS = st.lists(st.sampled_from([True, False, None]), max_size=12)


@pytest.mark.parametrize(
    ("is_right", "counted"),
    [
        ([], []),
        ([True, False], [0, 1]),
        ([False, False, True, True], [0, 1, 2, 3]),  # as many of either
        ([True, True, True, False], [0, 3]),  # the first right one, not the nearest
        ([False, True, False, True, False], [0, 1, 2, 3]),
        ([True] * 4, []),  # one way only
        ([False] * 4, []),
        ([None, True, None, False, False], [1, 3]),  # what failed has no side
        ([None, None], []),
        ([True, None], []),
    ],
)
def test_matched_takes_the_first_of_each_side_as_many_as_the_other_has(is_right, counted):
    assert draws_on_both_sides(is_right, "matched") == counted


@given(DRAWS)
def test_all_draws_are_all_that_are_right_or_wrong(is_right):
    assert draws_on_both_sides(is_right, "all_draws") == [n for n, one in enumerate(is_right) if one is not None]


@given(DRAWS)
def test_matched_draws_are_some_of_all_and_none_more_could_be_matched(is_right):
    counted = draws_on_both_sides(is_right, "matched")
    assert counted == sorted(set(counted)) and set(counted) <= set(draws_on_both_sides(is_right, "all_draws"))
    sides = [is_right[number] for number in counted]
    assert sides.count(True) == sides.count(False) == min(is_right.count(True), is_right.count(False))


def test_a_choice_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="take is 'selected'; it must be 'all_draws' or 'matched'"):
        draws_on_both_sides([True], "selected")  # type: ignore[arg-type]
