from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mralign_core.errors import DataError
from mralign_core.training.examples import TrainingExample
from mralign_core.training.sampler import EpochSampler


def make_examples(questions):
    return [
        TrainingExample(f"t{number}", f"q{question}", [number], [1, 2], [1.0, 1.0], True)
        for number, question in enumerate(questions)
    ]


def make_sampler(examples, rows_per_epoch=None, rows_per_step=4, seed=0, paired=True):
    return EpochSampler(
        examples,
        rows_per_epoch=rows_per_epoch or len(examples),
        rows_per_step=rows_per_step,
        seed=seed,
        paired=paired,
    )


@settings(max_examples=60, deadline=None)
@given(
    questions=st.lists(st.integers(0, 4), min_size=2, max_size=25).filter(lambda items: len(set(items)) > 1),
    rows_per_step=st.integers(1, 8),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_partners_never_share_a_question_and_every_row_has_one(questions, rows_per_step, seed, epoch):
    examples = make_examples(questions)
    sampler = make_sampler(examples, rows_per_step=rows_per_step, seed=seed)
    sampler.set_epoch(epoch)
    pairs = list(sampler)
    assert sorted(pair.row for pair in pairs) == list(range(len(examples)))
    assert all(questions[pair.row] != questions[pair.partner] for pair in pairs)
    for start in range(0, len(pairs), rows_per_step):
        step = pairs[start : start + rows_per_step]
        if len({questions[pair.row] for pair in step}) > 1:
            assert {pair.partner for pair in step} <= {pair.row for pair in step}


def test_a_shared_prompt_under_two_ids_is_no_mismatch():
    examples = make_examples([0, 1, 2])
    examples[1] = examples[1]._replace(prompt_ids=examples[0].prompt_ids)
    for epoch in range(5):
        sampler = make_sampler(examples)
        sampler.set_epoch(epoch)
        assert all(examples[row].prompt_ids != examples[partner].prompt_ids for row, partner in sampler)


def test_distinct_questions_are_rotated_by_one_inside_each_step():
    pairs = list(make_sampler(make_examples(range(10))))
    for start in (0, 4, 8):
        rows = [pair.row for pair in pairs[start : start + 4]]
        assert [pair.partner for pair in pairs[start : start + 4]] == [rows[-1], *rows[:-1]]


def test_order_changes_with_epoch_and_seed_and_repeats_without_state():
    examples = make_examples(range(12))
    orders = [tuple(make_sampler(examples, seed=seed).order(epoch)) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len(set(orders)) == 6
    assert orders[4] == tuple(make_sampler(examples, seed=1).order(1))


def test_few_examples_are_cycled_evenly_over_epochs():
    sampler = make_sampler(make_examples(range(3)), rows_per_epoch=7, paired=False)
    rows = [row for epoch in range(3) for row in sampler.order(epoch)]
    assert len(rows) == 21
    assert Counter(rows) == {0: 7, 1: 7, 2: 7}
    assert all(sorted(rows[start : start + 3]) == [0, 1, 2] for start in range(0, 21, 3))


def test_one_question_is_an_error_that_says_so():
    with pytest.raises(DataError, match="all 3 training traces ask question 'q7'"):
        list(make_sampler(make_examples([7, 7, 7])))
