"""A key-value cache whose rows are slots: a finished row's slot is taken over by the next request.

All slots share their columns, and every row is right-aligned: its last token is in the last column, whatever
lies to the left of its first token is masked by the caller. Buffers are preallocated and grow by ``SLOT_GROWTH``
columns. They start as zeros, because a masked column still meets the attention product, and 0 × NaN would not
vanish.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

SLOT_GROWTH = 64


class SlotLayer(CacheLayerMixin):
    """Keys and values of one attention layer, each of shape (slots, heads, capacity, head size)."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate empty buffers for as many slots as the states have rows."""
        self.keys, self.values = (_widened(states[:, :, :0], SLOT_GROWTH) for states in (key_states, value_states))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns to all slots; returns every used column."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self.keys, self.values = (_widened(buffer, end + SLOT_GROWTH) for buffer in (self.keys, self.values))
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that the next query of this length attends to, and the first of them."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Used columns."""
        return self.length

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def keep(self, slots: torch.Tensor, width: int) -> None:
        """Keep these slots and the last ``width`` columns (zeros to their left where there are fewer)."""
        self.keys, self.values = (
            _right_aligned(buffer[:, :, : self.length].index_select(0, slots), width, width + SLOT_GROWTH)
            for buffer in (self.keys, self.values)
        )
        self.length = width

    def place(self, slots: torch.Tensor, rows: SlotLayer) -> None:
        """Put the rows of another, no wider, layer into these slots, right-aligned."""
        start = self.length - rows.length
        self.keys[slots, :, start : self.length] = rows.keys[:, :, : rows.length]
        self.values[slots, :, start : self.length] = rows.values[:, :, : rows.length]


class SlotCache(Cache):
    """A :class:`SlotLayer` for each layer of the model."""

    def __init__(self, num_layers: int) -> None:
        self.slot_layers = [SlotLayer() for _ in range(num_layers)]
        super().__init__(layers=list(self.slot_layers))

    def keep(self, slots: torch.Tensor, width: int) -> None:
        """See :meth:`SlotLayer.keep`."""
        for layer in self.slot_layers:
            layer.keep(slots, width)

    def place(self, slots: torch.Tensor, rows: SlotCache) -> None:
        """See :meth:`SlotLayer.place`."""
        for layer, other in zip(self.slot_layers, rows.slot_layers, strict=True):
            layer.place(slots, other)


def _widened(buffer: torch.Tensor, capacity: int) -> torch.Tensor:
    wide = buffer.new_zeros(*buffer.shape[:2], capacity, buffer.shape[-1])
    wide[:, :, : buffer.shape[-2]] = buffer
    return wide


def _right_aligned(columns: torch.Tensor, width: int, capacity: int) -> torch.Tensor:
    buffer = columns.new_zeros(*columns.shape[:2], capacity, columns.shape[-1])
    kept = min(width, columns.shape[-2])
    buffer[:, :, width - kept : width] = columns[:, :, columns.shape[-2] - kept :]
    return buffer
