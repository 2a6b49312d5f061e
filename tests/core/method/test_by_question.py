"""Folds, resamples and permutations never part the traces of a question."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.method.by_question import (
    permute_between_questions,
    question_folds,
    question_kinds,
    resample_questions,
)


@st.composite
def corpora(draw):
    """Question numbers without a gap, polarities, and a stratum for each question."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=20))
    questions = np.repeat(np.arange(len(sizes)), sizes)
    order = np.array(draw(st.permutations(range(len(questions)))))
    positive = np.array(draw(st.lists(st.booleans(), min_size=len(questions), max_size=len(questions))))
    strata = np.array(draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes))))
    return questions[order], positive, strata[questions[order]]


@given(corpora(), st.integers(2, 6), st.integers(0, 5))
def test_folds_never_share_a_question_and_are_equal_in_questions(corpus, num_folds, seed):
    questions, _, _ = corpus
    folds = question_folds(questions, num_folds, np.random.default_rng(seed))
    of_question = [set(folds[questions == number]) for number in range(questions.max() + 1)]
    assert all(len(own) == 1 for own in of_question)
    sizes = np.bincount([own.pop() for own in of_question], minlength=num_folds)
    assert sizes.max() - sizes.min() <= 1


@given(corpora(), st.integers(0, 5))
def test_resamples_keep_the_number_of_questions_of_each_kind(corpus, seed):
    questions, positive, _ = corpus
    kinds = question_kinds(questions, positive)
    times = resample_questions(kinds, 4, np.random.default_rng(seed))
    for kind in np.unique(kinds):
        assert (times[:, kinds == kind].sum(axis=1) == (kinds == kind).sum()).all()


@given(corpora(), st.integers(0, 5))
def test_a_question_takes_the_polarities_of_one_question_of_its_stratum(corpus, seed):
    questions, positive, strata = corpus
    permuted = permute_between_questions(positive, questions, strata, np.random.default_rng(seed))
    numbers = range(questions.max() + 1)
    for stratum in np.unique(strata):
        own = [number for number in numbers if strata[questions == number][0] == stratum]
        shares = [positive[questions == number] for number in own]
        # Of one polarity before, of one polarity after: as many questions as there were, whatever their sizes.
        pure = [share.all() or not share.any() for share in shares]
        if all(pure):
            taken = [permuted[questions == number] for number in own]
            assert all(share.all() or not share.any() for share in taken)
            assert sum(bool(share[0]) for share in taken) == sum(bool(share[0]) for share in shares)
        if len({len(share) for share in shares}) == 1:
            sums = sorted(permuted[questions == number].sum() for number in own)
            assert sums == sorted(share.sum() for share in shares)


def test_every_question_is_as_likely_to_be_positive():
    questions, positive = np.array([0, 1, 1, 2, 3, 3, 3]), np.array([True] + [False] * 6)
    rng, everywhere = np.random.default_rng(0), np.zeros(7, dtype=int)
    permuted = np.array([permute_between_questions(positive, questions, everywhere, rng) for _ in range(4000)])
    np.testing.assert_allclose(permuted.mean(axis=0), 0.25, atol=0.03)
