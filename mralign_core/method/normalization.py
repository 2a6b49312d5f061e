"""Weights of a trace scaled or shifted so that their sum over its thinking is a chosen one (ablations of Eq. 9).

None of this is in the paper, where a trace whose moves all tell weighs more than one whose moves don't. With W =
Σ_t n_t w_t over the segments of a trace, n_t the tokens of segment t and N = Σ_t n_t:

* ``mean_one``: w_t N / Σ_t n_t |w_t|, at most :data:`MAX_SCALE` w_t, so that a trace in which nothing tells is not
  blown up to a full one. The thinking carries as much as without weights, so the answer keeps its share of
  the trace; only how the thinking's part is dealt out differs from KTO.
* ``centred``: w_t − W/N + w°, with w° the weight of a move that tells nothing (0 if signed, else 1). What all moves of
  the trace have in common goes, such as the kind of question.
* ``per_segment``: w_t (N/S) / n_t. The implicit reward then has each segment's mean log-ratio in place of its sum, so
  that a move counts once however many tokens it is worded in.

Each is w_t · scale_t + shift_t with a positive scale, so that intervals go along.

Shapes: S segments.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from mralign_core.method import FloatArray, IntArray

MAX_SCALE = 10.0
"""Largest factor of ``mean_one``."""
Normalization = Literal["none", "mean_one", "centred", "per_segment"]


class ScaleAndShift(NamedTuple):
    """What a trace's weights are multiplied by, above 0, and what is added then, both (S,)."""

    scale: FloatArray
    shift: FloatArray


def normalize_trace(
    weights: FloatArray, num_tokens: IntArray, normalization: Normalization, *, neutral: float
) -> ScaleAndShift:
    """How one trace's weights are normalised.

    Args:
        weights: (S,) weights of the trace's segments, unlabelled ones included.
        num_tokens: (S,) tokens of each, at least 0.
        normalization: as in the module's docstring.
        neutral: w°, the weight of a move that tells nothing.

    Returns:
        Nothing is scaled or shifted in a trace without thinking tokens, or whose weights are all 0 with ``mean_one``;
        nor is a segment without tokens with ``per_segment``.

    >>> normalize_trace(np.array([2.0, 1.0]), np.array([3, 1]), "mean_one", neutral=1.0).scale.round(3).tolist()
    [0.571, 0.571]
    >>> normalize_trace(np.array([1.0, -2.0]), np.array([1, 3]), "centred", neutral=0.0).shift.tolist()
    [1.25, 1.25]
    >>> normalize_trace(np.array([1.0, 1.0]), np.array([1, 3]), "per_segment", neutral=1.0).scale.round(3).tolist()
    [2.0, 0.667]
    """
    scale, shift = np.ones(len(weights)), np.zeros(len(weights))
    total = int(num_tokens.sum())
    if normalization == "none" or not total:
        return ScaleAndShift(scale, shift)
    if normalization == "mean_one":
        carried = float(np.abs(weights) @ num_tokens)
        scale *= min(total / carried, MAX_SCALE) if carried else 1.0
    elif normalization == "centred":
        shift += neutral - float(weights @ num_tokens) / total
    else:
        has_tokens = num_tokens > 0
        np.divide(total / has_tokens.sum(), num_tokens, out=scale, where=has_tokens)
    return ScaleAndShift(scale, shift)
