"""Causal attention of packed rows on a CPU: block by block of queries, each with the tokens up to its own end.

The products are those of about half the square of a row's length, made in pieces that fill the CPU's units, and the
probabilities of no more than a block are ever held: the backward pass computes them again.

Shapes: N tokens of all rows, H heads, K key heads, G = H / K queries' heads of each, D size of a head, E size of a
value, mostly D; of a block n tokens, whose queries see the e tokens of their row up to its end.
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
    """Of all (N G) queries of a key head."""
    tokens: slice
    """Of the row, up to the last of the queries."""


def _blocks(row_lengths: Sequence[int], group: int) -> Iterator[_Block]:
    first = 0
    for length in row_lengths:
        for start in range(first, first + length, BLOCK):
            end = min(start + BLOCK, first + length)
            yield _Block(slice(start * group, end * group), slice(first, end))
        first += length


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, row_lengths: tuple[int, ...], scaling: float
    ) -> Tensor:
        group = len(query) // len(key)
        scaled = _by_key_head(query.transpose(0, 1) * scaling, len(key))
        later = _later(group, scaled)
        by_key_head = scaled.new_empty(*scaled.shape[:2], value.shape[2])
        for block in _blocks(row_lengths, group):
            probs = _probabilities(scaled, key, block, later)
            by_key_head[:, block.queries] = torch.bmm(probs, value[:, block.tokens])
        attended = _by_head(by_key_head, group).contiguous()  # as what comes next wants it, so that one copy is kept
        ctx.save_for_backward(scaled, key, value, attended)
        ctx.row_lengths, ctx.scaling = row_lengths, scaling
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled, key, value, attended = ctx.saved_tensors
        group = gradient.shape[1] // len(key)
        slopes, later = _by_key_head(gradient, len(key)), _later(group, scaled)
        # Σ_k p_k ∂p_k of each query is that of what it attended to: no sum over the block's probabilities.
        totals = _by_key_head((gradient * attended).sum(-1, keepdim=True), len(key))
        to_scaled = torch.empty_like(scaled)
        to_key, to_value = (torch.zeros_like(each, memory_format=torch.contiguous_format) for each in (key, value))
        for block in _blocks(ctx.row_lengths, group):
            queries, tokens = block
            probs = _probabilities(scaled, key, block, later)
            to_value[:, tokens].baddbmm_(probs.transpose(1, 2), slopes[:, queries])
            to_scores = torch.bmm(slopes[:, queries], value[:, tokens].transpose(1, 2))
            to_scores.sub_(totals[:, queries]).mul_(probs)
            to_scaled[:, queries] = torch.bmm(to_scores, key[:, tokens])
            to_key[:, tokens].baddbmm_(to_scores.transpose(1, 2), scaled[:, queries])
        return _by_head(to_scaled.mul_(ctx.scaling), group).transpose(0, 1), to_key, to_value, None, None


def _probabilities(scaled: Tensor, key: Tensor, block: _Block, later: Tensor) -> Tensor:
    """Of a block of n tokens' queries over its e tokens, (K, n G, e)."""
    queries, tokens = block
    scores = torch.bmm(scaled[:, queries], key[:, tokens].transpose(1, 2))
    number = scores.shape[1]
    own = number * len(later[0]) // len(later)
    scores[..., -own:].add_(later[:number, :own])
    return torch.softmax(scores, -1, out=scores)


def _later(group: int, like: Tensor) -> Tensor:
    """(n G, n) of a whole block: −∞ where a token comes after the query's."""
    return like.new_full((BLOCK, BLOCK), -torch.inf).triu_(1).repeat_interleave(group, 0)


def _by_key_head(values: Tensor, num_key_heads: int) -> Tensor:
    """(N, H, ·) → (K, N G, ·): of each key head, token after token, so that a block is a slice."""
    return values.unflatten(1, (num_key_heads, -1)).transpose(0, 1).flatten(1, 2)


def _by_head(values: Tensor, group: int) -> Tensor:
    """(K, N G, ·) → (N, H, ·)."""
    return values.unflatten(1, (-1, group)).transpose(0, 1).flatten(1, 2)
