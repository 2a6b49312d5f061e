"""What taxonomy induction made of a model's own words, as a table and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mralign_core.reporting.result_table import ResultTable

MOST_PHRASES_SHOWN = 5


def label_table(found: Mapping[str, Any]) -> ResultTable:
    """The induced labels.

    Args:
        found: what ``clusters.json`` holds.
    """
    rows = [
        [
            label["macro_strategy"],
            label["name"],
            label["definition"],
            f"{label['num_instances']:,}",
            ", ".join(f"{phrase} ({count:,})" for phrase, count in list(label["phrases"].items())[:MOST_PHRASES_SHOWN]),
        ]
        for label in found["labels"]
    ]
    texts = ["label", "definition", "most frequent open labels"]
    return ResultTable(["macro-strategy", *texts[:2], "instances", texts[2]], rows, texts)


def counts_sentence(found: Mapping[str, Any]) -> str:
    """How the labels came about, in numbers.

    Args:
        found: what ``clusters.json`` holds.
    """
    counts = found["counts"]
    silhouette = f"{counts['silhouette']:.4f}" if counts["silhouette"] is not None else counts["silhouette_note"]
    return (
        f"{counts['instances']:,} open labels of {counts['distinct']:,} kinds in {counts['traces']:,} traces; "
        f"{counts['kept']:,} frequent enough, {counts['clusters']} clusters, {counts['noise']} noise; "
        f"silhouette {silhouette}"
    )
