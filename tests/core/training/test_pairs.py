from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mralign_core.errors import DataError
from mralign_core.training.examples import TrainingExample
from mralign_core.training.pairs import kl_partners


def make_examples(questions):
    return [
        TrainingExample(f"t{number}", f"q{question}", [question, 7], [1, 2], [1.0, 1.0], True)
        for number, question in enumerate(questions)
    ]


@settings(max_examples=200)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=25).filter(lambda items: len(set(items)) > 1))
def test_no_row_meets_its_own_question_and_completions_are_used_evenly_where_that_can_be(questions):
    partners = kl_partners(make_examples(questions))
    assert all(questions[row] != questions[partner] for row, partner in enumerate(partners))
    if 2 * max(Counter(questions).values()) <= len(questions):
        assert sorted(partners) == list(range(len(questions)))


def test_a_shared_prompt_under_two_ids_is_no_mismatch_nor_is_one_shared_through_a_third_row():
    examples = make_examples([0, 1, 2, 2, 3, 4])
    examples[1] = examples[1]._replace(prompt_ids=examples[0].prompt_ids)
    examples[3] = examples[3]._replace(prompt_ids=examples[0].prompt_ids)
    related = {0, 1, 2, 3}
    partners = kl_partners(examples)
    assert all(partners[row] not in related for row in related)


def test_distinct_questions_form_one_cycle_so_that_a_batch_in_its_order_has_trls_pairs():
    partners = kl_partners(make_examples(range(12)))
    row, seen = 0, []
    for _ in range(12):
        seen.append(row)
        row = partners[row]
    assert row == 0
    assert sorted(seen) == list(range(12))
    assert seen != sorted(seen)


def test_the_pairs_are_a_function_of_the_rows_alone():
    assert kl_partners(make_examples(range(9))) == kl_partners(make_examples(range(9)))


def test_one_question_is_an_error_that_says_so():
    with pytest.raises(DataError, match="all 3 training traces ask question 'q7'"):
        kl_partners(make_examples([7, 7, 7]))
