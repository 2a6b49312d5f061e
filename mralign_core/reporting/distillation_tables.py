"""What a distilled annotator can do, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from mralign_core.distillation.scores import DistillationScores, Escalated
from mralign_core.reporting.result_table import ResultTable


def scores_table(scores: DistillationScores) -> ResultTable:
    """A row a label, and their mean."""
    rows = [
        [each.label, f"{each.segments:,}", _number(each.precision), _number(each.recall), _number(each.f1)]
        for each in scores.labels
    ]
    mean = ["mean of the labels", f"{scores.segments:,}", "", "", _number(scores.macro_f1)]
    return ResultTable(["label", "segments", "precision", "recall", "F1"], [*rows, mean])


def escalation_table(curve: Sequence[Escalated]) -> ResultTable:
    """A row a share that goes on."""
    columns = [
        "segments that go on",
        "below",
        "traces touched",
        "F1 of all",
        "F1 of its own",
        "right of its own",
    ]
    rows = [
        [
            f"{each.share:.1%}",
            f"{each.below:.2f}",
            f"{each.traces:.0%}",
            _number(each.macro_f1),
            _number(each.macro_f1_rest),
            _number(each.accuracy_rest),
        ]
        for each in curve
    ]
    return ResultTable(columns, rows)


def summary_line(scores: DistillationScores) -> str:
    """What the figures mean, in a sentence."""
    without = f", {scores.unlabelled:,} of them without a label" if scores.unlabelled else ""
    return (
        f"its surest label was among the teacher's for {scores.accuracy:.1%} of {scores.segments:,} segments{without}; "
        f"its confidences are off by {10 * scores.calibration_error:.2f} of 10 on average"
    )


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.3f}"
