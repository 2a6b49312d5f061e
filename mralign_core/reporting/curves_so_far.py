"""The curves of a training that is under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from mralign_core.reporting.figures import training_curves
from mralign_core.schemas.training_metrics import TRAINING_METRICS


def curves_so_far(variant: str, rows: Sequence[Mapping[str, float]]) -> Figure:
    """Draw the rows of metrics that a training has given so far; one that started again gave some steps twice.

    Args:
        variant: what is trained.
        rows: columns of ``schemas.training_metrics``, some of which may be missing, one row or more.
    """
    table = pd.DataFrame(rows).reindex(columns=list(TRAINING_METRICS.columns))
    table = table.drop_duplicates("step", keep="last").sort_values("step")
    return training_curves({variant: table})
