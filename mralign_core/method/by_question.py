"""The question as the unit: folds, resamples and permutations of traces that keep the traces of a question together.

An addition to the paper, which draws several traces from one question and gives no intervals. Traces of one question
share its facts, its difficulty and mostly its polarity, so that taken as independent they promise more than there is.

Shapes: N traces, Q questions, R resamples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mralign_core.method import IntArray


def question_folds(questions: IntArray, num_folds: int, rng: np.random.Generator) -> IntArray:
    """Which fold each trace is held out in, (N,): folds of whole questions, as equal in questions as can be.

    Args:
        questions: (N,) number of each trace's question, from 0, none left out.
        num_folds: folds.
        rng: seeded generator.

    >>> question_folds(np.array([0, 0, 1, 2, 1]), 3, np.random.default_rng(0)).tolist()
    [2, 2, 0, 1, 0]
    """
    folds: IntArray = (rng.permutation(_number(questions)) % num_folds)[questions]
    return folds


def question_kinds(questions: IntArray, is_positive: NDArray[np.bool_]) -> IntArray:
    """Of which polarities each question has traces, (Q,): 1 negative only, 2 positive only, 3 both.

    Args:
        questions: (N,) number of each trace's question, from 0, none left out.
        is_positive: (N,) polarity of each trace.

    >>> question_kinds(np.array([0, 1, 1, 2]), np.array([True, True, False, False])).tolist()
    [2, 3, 1]
    """
    has = [np.bincount(questions[is_positive == sign], minlength=_number(questions)) > 0 for sign in (False, True)]
    kinds: IntArray = has[0] + 2 * has[1].astype(np.int64)
    return kinds


def resample_questions(kinds: IntArray, num_resamples: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """How often each question is drawn, (R, Q), when those of each kind are drawn anew, as many, with replacement.

    Args:
        kinds: (Q,) kind of each question, such as :func:`question_kinds`; all kinds keep their number of questions.
        num_resamples: R.
        rng: seeded generator; the draws of one resample follow each other in it.

    >>> times = resample_questions(np.array([1, 1, 2]), 2, np.random.default_rng(0))
    >>> times.sum(axis=1).tolist(), times[:, 2].tolist()  # the only question of its kind is always drawn
    ([3, 3], [1, 1])
    """
    times = np.zeros((num_resamples, len(kinds)), dtype=np.int32)
    members = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    for resample in range(num_resamples):
        for group in members:
            drawn = rng.integers(len(group), size=len(group))
            times[resample, group] = np.bincount(drawn, minlength=len(group))
    return times


def permute_between_questions(
    is_positive: NDArray[np.bool_], questions: IntArray, strata: IntArray, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Polarities dealt out anew: each question takes those of another one's traces, in its own stratum; (N,).

    Where all traces of a question share one polarity they share one afterwards too, and so many questions stay
    positive as there were. Of a question with both, the polarities are taken in random order, and again from the first
    where the other question has fewer traces. Exact where questions can change places.

    Args:
        is_positive: (N,) polarity of each trace, or any other mark.
        questions: (N,) number of each trace's question, from 0, none left out.
        strata: (N,) number of each trace's stratum, the same for all traces of a question; of equal ones, one.
        rng: seeded generator.

    >>> two_each = np.array([0, 0, 1, 1, 2, 2])
    >>> marks = np.array([True, True, False, False, False, False])
    >>> permute_between_questions(marks, two_each, np.zeros(6, dtype=int), np.random.default_rng(1)).tolist()
    [False, False, False, False, True, True]
    """
    sizes = np.bincount(questions)
    starts = np.cumsum(sizes) - sizes
    by_question = np.argsort(questions, kind="stable")
    shuffled = is_positive[np.lexsort((rng.random(len(questions)), questions))]
    stratum_of_question = strata[by_question[starts]]
    giver = np.empty_like(sizes)
    giver[np.argsort(stratum_of_question, kind="stable")] = np.lexsort((rng.random(len(sizes)), stratum_of_question))
    rank = np.empty_like(by_question)
    rank[by_question] = np.arange(len(questions)) - np.repeat(starts, sizes)
    taken = giver[questions]
    permuted: NDArray[np.bool_] = shuffled[starts[taken] + rank % sizes[taken]]
    return permuted


def _number(questions: IntArray) -> int:
    return int(questions.max(initial=-1)) + 1
