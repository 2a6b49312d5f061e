"""What a distilled annotator sees of a segment: its words, how it opens, where it stands, and vectors if there are any.

Blocks of a row, side by side:

* words and pairs of words, hashed; counts to unit length. Question and exclamation marks, colons and equals signs count
  as words, since they tell acts of reasoning apart.
* the same of its first words, up to threes: most acts announce themselves there ("Wait, but …").
* its place in the trace: whether it is first, second, last but one or last; how far in; how long; a constant.
* with an encoder of sentences, the vector of the segment, and those of the segments before and after it (0 where there
  are none); with a language model that reads the trace, what it makes of the segment, on a scale that was learned.

Shapes: T segments of all traces, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from mralign_core.method import FloatArray

Encoder = Callable[[Sequence[str]], FloatArray]
"""From the segments of a trace, in order, to their vectors, shape (segments, dimensions)."""

NUM_WORD_BUCKETS, NUM_OPENING_BUCKETS = 2**14, 2**12
NUM_OPENING_WORDS = 4
_WORD = r"(?u)\b\w[\w'’]*|[?!:=]"
LONG_SEGMENT = 400
"""Characters from which on a segment counts as long."""


class VectorScale(NamedTuple):
    """Mean and spread of each dimension: a few dimensions of a language model's states are larger than all others."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]

    def apply(self, vectors: FloatArray) -> FloatArray:
        """The vectors with every dimension of like weight, all of length 1.

        >>> VectorScale((1.0, 0.0), (2.0, 1.0)).apply(np.array([[3.0, 0.0]])).tolist()
        [[1.0, 0.0]]
        """
        scaled = (vectors - np.array(self.mean)) / np.array(self.spread)
        lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
        unit: FloatArray = np.divide(scaled, lengths, out=np.zeros_like(scaled), where=lengths > 0)
        return unit


def fit_scale(vectors: FloatArray) -> VectorScale:
    """The scale of vectors, shape (T, dimensions); a dimension that never changes stays 0."""
    spread = vectors.std(axis=0)
    return VectorScale(
        *(
            tuple(float(f"{each:.6g}") for each in row)
            for row in (vectors.mean(axis=0), np.where(spread > 0, spread, 1.0))
        )
    )


def vectors_of(traces: Sequence[Sequence[str]], encode: Encoder) -> FloatArray:
    """(T, dimensions) what an encoder gives, trace by trace."""
    return np.concatenate([encode(trace) for trace in traces if len(trace)])


def segment_features(
    traces: Sequence[Sequence[str]], vectors: FloatArray | None = None, scale: VectorScale | None = None
) -> Any:
    """Features of all segments, those of a trace together and in order.

    Args:
        traces: the texts of the segments of each trace.
        vectors: (T, dimensions) of an encoder; none are used when None.
        scale: of a language model's vectors; None of those of an encoder of sentences.

    Returns:
        A sparse (CSR) float64 matrix, shape (T, F).

    >>> segment_features([["Wait, no.", "So it is Oslo."], ["I recall Oslo."]]).shape
    (3, 20488)
    """
    from scipy import sparse

    texts = [text for trace in traces for text in trace]
    blocks = [
        _hashed(NUM_WORD_BUCKETS, 2).transform(texts),
        _hashed(NUM_OPENING_BUCKETS, 3).transform([" ".join(text.split()[:NUM_OPENING_WORDS]) for text in texts]),
        sparse.csr_matrix(_places(traces)),
    ]
    if vectors is not None and scale is not None:
        blocks.append(sparse.csr_matrix(scale.apply(vectors)))
    elif vectors is not None:
        blocks += [sparse.csr_matrix(each) for each in (vectors, *_neighbours(vectors, [len(each) for each in traces]))]
    return sparse.hstack(blocks, format="csr")


@cache
def _hashed(num_buckets: int, longest: int) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        n_features=num_buckets, ngram_range=(1, longest), token_pattern=_WORD, alternate_sign=False, norm="l2"
    )


def _places(traces: Sequence[Sequence[str]]) -> FloatArray:
    rows = []
    for trace in traces:
        last = len(trace) - 1
        for place, text in enumerate(trace):
            ends = [place == 0, place == 1, place == last - 1, place == last]
            rows.append(
                [*ends, place / max(1, last), min(1.0, len(text) / LONG_SEGMENT), any(map(str.isdigit, text)), 1.0]
            )
    return np.array(rows, dtype=np.float64).reshape(-1, 8)


def _neighbours(vectors: FloatArray, lengths: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """The vectors of the segments before and after each, 0 at the ends of a trace."""
    before, after = np.zeros_like(vectors), np.zeros_like(vectors)
    for start, end in pairwise([0, *np.cumsum(lengths).tolist()]):
        before[start + 1 : end] = vectors[start : end - 1]
        after[start : end - 1] = vectors[start + 1 : end]
    return before, after
