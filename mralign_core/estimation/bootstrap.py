"""How far P could be off: a bootstrap over traces.

Traces are drawn with replacement, positive and negative ones apart, so that the class sizes stay; P⁺, P⁻ and P, and the
matrices of every stratum, are estimated anew from the same resample.

What the intervals cover: that another sample of as many traces of each class, labelled in the same way, would have
given other matrices. What they don't: labels that are wrong or that another annotator would set otherwise; questions,
model or decoding being others (several traces of one question count as independent); the bias of five damped
iterations and of the prior, which every resample shares. An annotator's label noise is in them only as far as it
varies from trace to trace. Of few traces there is no interval at all: see :data:`MIN_TRACES_FOR_INTERVAL`.

Shapes: N labelled traces, C columns of the corpus, R resamples, K states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mralign_core.estimation.corpus import Corpus, Selection, TraceColumns
from mralign_core.estimation.estimators import Estimator
from mralign_core.method import IntArray

MIN_TRACES_FOR_INTERVAL = 10
"""Traces below which nothing is bootstrapped. Resamples of one trace are all alike, and those of a few repeat each
other, so that the interval would show a certainty that is not there."""
BLOCK_CELLS = 1 << 24
"""Traces × resamples whose draws are in memory at once (64 MB)."""


def draw_transitions(
    corpus: Corpus,
    selections: Mapping[Any, Selection],
    fit: Estimator,
    num_resamples: int,
    rng: np.random.Generator,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[Any, NDArray[np.float32]]:
    """Transition matrices of bootstrap resamples; see the module's docstring for what they tell.

    Args:
        corpus: counted with ``keep_traces``.
        selections: which traces each matrix is estimated from, by any key.
        fit: the estimator.
        num_resamples: R.
        rng: decides what is drawn; the block size does not.
        on_progress: called with (done, total) resamples.

    Returns:
        Per key (R, K, K) float32.

    Raises:
        ValueError: the corpus was counted without its traces.
    """
    if corpus.by_trace is None:
        raise ValueError("the corpus was counted without its traces; count it with keep_traces=True")
    shape = (num_resamples, corpus.num_states, corpus.num_states)
    draws = {key: np.empty(shape, dtype=np.float32) for key in selections}
    for resample, counts in enumerate(_resampled_counts(corpus.by_trace, len(corpus.columns), num_resamples, rng)):
        for key, selection in selections.items():
            draws[key][resample] = fit(selection.pairs(counts)).p
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
    classes = [np.flatnonzero(by_trace.is_positive == positive) for positive in (True, False)]
    block = max(1, BLOCK_CELLS // max(num_traces, 1))
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        times_drawn = np.zeros((num_traces, size), dtype=np.int32)
        for resample in range(size):
            for members in classes:
                drawn = rng.integers(len(members), size=len(members)) if len(members) else members
                times_drawn[members, resample] = np.bincount(drawn, minlength=len(members))
        yield from (occurrences.T @ times_drawn).T.astype(np.int64)
