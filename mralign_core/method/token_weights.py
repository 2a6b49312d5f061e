"""From segments and their weights to the weight of every completion token (§3.2.3, Eq. 9).

Decisions where the paper is silent: the think tag goes with the first segment, the delimiter between segments
with the segment before it, a token with the segment in whose territory its first character lies. The closing
tag and all that follows it carry 1. So every token has exactly one weight.

Shapes: T completion tokens, S segments.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from mralign_core.errors import DataError
from mralign_core.method import FloatArray
from mralign_core.method.traces import Span


def segment_token_spans(
    offsets: Sequence[tuple[int, int]], segments: Sequence[Span], *, thinking_end: int
) -> list[tuple[int, int]]:
    r"""Half-open token span of each segment; together they hold all tokens that start before the closing tag.

    Tokens that hold parts of one character, as the bytes of 鱻, stay together, with the first of them. A span
    is empty where no token starts in a segment's territory.

    Args:
        offsets: (start, end) characters in the completion of each of its T tokens; starts must never fall.
        segments: character spans of the S segments in the completion, in order.
        thinking_end: character at which the closing tag starts (``ParsedCompletion.thinking_span.end``).

    Raises:
        DataError: token starts fall, or the segments overlap or reach beyond ``thinking_end``.

    >>> # <think> | One. | \n\n | Two. | </think> | Yes
    >>> offsets = [(0, 7), (7, 11), (11, 13), (13, 17), (17, 25), (25, 28)]
    >>> segment_token_spans(offsets, [Span(7, 11), Span(13, 17)], thinking_end=17)
    [(0, 3), (3, 4)]
    """
    starts = _text_starts(offsets)
    edges = [edge for segment in segments for edge in segment]
    if any(before > after for before, after in pairwise([0, *edges, thinking_end])):
        raise DataError(f"segments {list(segments)} must be in order, apart, and end by character {thinking_end}")
    if not segments:
        return []
    borders = [*(segment.start for segment in segments[1:]), thinking_end]
    return list(pairwise([0, *(bisect_left(starts, border) for border in borders)]))


def token_weights(num_tokens: int, spans: Sequence[tuple[int, int]], weights: Sequence[float]) -> FloatArray:
    """Weight of every completion token: its segment's, and 1 outside all segments.

    Implements the weights of Eq. 9 of arXiv 2510.24794.

    Args:
        num_tokens: T.
        spans: S half-open token spans in order, not overlapping.
        weights: S weights.

    Returns:
        (T,) weights.

    Raises:
        DataError: spans and weights differ in number, or the spans are not in order inside the completion.

    >>> token_weights(5, [(0, 2), (2, 3)], [0.5, 2.0]).tolist()
    [0.5, 0.5, 2.0, 1.0, 1.0]
    """
    if len(spans) != len(weights):
        raise DataError(f"{len(spans)} token spans with {len(weights)} weights; each segment needs one of both")
    edges = [edge for span in spans for edge in span]
    if any(before > after for before, after in pairwise([0, *edges, num_tokens])):
        raise DataError(f"token spans {list(spans)} must be in order inside the completion of {num_tokens} tokens")
    weights_T = np.ones(num_tokens)
    for (start, end), weight in zip(spans, weights, strict=True):
        weights_T[start:end] = weight
    return weights_T


def _text_starts(offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Per token the character at which its text starts, or that of the token it shares a character with."""
    starts: list[int] = []
    previous_start = previous_end = 0
    for token, (start, end) in enumerate(offsets):
        if start < previous_start:
            raise DataError(
                f"token {token} starts at character {start}, the one before it at {previous_start}; "
                "offsets must be those of the completion's tokens in order"
            )
        starts.append(starts[-1] if starts and start < previous_end else start)
        previous_start, previous_end = start, end
    return starts
