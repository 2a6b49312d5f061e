"""The forest plot of an ablation: the headline's differences with their intervals, and every unit as a faint point."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mralign_core.ablation.paired import unit_differences
from mralign_core.reporting.ablation_findings import Ablation, difference_rows, interval_text, is_shown
from mralign_core.reporting.style import INK, MUTED, WIDTH, styled, with_alt_text
from mralign_core.reporting.titles import METRIC_DIRECTIONS

COLOUR = "#0072b2"


@styled
def forest_plot(ablation: Ablation) -> Figure:
    """Draw every comparison, a panel for each metric of the headline; a filled dot has an interval that excludes 0."""
    rows = difference_rows(ablation)
    pairs = list(ablation.differences[["arm", "baseline"]].drop_duplicates().itertuples(index=False, name=None))
    by_unit = unit_differences(ablation.results, pairs, unit=ablation.unit)
    layout = ConstrainedLayoutEngine(w_pad=0.08)
    figure = Figure(figsize=(WIDTH, 1.5 + 0.34 * len(rows)), layout=layout)
    metrics = ablation.headline_metrics
    panels = figure.subplots(1, len(metrics), sharex=True, sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for place, pair in enumerate(pairs):
            units = by_unit[(by_unit["arm"] == pair[0]) & (by_unit["baseline"] == pair[1])][metric]
            _comparison(axes, place, units, rows[place][1][metric])
        axes.axvline(0, color=INK, lw=0.8)
        axes.set_title(f"{ablation.metric_title(metric)} ({METRIC_DIRECTIONS[metric]})")
        axes.set_xlabel(f"difference, points\nfilled: its interval excludes 0; faint: each {ablation.unit}")
        axes.set_ylim(len(pairs) - 0.5, -0.5)
    ends = ablation.differences[ablation.differences["metric"].isin(metrics)][["difference", "low", "high"]]
    reach = np.concatenate([ends.to_numpy(float).ravel(), by_unit[metrics].to_numpy(float).ravel()])
    widest = 105 * float(np.nanmax(np.abs(reach), initial=0.005))
    panels[0].set_xlim(-widest, widest)
    panels[0].set_yticks(range(len(rows)), [name for name, _ in rows])
    told = [
        f"{ablation.metric_title(metric)}: "
        + ", ".join(f"{name} {interval_text(cells[metric])}" for name, cells in rows)
        for metric in metrics
    ]
    return with_alt_text(figure, "Differences in points with their intervals.", *(f"{line}." for line in told))


def _comparison(axes: Axes, place: int, units: pd.Series, row: pd.Series) -> None:
    low, high = 100 * float(row["low"]), 100 * float(row["high"])
    axes.plot(100 * units, [place + 0.27] * len(units), "o", ms=3.5, color=MUTED, alpha=0.45, mew=0)
    if not np.isnan(low):
        axes.plot([low, high], [place, place], color=COLOUR, lw=2.2, solid_capstyle="round")
    face = COLOUR if is_shown(row) else "white"
    (dot,) = axes.plot([100 * float(row["difference"])], [place], "o", ms=8, mfc=face, mec=COLOUR, mew=1.8)
    dot.set_gid(f"tip:{interval_text(row)}")
