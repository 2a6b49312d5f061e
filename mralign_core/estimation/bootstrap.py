"""How far P could be off: a bootstrap over questions.

Questions are drawn with replacement, each with all its traces: those with positive traces only, with negative ones only
and with both apart, so that the number of each stays. P⁺, P⁻ and P, and the matrices of every stratum, are estimated
anew from the same resample. Traces of one question are alike; drawn one by one they gave intervals of log w that
were 1.24 times too narrow in a pocket world.

What the intervals cover: that another sample of as many questions of each kind, whose traces are labelled in the same
way, would have given other matrices. What they don't: labels that are wrong or that another annotator would set
otherwise; model or decoding being others; the bias of five damped iterations and of the prior, which every resample
shares. An annotator's label noise is in them only as far as it varies from question to question. Of few questions
there is no interval at all (:data:`MIN_QUESTIONS_FOR_INTERVAL`), nor of a transition that was hardly seen
(:data:`MIN_SUPPORT`): a move that no trace makes is in no resample either, so that its interval has no width.

Shapes: N labelled traces, Q questions, C columns of the corpus, R resamples, K states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mralign_core.estimation.corpus import Corpus, Selection, TraceColumns
from mralign_core.estimation.estimators import Estimator
from mralign_core.method import IntArray
from mralign_core.method.by_question import question_kinds, resample_questions

MIN_QUESTIONS_FOR_INTERVAL = 10
"""Questions of a polarity below which nothing is bootstrapped. Resamples of one question are all alike, and those of a
few repeat each other, so that the interval would show a certainty that is not there."""
MIN_SUPPORT = 5
"""Soft counts below which an entry says more about the prior than about the traces, and has no interval."""
BLOCK_CELLS = 1 << 24
"""Traces × resamples whose draws are in memory at once (64 MB)."""


def draw_transitions(
    corpus: Corpus,
    selections: Mapping[Any, Mapping[str, Selection]],
    fit: Estimator,
    num_resamples: int,
    rng: np.random.Generator,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[Any, dict[str, NDArray[np.float32]]]:
    """Transition matrices of bootstrap resamples; see the module's docstring for what they tell.

    Args:
        corpus: counted with ``keep_traces``.
        selections: which traces the matrix of each class is estimated from; such sets of classes by any key.
        fit: the estimator.
        num_resamples: R.
        rng: decides what is drawn; the block size does not.
        on_progress: called with (done, total) resamples.

    Returns:
        Per key and class (R, K, K) float32.

    Raises:
        ValueError: the corpus was counted without its traces.
    """
    shape = (num_resamples, corpus.num_states, corpus.num_states)
    draws = {key: {name: np.empty(shape, dtype=np.float32) for name in selections[key]} for key in selections}
    for resample, counts in enumerate(_resampled_counts(corpus.traces, len(corpus.columns), num_resamples, rng)):
        for key, classes in selections.items():
            found = fit({name: selection.pairs(counts) for name, selection in classes.items()})
            for name, estimate in found.items():
                draws[key][name][resample] = estimate.p
        if on_progress:
            on_progress(resample + 1, num_resamples)
    return draws


def _resampled_counts(
    by_trace: TraceColumns, num_columns: int, num_resamples: int, rng: np.random.Generator
) -> Iterator[IntArray]:
    """Counts of the columns, (C,), resample after resample."""
    from scipy import sparse

    num_traces = len(by_trace.lengths)
    bounds = np.concatenate([[0], np.cumsum(by_trace.lengths, dtype=np.int64)])
    ones = np.ones(len(by_trace.columns), dtype=np.int32)
    occurrences = sparse.csr_array((ones, by_trace.columns, bounds), shape=(num_traces, num_columns))
    kinds = question_kinds(by_trace.questions, by_trace.is_positive)
    block = max(1, BLOCK_CELLS // max(num_traces, 1))
    for start in range(0, num_resamples, block):
        times_drawn = resample_questions(kinds, min(block, num_resamples - start), rng)[:, by_trace.questions]
        yield from (occurrences.T @ times_drawn.T).T.astype(np.int64)
