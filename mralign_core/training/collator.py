"""Rows to tensors: padding, labels, weights, and the mismatched sequences that estimate z0.

Shape suffixes: B rows of the forward batch, T columns (tokens, right-padded to the longest row).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from mralign_core.training.examples import TrainingExample
from mralign_core.training.sampler import RowPair

IGNORED = -100


class TrainingItem(NamedTuple):
    """An example, and the completion its prompt is paired with to estimate the KL (None: no estimate)."""

    example: TrainingExample
    kl_completion_ids: list[int] | None


class TrainingRows(Dataset[TrainingItem]):
    """The examples, looked up by the :class:`RowPair` that the sampler gives."""

    def __init__(self, examples: Sequence[TrainingExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, pair: RowPair) -> TrainingItem:
        partner = None if pair.partner is None else self.examples[pair.partner].completion_ids
        return TrainingItem(self.examples[pair.row], partner)


def collate(items: Sequence[TrainingItem], pad_token_id: int = 0) -> dict[str, Any]:
    """Pad items to one batch.

    Args:
        items: rows of the batch.
        pad_token_id: any token of the vocabulary; padding is masked everywhere.

    Returns:
        ``input_ids``, ``attention_mask``, ``labels`` (−100 outside the completion): int64 of shape (B, T);
        ``weights``: float32 (B, T), 0 outside the completion; ``is_positive``: bool (B,); ``num_scored``: how
        many last columns hold every completion token of the batch. If the items have partners, also the first
        three and ``num_scored`` of the mismatched sequences, with prefix ``kl_``.

    Example:
        >>> example = TrainingExample("t", "q", [5, 6], [7, 8], [2.0, 1.0], True)
        >>> batch = collate([TrainingItem(example, None)])
        >>> batch["labels"].tolist(), batch["weights"].tolist(), batch["num_scored"]
        ([[-100, -100, 7, 8]], [[0.0, 0.0, 2.0, 1.0]], 2)
    """
    batch = _pad([(item.example.prompt_ids, item.example.completion_ids) for item in items], pad_token_id)
    weights = [[0.0] * len(item.example.prompt_ids) + item.example.weights for item in items]
    batch["weights"] = _stack(weights, 0.0, torch.float32)
    batch["is_positive"] = torch.tensor([item.example.is_positive for item in items])
    pairs = [(item.example.prompt_ids, item.kl_completion_ids) for item in items if item.kl_completion_ids is not None]
    if pairs:
        batch |= {f"kl_{name}": value for name, value in _pad(pairs, pad_token_id).items()}
    return batch


def _pad(rows: Sequence[tuple[list[int], list[int]]], pad_token_id: int) -> dict[str, Any]:
    labels = [[IGNORED] * len(prompt) + completion for prompt, completion in rows]
    return {
        "input_ids": _stack([prompt + completion for prompt, completion in rows], pad_token_id, torch.int64),
        "attention_mask": _stack([[1] * len(label) for label in labels], 0, torch.int64),
        "labels": _stack(labels, IGNORED, torch.int64),
        "num_scored": max(map(len, labels)) - min(len(prompt) for prompt, _ in rows),
    }


def _stack(rows: Sequence[Sequence[float]], padding: float, dtype: torch.dtype) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows], dtype=dtype)
