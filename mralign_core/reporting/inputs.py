"""Tables of the report that are counted from what a run made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd


def annotation_costs(replies: pd.DataFrame, *others: pd.DataFrame) -> pd.DataFrame:
    """What the labels cost: a row a role and model.

    Args:
        replies: rows of :data:`~mralign_core.schemas.annotations.RAW_ANNOTATIONS`.
        others: those of other sets of traces; a trace that is in an earlier set counts once.
    """
    for more in others:
        replies = pd.concat([replies, more[~more["trace_id"].isin(replies["trace_id"])]])
    grouped = replies.groupby(["role", "model"], as_index=False)
    return grouped.agg(
        requests=("reply", "size"),
        prompt_tokens=("prompt_tokens", "sum"),
        completion_tokens=("completion_tokens", "sum"),
        cost_usd=("cost_usd", "sum"),
    )


def joined_ledger(*ledgers: pd.DataFrame) -> pd.DataFrame:
    """What each run asked of each model and paid from several accounts, a row a run and model."""
    used = [ledger for ledger in ledgers if not ledger.empty] or ledgers[:1]  # an empty one would take the types away
    return pd.concat(used).groupby(["run", "model"], as_index=False, sort=False).sum()


def joined_failures(*sets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The failures of several sets of traces; those of a trace that is in an earlier set once."""
    found: list[dict[str, Any]] = []
    for failures in sets:
        known = {failure["trace_id"] for failure in found}
        found += [failure for failure in failures if failure["trace_id"] not in known]
    return found


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
