"""From tables to matrices and weights: the bridge between the annotation tables and :mod:`mralign_core.method`.

P⁺, P⁻ and P are always estimated from the same annotated traces, and with the same estimator.

Two ways in, one computation: :func:`labelled_traces` gives traces as Python lists, for whoever wants to look at them;
:func:`read_trace_batches` streams the Parquet files as columns, for millions of traces. Both become
:class:`TraceBatch`, from which everything is counted and weighed.
"""

from mralign_core.estimation.alterations import weigh_corpus, with_permuted_polarities
from mralign_core.estimation.bootstrap import MIN_TRACES_FOR_INTERVAL, draw_transitions
from mralign_core.estimation.corpus import Corpus, count_corpus
from mralign_core.estimation.estimators import MOST_ITERATIONS, Estimator, make_estimator
from mralign_core.estimation.matrices import (
    CLASSES,
    MIN_STRATUM_TRACES,
    POLARITY_OF,
    TransitionMatrices,
    estimate_corpus,
    estimate_transitions,
)
from mralign_core.estimation.reading import read_trace_batches
from mralign_core.estimation.traces import LabelledTrace, TraceBatch, batch_of_traces, labelled_traces, traces_of_batch
from mralign_core.estimation.weights import Weigher, weigh_segments

__all__ = [
    "CLASSES",
    "MIN_STRATUM_TRACES",
    "MIN_TRACES_FOR_INTERVAL",
    "MOST_ITERATIONS",
    "POLARITY_OF",
    "Corpus",
    "Estimator",
    "LabelledTrace",
    "TraceBatch",
    "TransitionMatrices",
    "Weigher",
    "batch_of_traces",
    "count_corpus",
    "draw_transitions",
    "estimate_corpus",
    "estimate_transitions",
    "labelled_traces",
    "make_estimator",
    "read_trace_batches",
    "traces_of_batch",
    "weigh_corpus",
    "weigh_segments",
    "with_permuted_polarities",
]
