"""Causal attention of packed rows on a CPU: block by block of queries, each with the tokens up to its own end.

The products are those of about half the square of a row's length, made in pieces that fill the CPU's units, and the
probabilities of no more than a block are ever held: the backward pass computes them again.

Shapes: N tokens of all rows, H heads, K key heads, G = H / K queries' heads of each, D size of a head, E size of a
value, mostly D; of a block n queries and the e tokens of their row up to its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64
"""Queries of a block: more of them waste products on tokens that come later, fewer make products too small."""
LEAST_WORK = 2**13
"""Tokens of a row × size of a head from which on blocks are quicker than PyTorch's kernel, one call a row."""


def pays(num_tokens: int, row_lengths: Sequence[int], head_size: int) -> bool:
    """Whether rows are long enough, on average, for blocks to be quicker.

    Example:
        >>> pays(600, [300, 300], 32), pays(600, [300, 300], 24)
        (True, False)
    """
    return num_tokens * head_size >= LEAST_WORK * len(row_lengths)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, row_lengths: Sequence[int], scaling: float) -> Tensor:
    """softmax(scaling · Q Kᵀ + mask) V, of each row by itself.

    Args:
        query: (H, N, D), in float32 or float64.
        key: (K, N, D).
        value: (K, N, E).
        row_lengths: tokens of each row; N in all.
        scaling: of the scores.

    Returns:
        (N, H, E).

    Example:
        >>> one = torch.ones(1, 3, 1)
        >>> causal_attention(one, one, torch.tensor([[[2.0], [4.0], [5.0]]]), [2, 1], 1.0)[:, 0, 0].tolist()
        [2.0, 3.0, 5.0]
    """
    attended: Tensor = _CausalAttention.apply(query, key, value, tuple(row_lengths), scaling)
    return attended


class _Block(NamedTuple):
    queries: slice
    tokens: slice
    """Of the row, up to the last of the queries."""


def _blocks(row_lengths: Sequence[int]) -> Iterator[_Block]:
    first = 0
    for length in row_lengths:
        for start in range(first, first + length, BLOCK):
            end = min(start + BLOCK, first + length)
            yield _Block(slice(start, end), slice(first, end))
        first += length


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, row_lengths: tuple[int, ...], scaling: float
    ) -> Tensor:
        attended = query.new_empty(query.shape[1], len(query), value.shape[2])
        by_key_head = _by_key_head(attended.transpose(0, 1), len(key))
        for queries, tokens in _blocks(row_lengths):
            _, probs = _probabilities(query, key, queries, tokens, scaling)
            block = by_key_head[:, :, queries]
            block.copy_(torch.bmm(probs, value[:, tokens]).view(block.shape))
        ctx.save_for_backward(query, key, value, attended)
        ctx.row_lengths, ctx.scaling = row_lengths, scaling
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, attended = ctx.saved_tensors
        to_query = query.new_empty(query.shape[1], len(query), query.shape[2])
        to_key, to_value = (torch.zeros_like(each, memory_format=torch.contiguous_format) for each in (key, value))
        by_key_head = _by_key_head(to_query.transpose(0, 1), len(key))
        # Σ_k p_k ∂p_k of each query is that of what it attended to: no sum over the block's probabilities.
        totals = (gradient * attended).sum(-1, keepdim=True).transpose(0, 1)
        for queries, tokens in _blocks(ctx.row_lengths):
            scaled, probs = _probabilities(query, key, queries, tokens, ctx.scaling)
            slopes = _of_block(gradient.transpose(0, 1), queries, len(key))
            to_value[:, tokens].baddbmm_(probs.transpose(1, 2), slopes)
            to_scores = torch.bmm(slopes, value[:, tokens].transpose(1, 2))
            to_scores.sub_(_of_block(totals, queries, len(key))).mul_(probs)
            block = by_key_head[:, :, queries]
            block.copy_(torch.bmm(to_scores, key[:, tokens]).view(block.shape))
            to_key[:, tokens].baddbmm_(to_scores.transpose(1, 2), scaled)
        return to_query.mul_(ctx.scaling).transpose(0, 1), to_key, to_value, None, None


def _probabilities(query: Tensor, key: Tensor, queries: slice, tokens: slice, scaling: float) -> tuple[Tensor, Tensor]:
    """The scaled queries of a block, (K, G n, D), and their probabilities over its tokens, (K, G n, e)."""
    scaled = _of_block(query, queries, len(key)) * scaling
    scores = torch.bmm(scaled, key[:, tokens].transpose(1, 2))
    number = queries.stop - queries.start
    later = scores.new_full((number, number), -torch.inf).triu_(1)
    scores.unflatten(1, (-1, number))[..., -number:].add_(later)
    return scaled, torch.softmax(scores, -1, out=scores)


def _of_block(values: Tensor, queries: slice, num_key_heads: int) -> Tensor:
    """(H, N, ·) → (K, G n, ·): those of a block, the heads of each key head one after another."""
    return _by_key_head(values, num_key_heads)[:, :, queries].flatten(1, 2)


def _by_key_head(values: Tensor, num_key_heads: int) -> Tensor:
    return values.unflatten(0, (num_key_heads, -1))
