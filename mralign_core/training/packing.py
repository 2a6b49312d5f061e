"""Rows to tensors: one after another without padding, or padded where a model's layers can't keep them apart.

Rows that stand in one sequence must not see each other. Positions start again at each row, and attention is computed
row by row (:func:`packed_attention`), by the kernel for that where there is one; so a batch costs what its tokens cost.

Shapes: N tokens of all rows, C completion tokens of all rows, B rows, T completion tokens of the longest row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface

from mralign_core.models.lora import HALF
from mralign_core.training.attention import causal_attention, pays
from mralign_core.training.examples import Row, num_tokens

PACKED = "mralign_packed"
"""Name of the attention under which transformers finds :func:`packed_attention`."""
NOT_COMPUTED = ("sliding_window", "softcap", "s_aux")
"""What layers may ask of attention that it does not do here."""


class Batch(NamedTuple):
    """Rows of one forward pass."""

    model_inputs: dict[str, Any]
    """What the model takes: ``input_ids`` (1, N) and what keeps the rows apart, or padded (B, longest) and a mask."""
    positions: Tensor
    """(C,) where in the flattened sequence the token before each completion token stands, which predicts it."""
    targets: Tensor
    """(C,) the completion tokens."""
    grid: Tensor
    """(B, T) for each row the places of its completion tokens among the C; 0 where ``mask`` is false."""
    mask: Tensor
    """(B, T) true for completion tokens."""

    def by_row(self, values: Tensor) -> Tensor:
        """(C,) values of the completion tokens as (B, T), with anything where ``mask`` is false."""
        return values[self.grid]


def make_batch(rows: Sequence[Row], device: torch.device, *, padded: bool = False) -> Batch:
    """Tensors of rows given as prompt and completion ids.

    Args:
        rows: B pairs; no prompt is empty.
        device: where the tensors go.
        padded: pad the rows instead of packing them.

    Example:
        >>> batch = make_batch([([5, 6], [7, 8]), ([5], [9])], torch.device("cpu"))
        >>> batch.model_inputs["input_ids"].tolist(), batch.model_inputs["position_ids"].tolist()
        ([[5, 6, 7, 8, 5, 9]], [[0, 1, 2, 3, 0, 1]])
        >>> batch.positions.tolist(), batch.targets.tolist(), batch.grid.tolist()
        ([1, 2, 4], [7, 8, 9], [[0, 1], [2, 0]])
    """
    lengths = list(map(num_tokens, rows))
    steps = [max(lengths)] * len(rows) if padded else lengths
    starts = accumulate(steps[:-1], initial=0)
    positions = [
        start + offset
        for start, (prompt, completion) in zip(starts, rows, strict=True)
        for offset in range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    ]
    sizes = [len(completion) for _, completion in rows]
    numbers = torch.arange(len(positions)).split(sizes)
    mask = pad_sequence([torch.ones(size, dtype=torch.bool) for size in sizes], batch_first=True)
    ids = [prompt + completion for prompt, completion in rows]
    inputs = _padded_inputs(ids) if padded else _packed_inputs(ids)
    return Batch(
        {name: send(value, device) for name, value in inputs.items()},
        send(torch.tensor(positions), device),
        send(torch.tensor([token for _, completion in rows for token in completion]), device),
        send(pad_sequence(list(numbers), batch_first=True), device),
        send(mask, device),
    )


def _packed_inputs(ids: Sequence[list[int]]) -> dict[str, Any]:
    lengths = [len(row) for row in ids]
    borders = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return {
        "input_ids": torch.tensor([[token for row in ids for token in row]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "row_lengths": tuple(lengths),
    }


def _padded_inputs(ids: Sequence[list[int]]) -> dict[str, Any]:
    rows = [torch.tensor(row) for row in ids]
    return {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }


def send(value: Any, device: torch.device) -> Any:
    """A tensor on its way to a GPU, without waiting for it; other values as they are."""
    if not isinstance(value, Tensor) or device.type == "cpu":
        return value
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each row of a packed sequence; transformers' interface.

    On a GPU in half precision it is the variable-length kernel; on a CPU, in float32 or wider and where rows are long
    enough, :mod:`mralign_core.training.attention`; else PyTorch's kernel, row by row.

    Args:
        module: the attention layer; unused.
        query: (1, heads, N, size).
        key: (1, key heads, N, size).
        value: (1, key heads, N, size).
        attention_mask: unused, None.
        scaling: of the scores.
        dropout: of the scores; 0 in a frozen model.
        options: ``row_lengths`` and what FlashAttention takes, as :func:`make_batch` gives them; without them, each
            element of the batch is one row, padded at its end if at all.

    Returns:
        (1, N, heads, size), and no scores.

    Raises:
        ValueError: the layer asks for one of :data:`NOT_COMPUTED`. A window that is longer than the rows at hand would
            change nothing for them, but for longer ones.
    """
    if asked := [name for name in NOT_COMPUTED if options.get(name) is not None]:
        raise ValueError(f"its attention has {', '.join(asked)}")
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and "row_lengths" in options:
        queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
        return varlen(queries, keys, values, options, scaling)[None], None
    lengths = options.get("row_lengths", (query.shape[2],))
    is_wide_on_cpu = query.device.type == "cpu" and query.dtype not in HALF
    if is_wide_on_cpu and "row_lengths" in options and pays(query.shape[2], lengths, query.shape[3]):
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        return causal_attention(query[0], key[0], value[0], lengths, scale)[None], None
    rows = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    attended_rows = [
        functional.scaled_dot_product_attention(*row, is_causal=True, scale=scaling, enable_gqa=True) for row in rows
    ]
    return torch.cat(attended_rows, dim=2).transpose(1, 2), None


def varlen(queries: Tensor, keys: Tensor, values: Tensor, options: dict[str, Any], scaling: float | None) -> Tensor:
    """PyTorch's variable-length attention, causal, in the words of the version at hand.

    Args:
        queries: (N, heads, size).
        keys: (N, key heads, size).
        values: (N, key heads, size).
        options: the borders and longest rows, as :func:`make_batch` gives them.
        scaling: of the scores.

    Returns:
        (N, heads, size).
    """
    # Versions before the pinned one, which hosts with a CUDA image of their own still have, lack some arguments.
    known = _arguments(varlen_attn)
    asked: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "scale" in known:
        asked["scale"] = scaling
    elif scaling is not None:
        queries = queries * (scaling * queries.shape[-1] ** 0.5)
    if (groups := queries.shape[1] // keys.shape[1]) > 1:
        if "enable_gqa" in known:
            asked["enable_gqa"] = True
        else:
            keys, values = (part.repeat_interleave(groups, 1) for part in (keys, values))
    names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    attend: Any = varlen_attn
    attended: Tensor = attend(queries, keys, values, *(options[name] for name in names), **asked)
    return attended


@cache
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    """Names of what a function takes, found once: attention is called in every layer of every pass."""
    return frozenset(inspect.signature(function).parameters)


# Without a mask function under the same name transformers makes no mask; with one it would look for packed rows in the
# positions, which waits for the device in every pass.
AttentionInterface.register(PACKED, packed_attention)
