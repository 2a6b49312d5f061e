"""What an annotator can do on traces that it did not learn from, as its artifact keeps it and its tables show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer

from mralign_core.distillation.fitting import Distilled, LabelledTraces
from mralign_core.distillation.scores import (
    DistillationScores,
    Escalated,
    escalation_curve,
    score_annotator,
)

MEASURED_FILE = "held_out.json"


def _named(row: Any) -> dict[str, Any]:
    """A row with its fields' names, those of rows in it too."""
    values: dict[str, Any] = row._asdict()
    if isinstance(row, DistillationScores):
        values["labels"] = [each._asdict() for each in row.labels]
    return values


class Measured(BaseModel):
    """Figures of chains that had a fold less to learn from than the annotator that is published."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants")

    traces: int
    """That it learned from."""
    penalty: float
    """That was chosen."""
    scores: Annotated[DistillationScores, PlainSerializer(_named)]
    """Against the teacher's labels."""
    if_segments_go_on: list[Annotated[Escalated, PlainSerializer(_named)]]
    """A row a share, with ``annotate.escalate: segments``."""
    if_traces_go_on: list[Annotated[Escalated, PlainSerializer(_named)]]
    """The same with ``traces``."""

    @property
    def in_short(self) -> dict[str, float]:
        """What the manifest of the published annotator says of it."""
        names = ("macro_f1", "accuracy", "calibration_error")
        return {name: round(float(getattr(self.scores, name)), 4) for name in names}


def measure(made: Distilled, traces: LabelledTraces, labels: Sequence[str]) -> Measured:
    """Score an annotator on the traces that it learned from, each by a chain that had not seen it.

    Args:
        made: what was fitted.
        traces: that it was fitted on.
        labels: the label set.
    """
    rated = made.held_out[made.is_rated], made.given[made.is_rated], labels
    numbers = traces.trace_of_segment[made.is_rated]
    return Measured(
        traces=len(traces.texts),
        penalty=made.penalty,
        scores=score_annotator(*rated),
        if_segments_go_on=escalation_curve(*rated, numbers, "segments"),
        if_traces_go_on=escalation_curve(*rated, numbers, "traces"),
    )
