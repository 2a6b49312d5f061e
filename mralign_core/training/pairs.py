"""Whose completion is put behind a row's prompt to estimate z0.

Departures from TRL 1.16, which rotates the completions inside each forward batch:

* A pair never shares its question, nor its prompt.
* A row keeps its partner in every step, epoch and run on the same rows, whatever the order and the batch. So the
  reference's log-probabilities of the pairs are computed once.
* Where all questions differ the pairs are TRL's on one batch of all rows: each prompt meets the completion of the
  row before, in a shuffled order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mralign_core.errors import DataError
from mralign_core.training.examples import TrainingExample

PAIRING_SEED = 0
"""Not the run's seed: all seeds share the pairs, and so the reference's log-probabilities."""


def kl_partners(examples: Sequence[TrainingExample]) -> list[int]:
    """Each row's partner, another row of a different question and prompt.

    Rows in a shuffled order, questions together, meet the row that stands as far back as the largest question has
    rows. So no row meets its own question, and every completion is used once; unless one question has more than half
    of the rows, when the completions of the others are used several times.

    Args:
        examples: N rows.

    Returns:
        N row numbers.

    Raises:
        DataError: all rows ask the same question.

    Example:
        >>> rows = [TrainingExample(f"t{row}", question, [row], [1], [1.0], True) for row, question in enumerate("aab")]
        >>> kl_partners(rows)
        [2, 2, 0]
    """
    groups = _groups(examples)
    order = _shuffled_by_group(groups)
    largest = int(np.bincount(groups).max())
    if largest == len(examples):
        raise DataError(
            f"all {len(examples)} training traces ask question {examples[0].question_id!r}: "
            "the KL baseline needs traces of at least two questions; align on more questions"
        )
    partners = [0] * len(examples)
    if 2 * largest <= len(examples):
        for position, row in enumerate(order):
            partners[row] = order[position - largest]
        return partners
    dominant = int(np.bincount(groups).argmax())
    members = [row for row in order if groups[row] == dominant]
    others = [row for row in order if groups[row] != dominant]
    for rows, choices in ((members, others), (others, members)):
        for position, row in enumerate(rows):
            partners[row] = choices[position % len(choices)]
    return partners


def _groups(examples: Sequence[TrainingExample]) -> list[int]:
    """Per row the number of its group: rows that share a question or a prompt, also through other rows."""
    parent = list(range(len(examples)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[object, int] = {}
    for row, example in enumerate(examples):
        for trait in (example.question_id, tuple(example.prompt_ids)):
            parent[root(row)] = root(first.setdefault(trait, row))
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(row), len(numbers)) for row in range(len(examples))]


def _shuffled_by_group(groups: Sequence[int]) -> list[int]:
    """Row numbers in a shuffled order of the groups, the rows of a group together."""
    generator = np.random.default_rng(PAIRING_SEED)
    rank = generator.permutation(max(groups) + 1)
    return sorted(generator.permutation(len(groups)).tolist(), key=lambda row: rank[groups[row]])
