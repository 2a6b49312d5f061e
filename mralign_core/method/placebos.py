"""Placebos for the segment weights (ablations of §3.2.3).

None of this is in the paper. A placebo keeps how large weights are and how often, and takes away what they should
mean; so a gain that a placebo shows too is none of the labels'.

Decisions: what a segment gets depends on the seed, the trace's id and, from other traces, on which traces there are,
never on the order of rows. A permutation may leave a weight where it was.

Shapes: N traces, S labelled segments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mralign_core.errors import DataError
from mralign_core.method import IntArray


def sources_within_traces(trace_ids: Sequence[str], *, seed: int) -> IntArray:
    """Where each segment takes its weight from when weights are permuted within every trace.

    Args:
        trace_ids: (S,) the trace of each segment; those of one trace in their order, apart or together.
        seed: chooses the permutations.

    Returns:
        (S,) places in ``trace_ids``, each once, each of the same trace.

    >>> sources_within_traces(["a", "b", "a", "a"], seed=0).tolist()
    [3, 1, 0, 2]
    """
    sources = np.empty(len(trace_ids), dtype=np.int64)
    for trace_id, places in rows_by_trace(trace_ids).items():
        sources[places] = _rng_of(trace_id, seed).permutation(places)
    return sources


def sources_in_other_traces(trace_ids: Sequence[str], is_positive: Sequence[bool], *, seed: int) -> IntArray:
    """Where each segment takes its weight from when every trace gets those of another one of its polarity.

    The other trace is drawn uniformly. Its weights are taken in order, and again from the first when they run out.

    Args:
        trace_ids: (S,) the trace of each segment; those of one trace in their order, apart or together.
        is_positive: (S,) the polarity of its trace.
        seed: chooses the other traces.

    Returns:
        (S,) places in ``trace_ids``, each of another trace of the same polarity.

    Raises:
        DataError: a trace is the only one of its polarity.

    >>> sources_in_other_traces(["a", "a", "a", "b", "b"], [True] * 5, seed=0).tolist()
    [3, 4, 3, 0, 1]
    """
    places = rows_by_trace(trace_ids)
    sources = np.empty(len(trace_ids), dtype=np.int64)
    for polarity in (True, False):
        alike = sorted(trace_id for trace_id, rows in places.items() if bool(is_positive[rows[0]]) == polarity)
        if len(alike) == 1:
            raise DataError(
                f"trace {alike[0]!r} is the only labelled one that is {'positive' if polarity else 'negative'}, so no "
                "other can lend it weights (reward.placebo 'other_traces'): use more questions, or another placebo"
            )
        for rank, trace_id in enumerate(alike):
            steps_ahead = 1 + int(_rng_of(trace_id, seed).integers(len(alike) - 1))
            lender = alike[(rank + steps_ahead) % len(alike)]
            sources[places[trace_id]] = np.resize(places[lender], len(places[trace_id]))
    return sources


def permuted_polarities(trace_ids: Sequence[str], is_positive: Sequence[bool], *, seed: int) -> NDArray[np.bool_]:
    """The polarities of all traces, dealt out anew; so many stay positive as there were.

    Args:
        trace_ids: (N,) distinct ids.
        is_positive: (N,) true polarities.
        seed: chooses the permutation.

    Returns:
        (N,) polarities.

    >>> permuted_polarities(["a", "b", "c", "d"], [True, True, False, False], seed=1).tolist()
    [True, False, False, True]
    """
    order = np.array(sorted(range(len(trace_ids)), key=trace_ids.__getitem__), dtype=np.int64)
    permuted = np.empty(len(trace_ids), dtype=np.bool_)
    permuted[order] = np.random.default_rng([seed, 9]).permutation(np.asarray(is_positive, dtype=np.bool_)[order])
    return permuted


def rows_by_trace(trace_ids: Sequence[str]) -> dict[str, IntArray]:
    """The places of each trace's rows, in their order.

    >>> {name: rows.tolist() for name, rows in rows_by_trace(["a", "b", "a"]).items()}
    {'a': [0, 2], 'b': [1]}
    """
    places: dict[str, list[int]] = {}
    for place, trace_id in enumerate(trace_ids):
        places.setdefault(trace_id, []).append(place)
    return {trace_id: np.array(rows, dtype=np.int64) for trace_id, rows in places.items()}


def _rng_of(trace_id: str, seed: int) -> np.random.Generator:
    """A generator of the trace's own, so that its draw does not depend on which traces came before."""
    digest = hashlib.blake2b(trace_id.encode(), digest_size=16).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "big")])
