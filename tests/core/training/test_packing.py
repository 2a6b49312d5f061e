"""Packed rows on a card go by PyTorch's variable-length attention, whichever version it is of."""

import pytest
import torch
from torch.nn import functional

from mralign_core.training import packing
from mralign_core.training.packing import make_batch, packed_attention, varlen

LENGTHS = (5, 1, 3)


def by_rows(query, key, value, borders, scale):
    queries, keys, values = (part.transpose(0, 1).split(borders.diff().tolist(), 1) for part in (query, key, value))
    done = [
        functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        for q, k, v in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(done, 1).transpose(0, 1)


def newest(query, key, value, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    assert window_size == (-1, 0)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert (max_q, max_k) == (max(LENGTHS), max(LENGTHS))
    return by_rows(query, key, value, cu_q, scale)


def without_groups(query, key, value, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    assert window_size == (-1, 0)
    assert query.shape[1] == key.shape[1]
    return by_rows(query, key, value, cu_q, scale)


def first(query, key, value, cu_q, cu_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal
    assert query.shape[1] == key.shape[1]
    return by_rows(query, key, value, cu_q, None)


@pytest.mark.parametrize("version", [newest, without_groups, first])
@pytest.mark.parametrize("num_key_heads", [2, 4])
def test_each_version_of_the_kernel_is_asked_for_the_same(monkeypatch, version, num_key_heads):
    monkeypatch.setattr(packing, "varlen_attn", version)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, sum(LENGTHS), 8, generator=generator) for heads in (4, num_key_heads, num_key_heads)
    )
    rows = [([0], [0] * (length - 1)) for length in LENGTHS]
    options = make_batch(rows, torch.device("cpu")).model_inputs
    expected, _ = packed_attention(torch.nn.Identity(), query, key, value, None, scaling=0.3, **options)
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    found = varlen(queries, keys, values, options, 0.3)
    torch.testing.assert_close(found, expected[0])
