"""Induced labels as a table to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABEL_COLUMNS = ["macro-strategy", "label", "definition", "instances", "most frequent open labels"]
MOST_PHRASES_SHOWN = 5


def label_rows(induced: Mapping[str, Any]) -> list[list[str]]:
    """The labels as rows of text (``LABEL_COLUMNS``).

    Args:
        induced: what :meth:`mralign_core.induction.Induction.description` returns.
    """
    return [
        [
            label["macro_strategy"],
            label["name"],
            label["definition"],
            f"{label['num_instances']:,}",
            ", ".join(f"{phrase} ({count:,})" for phrase, count in list(label["phrases"].items())[:MOST_PHRASES_SHOWN]),
        ]
        for label in induced["labels"]
    ]
