"""What a variant's answers cost in tokens, which are what a model's time and price go by."""

from __future__ import annotations

import pandas as pd

from mralign_core.evaluation.metrics import order_variants

TOKENS_FILE = "tokens.json"
"""Beside the results: what :func:`mean_tokens` returned."""
TOKEN_COLUMNS = ("num_prompt_tokens", "num_tokens")


def mean_tokens(answers: pd.DataFrame) -> pd.DataFrame:
    """The mean tokens of an answer, by variant, over all questions, scored or not.

    Args:
        answers: rows of :data:`~mralign_core.schemas.scores.SCORES`, of several variants.

    Returns:
        Columns ``variant, num_answers``, and the means ``num_prompt_tokens`` (read) and ``num_tokens`` (drawn).

    Example:
        >>> answers = pd.DataFrame({"variant": ["on", "off", "on"], "num_prompt_tokens": [9, 9, 7], "num_tokens": 5})
        >>> mean_tokens(answers).to_numpy().tolist()
        [['off', 1, 9.0, 5.0], ['on', 2, 8.0, 5.0]]
    """
    grouped = answers.astype(dict.fromkeys(TOKEN_COLUMNS, float)).groupby("variant")
    table = grouped.size().to_frame("num_answers").join(grouped[list(TOKEN_COLUMNS)].mean())
    return table.loc[order_variants(list(table.index))].reset_index(names="variant")
