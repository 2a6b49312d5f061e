from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.method.selection import (
    LengthBounds,
    choose_draws,
    judge_question,
    length_problem,
    next_draw,
    question_polarity,
)
from mralign_core.schemas.candidates import POLARITIES

DRAWS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=4)


@given(DRAWS)
def test_polarity_is_a_conjunction_over_draws(draws):
    polarity = question_polarity([on for on, _ in draws], [off for _, off in draws])
    assert (polarity == "positive") == all(on and not off for on, off in draws)
    assert (polarity == "negative") == all(off and not on for on, off in draws)
    assert polarity is None or polarity in POLARITIES


def test_no_draws_select_nothing():
    assert question_polarity([], []) is None


def test_unequal_numbers_of_draws_are_refused():
    with pytest.raises(ValueError):
        question_polarity([True, True], [False])


def one_at_a_time(off, on):
    """The outcomes of the draws that ``next_draw`` asks for."""
    made: dict[str, list[bool | None]] = {"off": [], "on": []}
    while following := next_draw(made["off"], made["on"], len(off)):
        mode, draw = following
        assert draw == len(made[mode])
        made[mode].append({"off": off, "on": on}[mode][draw])
    return made["off"], made["on"]


@pytest.mark.parametrize("num_draws", [1, 2, 3])
def test_draws_made_one_at_a_time_give_the_verdict_of_all_draws(num_draws):
    outcomes = list(product([True, False], repeat=num_draws))
    for off, on in product(outcomes, outcomes):
        everything = judge_question(off, on, num_draws)
        assert everything.polarity == question_polarity(on, off)
        assert bool(everything.polarity) != bool(everything.reason)
        made_off, made_on = one_at_a_time(off, on)
        assert judge_question(made_off, made_on, num_draws) == everything
        if everything.polarity:
            assert (made_off, made_on) == (list(off), list(on))


def test_no_thinking_is_drawn_for_a_question_whose_other_draws_disagree():
    assert one_at_a_time([True, True, False], [False] * 3) == ([True, True, False], [])
    assert one_at_a_time([True, False, False], [False] * 3) == ([True, False], [])


def test_thinking_stops_at_the_first_draw_that_rules_the_question_out():
    assert one_at_a_time([False] * 3, [False, True, True])[1] == [False]
    assert one_at_a_time([False] * 3, [True, True, False])[1] == [True, True, False]


@pytest.mark.parametrize("num_draws", [1, 2, 3])
def test_a_draw_that_failed_decides_nothing(num_draws):
    drawn = list(product([True, False, None], repeat=num_draws))
    for off, on in product(drawn, drawn):
        verdict = judge_question(off, on, num_draws)
        asked_off, asked_on = one_at_a_time(off, on)
        assert judge_question(asked_off, asked_on, num_draws) == verdict
        if None not in off + on:
            continue
        assert verdict.polarity is None
        known = [[[True, False] if one is None else [one] for one in right] for right in (off, on)]
        repaired = {judge_question(*pair, num_draws) for pair in product(product(*known[0]), product(*known[1]))}
        # Where earlier draws rule the question out, that stands whatever the failed ones will say.
        assert repaired == {verdict} or verdict.reason == "a draw failed"


def test_no_draw_is_asked_for_behind_one_that_failed():
    assert one_at_a_time([True, None, True], [False] * 3) == ([True, None], [])
    assert one_at_a_time([True] * 3, [False, None, False]) == ([True] * 3, [False, None])


def test_missing_draws_are_no_verdict():
    assert judge_question([True, True], [False, False], 3) == (None, "draws are missing")


@pytest.mark.parametrize(
    ("num_segments", "num_tokens", "problem"),
    [
        (4, 450, ""),
        (15, 1000, ""),
        (3, 500, "fewer than 4 segments"),
        (16, 500, "more than 15 segments"),
        (4, 449, "fewer than 450 reasoning tokens"),
        (15, 1001, "more than 1000 reasoning tokens"),
    ],
)
def test_length_bounds_are_inclusive(num_segments, num_tokens, problem):
    assert length_problem(num_segments, num_tokens, LengthBounds(4, 15, 450, 1000)) == problem


@pytest.mark.parametrize(
    ("passes", "first", "all_distinct"),
    [
        ([True, True, True, True], [0], [0, 2]),
        ([False, True, True, True], [1], [1, 2]),
        ([False, False, False, True], [3], [3]),
        ([False, False, False, False], [], []),
    ],
)
def test_draws_that_pass_are_chosen(passes, first, all_distinct):
    completions = [[1, 2], (1, 2), [1, 3], [1, 2]]
    assert choose_draws(completions, passes, "first") == first
    assert choose_draws(completions, passes, "all_distinct") == all_distinct


def test_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="'last'"):
        choose_draws([(1,)], [True], "last")  # type: ignore[arg-type]
