"""What the diagnostics look at: the transitions of all traces, and samples of the traces themselves.

Whatever has no need of single traces is computed from the transitions of all; the rest from a random sample of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import nsmallest
from typing import NamedTuple

import numpy as np

from mralign_core.estimation.corpus import POLARITY_OF, Corpus, count_corpus
from mralign_core.estimation.traces import LabelledTrace, TraceBatch, traces_of_batch

MAX_TRACES = 2000
"""Traces of one polarity, and of both, that tests and shuffles use; of more, a seeded sample."""


class Survey(NamedTuple):
    """What is known of the annotated traces.

    Args:
        corpus: the transitions of all, by trace.
        tested: by polarity, all labelled traces or a random sample of :data:`MAX_TRACES`.
        some: all labelled traces or a random sample of :data:`MAX_TRACES`, polarities as frequent as they are.
    """

    corpus: Corpus
    tested: dict[str, list[LabelledTrace]]
    some: list[LabelledTrace]


class _Drawn(NamedTuple):
    """A labelled trace in its place among all, with the random number by which it is kept or not."""

    key: float
    place: int
    trace: LabelledTrace


def survey_traces(batches: Iterable[TraceBatch], num_states: int, rng: np.random.Generator) -> Survey:
    """Count all transitions and draw the samples, in one pass.

    Args:
        batches: whole traces. The same traces in the same order give the same samples from the same seed, whatever
            their labels, as long as the same ones have any.
        num_states: K.
        rng: seeded generator of the samples.
    """
    drawn: dict[str, list[_Drawn]] = {name: [] for name in POLARITY_OF.values()}

    def drawing() -> Iterator[TraceBatch]:
        place = 0
        for batch in batches:
            for trace in traces_of_batch(batch):
                if any(trace.steps):
                    drawn[trace.polarity].append(_Drawn(rng.random(), place, trace))
                    place += 1
            for name, group in drawn.items():
                drawn[name] = nsmallest(MAX_TRACES, group)
            yield batch

    corpus = count_corpus(drawing(), num_states, keep_traces=True)
    # The smallest numbers of all are among the smallest of each polarity.
    some = nsmallest(MAX_TRACES, [one for group in drawn.values() for one in group])
    return Survey(corpus, {name: _in_order(group) for name, group in drawn.items()}, _in_order(some))


def _in_order(drawn: Sequence[_Drawn]) -> list[LabelledTrace]:
    return [one.trace for one in sorted(drawn, key=lambda one: one.place)]
