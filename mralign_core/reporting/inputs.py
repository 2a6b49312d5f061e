"""Tables of the report that are counted from what a run made."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def annotation_costs(replies: pd.DataFrame) -> pd.DataFrame:
    """What the labels cost: a row a role and model.

    Args:
        replies: rows of :data:`~mralign_core.schemas.annotations.RAW_ANNOTATIONS`.
    """
    grouped = replies.groupby(["role", "model"], as_index=False)
    return grouped.agg(
        requests=("reply", "size"),
        prompt_tokens=("prompt_tokens", "sum"),
        completion_tokens=("completion_tokens", "sum"),
        cost_usd=("cost_usd", "sum"),
    )


def set_aside(quarantined: Sequence[dict[str, str]], failures: Sequence[dict[str, str]]) -> pd.DataFrame | None:
    """What was left out, counted by reason; None where nothing was.

    Args:
        quarantined: rows that broke a contract: ``table, column, reason``.
        failures: traces that an annotator failed on: ``where, what, reason``.
    """
    rows = [
        {"where": f"table {row['table']}", "what": row["column"], "reason": row["reason"]} for row in quarantined
    ] + list(failures)
    if not rows:
        return None
    return pd.DataFrame(rows).groupby(["where", "what", "reason"]).size().rename("rows").reset_index()
