"""Panels of annotators: what sets one apart from the run's own, and which rules decided its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mralign_core.config import AnnotateConfig


def panel_note(
    replies: pd.DataFrame, failures: Sequence[Mapping[str, Any]], panel: AnnotateConfig, run: AnnotateConfig
) -> str:
    """A panel's models, the settings in which it differs from the run's, and how many traces it failed on.

    Args:
        replies: ``role, model`` of each reply.
        failures: what the panel failed on.
        panel: its settings.
        run: the settings of the run's own annotators.
    """
    models = replies.groupby("role")["model"].unique().map(", ".join)
    failed = f"{len({failure['trace_id'] for failure in failures})} traces failed"
    return "; ".join([*(f"{role} {model}" for role, model in models.items()), *_differences(panel, run), failed])


def rules_by_panel(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How many segments each rule decided: ``panel, rule, segments, share``.

    Args:
        tables: the labels of each panel, rows of :data:`~mralign_core.schemas.annotations.ANNOTATIONS`.
    """
    rows = [
        {"panel": name, "rule": str(rule), "segments": int(count), "share": count / len(table)}
        for name, table in tables.items()
        for rule, count in table["rule"].value_counts().items()
    ]
    return pd.DataFrame(rows, columns=["panel", "rule", "segments", "share"])


def _differences(panel: AnnotateConfig, run: AnnotateConfig) -> list[str]:
    """Settings, besides the models, that differ from the run's."""
    ours, theirs = panel.fingerprint(), run.fingerprint()
    plain = [name for name, value in ours.items() if not isinstance(value, dict)]
    return [f"{name} {ours[name]} (run: {theirs[name]})" for name in plain if ours[name] != theirs[name]]
