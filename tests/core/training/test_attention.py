"""Attention by blocks on a CPU: values and gradients are PyTorch's, row by row."""

import doctest

import pytest
import torch
from torch.nn import functional

from mralign_core.training import attention, packing
from mralign_core.training.attention import BLOCK, causal_attention
from mralign_core.training.packing import packed_attention

LENGTHS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5, 3]


def heads(num_heads, num_key_heads, dtype=torch.float64, size=8, value_size=None):
    """As layers give them: the tokens' values one after another, seen head by head."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(num_heads, size), (num_key_heads, size), (num_key_heads, value_size or size)]
    return [
        torch.randn(1, sum(LENGTHS), *shape, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_()
        for shape in shapes
    ]


def by_rows(parts, scaling):
    rows = zip(*(part.split(LENGTHS, 2) for part in parts), strict=True)
    done = [
        functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        for query, key, value in rows
    ]
    return torch.cat(done, 2)[0].transpose(0, 1)


def test_the_example():
    assert doctest.testmod(attention).failed == 0


@pytest.mark.parametrize(("num_heads", "num_key_heads"), [(4, 4), (4, 2), (3, 1), (1, 1)])
@pytest.mark.parametrize(("scaling", "value_size"), [(0.3, 8), (8**-0.5, 5)])
def test_it_is_that_of_each_row_alone(num_heads, num_key_heads, scaling, value_size):
    parts = heads(num_heads, num_key_heads, value_size=value_size)
    expected = by_rows(parts, scaling)
    query, key, value = (part[0] for part in parts)
    found = causal_attention(query, key, value, LENGTHS, scaling)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous()
    slopes = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view(found.shape)
    for each, other in zip(*(torch.autograd.grad(y, parts, slopes) for y in (found, expected)), strict=True):
        torch.testing.assert_close(each, other, rtol=1e-10, atol=1e-10)


def test_rows_go_by_blocks_where_that_pays(monkeypatch):
    asked = []

    def by_blocks(query, *_):
        asked.append(query.shape[1])
        return query

    monkeypatch.setattr(packing, "causal_attention", by_blocks)
    for lengths, size in (([512, 512], 16), ([400, 400], 16), ([1, 1, 1], 64), ([700], 8), ([1100], 8)):
        query = torch.zeros(1, 2, sum(lengths), size)
        packed_attention(torch.nn.Identity(), query, query, query, None, row_lengths=tuple(lengths))
    assert asked == [1024, 1100]


def test_large_scores_overflow_nothing(monkeypatch):
    monkeypatch.setattr(attention, "LEAST_WORK", 0)
    query, key, value = heads(4, 2, torch.float32)
    found, _ = packed_attention(
        torch.nn.Identity(), 1e4 * query, 1e4 * key, value, None, scaling=1.0, row_lengths=tuple(LENGTHS)
    )
    gradients = torch.autograd.grad(found.sum(), (query, key, value))
    assert all(each.isfinite().all() for each in (found, *gradients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_rows_of_either_precision_attend_to_themselves(dtype, monkeypatch):
    monkeypatch.setattr(attention, "LEAST_WORK", 0)
    query, key, value = (part.to(dtype) for part in heads(4, 2))
    found, _ = packed_attention(torch.nn.Identity(), query, key, value, None, scaling=0.3, row_lengths=tuple(LENGTHS))
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found[0].double(), by_rows(heads(4, 2), 0.3), rtol=tolerance, atol=tolerance)


def test_no_more_than_a_block_of_probabilities_is_kept():
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    query, key, value = (part[0] for part in heads(4, 2))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        causal_attention(query, key, value, LENGTHS, 0.3)
    assert max(kept) == query.numel()
