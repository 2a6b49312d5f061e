"""What a data set holds, counted as its rows go by."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mralign_core.exporting.trace_rows import TraceRow, is_labelled

WITHOUT_LABELS, WITHOUT_WEIGHTS = "traces without labels", "traces without weights"
WITHOUT_END, LEFT_OUT = "traces without an end token", "traces left out, which have no labels"
LACKS = (WITHOUT_LABELS, WITHOUT_WEIGHTS, WITHOUT_END, LEFT_OUT)
"""Counts of an export that are told where they are not 0."""


class RowTally:
    """Counts of rows, for the card."""

    def __init__(self) -> None:
        self.num_rows = self.num_left_out = self.num_segments = self.num_tokens = 0
        self.num_without_labels = self.num_without_weights = self.num_without_end = 0
        self.num_clipped = 0
        self.polarities: Counter[str] = Counter()
        self.rules: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.sets: Counter[str] = Counter()
        self.questions: dict[str, set[str]] = {}
        self.lowest_weight = self.highest_weight = 1.0

    def add(self, row: TraceRow) -> None:
        """Count a row that is written."""
        self.num_rows += 1
        self.num_segments += len(row["segments"])
        self.num_tokens += len(row["completion_ids"])
        self.num_without_labels += not is_labelled(row)
        self.num_without_weights += row["completion_weights"] is None
        has_end = row["end_token_id"] is not None or len(row["completion_ids"]) > row["num_stored_ids"]
        self.num_without_end += not has_end
        self.polarities[row["polarity"]] += 1
        self.sets[row["question_set"]] += 1
        self.questions.setdefault(row["question_set"], set()).add(row["question_id"])
        for segment in row["segments"]:
            self.rules.update([segment["rule"]] if segment["rule"] else [])
            self.labels.update(segment["labels"] or [])
            if segment["weight"] is not None:
                self.lowest_weight = min(self.lowest_weight, segment["weight"])
                self.highest_weight = max(self.highest_weight, segment["weight"])
                self.num_clipped += bool(segment["clipped"])

    def counts(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "traces": self.num_rows,
            **{f"{polarity} traces": number for polarity, number in self.polarities.most_common()},
            "questions": sum(map(len, self.questions.values())),
            "segments": self.num_segments,
            "completion tokens": self.num_tokens,
            WITHOUT_LABELS: self.num_without_labels,
            WITHOUT_WEIGHTS: self.num_without_weights,
            WITHOUT_END: self.num_without_end,
            LEFT_OUT: self.num_left_out,
            "lowest weight": self.lowest_weight,
            "highest weight": self.highest_weight,
            "clipped weights": self.num_clipped,
            "rules": dict(self.rules.most_common()),
            "labels": dict(self.labels.most_common()),
        }
