"""The trend over retrainings: what each new model moved against the model before training, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from matplotlib import dates
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mralign_core.method.benchmarks import METRIC_SIGNS
from mralign_core.reporting.run_findings import Difference
from mralign_core.reporting.style import INK, MUTED, WIDTH, styled, with_alt_text
from mralign_core.reporting.titles import METRIC_DIRECTIONS, metric_title
from mralign_core.retraining.history import DECIDED, Retraining
from mralign_core.versions.aliases import version_name
from mralign_core.versions.record import VersionRecord

COLOURS = {"promoted": "#117733", "held": "#b8890b", "rejected": "#d55e00"}
MARKS = {"promoted": "o", "held": "s", "rejected": "X"}
MOST_PANELS = 2
MARGIN_DAYS = 4
"""At both ends, so that one retraining by itself has a scale of days too."""


class Week(NamedTuple):
    """One retraining that was decided, with what its model moved against think-on: metric → difference."""

    retraining: Retraining
    moved: dict[str, Difference]


def weeks(retrainings: Sequence[Retraining], records: dict[str, VersionRecord]) -> list[Week]:
    """The retrainings that decided on a version, the oldest first; of one decided on twice, the last.

    Args:
        retrainings: all of a config's name.
        records: of versions that are still in the store, by id.
    """
    last = {one.version: one for one in retrainings if one.outcome in DECIDED and one.version in records}
    found = [Week(one, _moved(records[one.version])) for one in last.values()]
    return sorted((week for week in found if week.moved), key=lambda week: week.retraining.at)


@styled
def trend(history: Sequence[Week], quiet: Sequence[datetime] = ()) -> Figure:
    """Draw the metrics of the first stratum, Mis first where there is one, with their intervals, by date.

    Args:
        history: one week or more.
        quiet: when retrainings ended that had nothing to decide.
    """
    metrics = sorted({name for week in history for name in week.moved}, key=lambda name: (name != "mis", name))
    metrics = metrics[:MOST_PANELS]
    figure = Figure(figsize=(WIDTH, 0.8 + 2.4 * len(metrics)))
    panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    for axes, metric in zip(panels, metrics, strict=True):
        _panel(axes, history, metric)
        axes.plot(quiet, [0] * len(quiet), "|", color=MUTED, ms=9, label="nothing new, or no budget")
        handles, labels = axes.get_legend_handles_labels()
        axes.set_title(f"{metric_title(metric, metrics)}, over think on ({METRIC_DIRECTIONS.get(metric, '')})")
    each = dict(zip(labels, handles, strict=True))
    panels[0].legend(each.values(), each.keys(), fontsize=8, loc="best")
    ends = [dates.date2num(at) for at in (*(week.retraining.at for week in history), *quiet)]
    panels[-1].set_xlim(min(ends) - MARGIN_DAYS, max(ends) + MARGIN_DAYS)
    locator = dates.AutoDateLocator(maxticks=9)
    panels[-1].xaxis.set_major_locator(locator)
    panels[-1].xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    return with_alt_text(figure, "What the model of each retraining moved, in points.", *map(_told, history))


def _panel(axes: Axes, history: Sequence[Week], metric: str) -> None:
    axes.axhline(0, color=INK, lw=0.8)
    for week in history:
        found = week.moved.get(metric)
        if found is None or np.isnan(found.difference):
            continue
        at, outcome = dates.date2num(week.retraining.at), week.retraining.outcome
        axes.plot([at, at], [100 * found.low, 100 * found.high], color=COLOURS[outcome], lw=2.2)
        (dot,) = axes.plot(
            [at], [100 * found.difference], MARKS[outcome], ms=8, color=COLOURS[outcome], label=outcome, ls="none"
        )
        dot.set_gid(f"tip:{version_name(week.retraining.version)}: {found.text}")
    axes.set_ylabel("points")


def _told(week: Week) -> str:
    told = ", ".join(f"{metric_title(name, tuple(week.moved))} {found.text}" for name, found in week.moved.items())
    return f"{week.retraining.at:%Y-%m-%d}, {week.retraining.outcome}: {told}."


def _moved(record: VersionRecord) -> dict[str, Difference]:
    """Of the first stratum, the differences from think-on that have a direction."""
    rows = [row for row in record.differences if row["baseline"] == "on"]
    first = rows[0]["stratum"] if rows else ""
    return {
        row["metric"]: Difference(record.variant, "on", row["metric"], *(_number(row[end]) for end in ENDS))
        for row in rows
        if row["stratum"] == first and row["metric"] in METRIC_SIGNS and row["difference"] is not None
    }


ENDS = ("difference", "low", "high")


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
