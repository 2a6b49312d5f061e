"""What became of the draws: counts by thinking mode, for the report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mralign_core.schemas.outcomes import DRAW_OUTCOMES, FAILED

COUNTED = ("question_id", "thinking_mode", "completion_ids", "finish_reason", "outcome", "em_answer", "token_source")
"""The columns of ``GENERATIONS`` that are counted."""
PARTLY_DRAWN = (
    "Draws were made one at a time and stopped where they could no longer matter (generate.draws: sequential), so the "
    "counts are no fair sample of all draws: think-on draws were made only of questions whose think-off draws agree. "
    "The selected traces are the same. For unbiased shares, set generate.draws to exhaustive."
)

_FIELDS = ("questions", "draws", "tokens", "right", "cut_off", "encoded", *DRAW_OUTCOMES)


def count_draws(batches: Iterable[pa.RecordBatch]) -> pd.DataFrame:
    """Count draws, in one pass.

    Args:
        batches: draws with the columns ``COUNTED``; those of a question side by side.

    Returns:
        A row a thinking mode: ``thinking_mode, questions, draws, tokens, right`` (exact match), ``cut_off`` (by
        generate.max_new_tokens), ``encoded`` (an engine gave their text only), and a column for each of
        ``DRAW_OUTCOMES``. A draw that ``failed`` is not among those that are right, nor encoded.
    """
    counts: dict[str, dict[str, Any]] = {}
    last: dict[str, str] = {}
    for batch in batches:
        lengths = pc.list_value_length(batch.column("completion_ids")).to_pylist()
        for row, length in zip(batch.drop_columns(["completion_ids"]).to_pylist(), lengths, strict=True):
            mode = row["thinking_mode"]
            own = counts.setdefault(mode, dict.fromkeys(_FIELDS, 0))
            own["questions"] += last.get(mode) != row["question_id"]
            last[mode] = row["question_id"]
            own["draws"] += 1
            own["tokens"] += length
            own["right"] += bool(row["em_answer"])
            own["cut_off"] += row["finish_reason"] == "length"
            own["encoded"] += row["token_source"] == "encoded" and row["outcome"] != FAILED
            own[row["outcome"]] += 1
    return pd.DataFrame([{"thinking_mode": mode, **counts[mode]} for mode in sorted(counts)])


def draws_table(counts: pd.DataFrame) -> pd.DataFrame:
    """What :func:`count_draws` returns, to look at: a column a thinking mode, without the outcomes that none had.

    Example:
        >>> zeros = dict.fromkeys(DRAW_OUTCOMES, 0)
        >>> table = draws_table(pd.DataFrame([{"thinking_mode": "on", "draws": 3, **zeros, "ok": 3}]))
        >>> table.to_numpy().tolist()
        [['draws', 3], ['ok', 3]]
    """
    table = counts.set_index("thinking_mode").T
    table = table[~table.index.isin(DRAW_OUTCOMES) | (table != 0).any(axis=1)]
    table.columns = [f"think-{mode}" for mode in table.columns]
    return table.rename(index=lambda name: name.replace("_", " ")).rename_axis("").reset_index()


def describe_draws(counts: pd.DataFrame) -> str:
    """What :func:`count_draws` returns, in a line a thinking mode.

    Example:
        >>> zeros = dict.fromkeys(DRAW_OUTCOMES, 0)
        >>> row = {"thinking_mode": "on", "questions": 2, "draws": 3, "tokens": 90, "right": 1, "cut_off": 0, **zeros}
        >>> print(describe_draws(pd.DataFrame([{**row, "ok": 3}])))
        think-on: 3 draws for 2 questions, 90 tokens, 1 right, 0 cut off; outcomes: 3 ok
    """
    lines = []
    for row in counts.to_dict("records"):
        outcomes = ", ".join(f"{row[name]:,} {name.replace('_', ' ')}" for name in DRAW_OUTCOMES if row.get(name))
        lines.append(
            f"think-{row['thinking_mode']}: {row['draws']:,} draws for {row['questions']:,} questions, "
            f"{row['tokens']:,} tokens, {row['right']:,} right, {row['cut_off']:,} cut off; outcomes: {outcomes}"
        )
    return "\n".join(lines)
