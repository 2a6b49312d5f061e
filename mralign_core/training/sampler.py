"""Which trace comes when, and whose completion is put behind its prompt to estimate z0.

Departures from TRL 1.16, which never shuffles and rotates the completions inside each forward batch:

* Rows are shuffled every epoch from (seed, epoch), so a restart finds the same order without saved state.
* A pair never shares its question, nor its prompt. A partner comes from the same optimiser step where it has
  one, else from the rest of the epoch's order; so the last, short step and a step of a single question have
  partners too.
* Where all questions of a step differ pairs are TRL's: each prompt meets the completion of the row before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from mralign_core.errors import DataError
from mralign_core.training.examples import TrainingExample


class RowPair(NamedTuple):
    """A row to train on, and the row whose completion its prompt is paired with (None: no KL estimate)."""

    row: int
    partner: int | None


class EpochSampler(Sampler[RowPair]):
    """Shuffled passes over the examples, cut into epochs of ``rows_per_epoch`` rows.

    The passes follow each other without a break: with fewer examples than ``rows_per_epoch`` (SFT sees only
    the positives but takes as many steps as KTO) an epoch runs through them again, in a new order.

    Args:
        examples: the rows.
        rows_per_epoch: rows in one epoch.
        rows_per_step: rows in one optimiser step, over all its forward batches.
        seed: with the pass number, decides the order.
        paired: whether to look for KL partners.
    """

    def __init__(
        self,
        examples: Sequence[TrainingExample],
        *,
        rows_per_epoch: int,
        rows_per_step: int,
        seed: int,
        paired: bool,
    ) -> None:
        self.examples = examples
        self.rows_per_epoch = rows_per_epoch
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.paired = paired
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows_per_epoch

    def __iter__(self) -> Iterator[RowPair]:
        order = self.order(self.epoch)
        for start in range(0, len(order), self.rows_per_step):
            step = order[start : start + self.rows_per_step]
            for position, row in enumerate(step):
                yield RowPair(row, self._partner(step, position, order, start) if self.paired else None)

    def order(self, epoch: int) -> list[int]:
        """Row numbers of an epoch, in order."""
        num_rows = len(self.examples)
        first, last = epoch * self.rows_per_epoch, (epoch + 1) * self.rows_per_epoch
        passes = range(first // num_rows, -(-last // num_rows))
        rows = np.concatenate([np.random.default_rng([self.seed, number]).permutation(num_rows) for number in passes])
        offset = first - passes.start * num_rows
        return [int(row) for row in rows[offset : offset + self.rows_per_epoch]]

    def _partner(self, step: Sequence[int], position: int, order: Sequence[int], start: int) -> int:
        partner = mismatched_partner(self.examples, step, position)
        if partner is None:
            partner = mismatched_partner(self.examples, order, start + position)
        if partner is None:
            raise DataError(
                f"all {len(self.examples)} training traces ask question {self.examples[0].question_id!r}: "
                "the KL baseline needs traces of at least two questions; align on more questions"
            )
        return partner


def mismatched_partner(examples: Sequence[TrainingExample], rows: Sequence[int], position: int) -> int | None:
    """The nearest row before ``position``, going round, that shares neither question nor prompt, if any."""
    own = examples[rows[position]]
    for back in range(1, len(rows)):
        other = examples[rows[position - back]]
        if other.question_id != own.question_id and other.prompt_ids != own.prompt_ids:
            return rows[position - back]
    return None
