"""Figures of the diagnostics: convergence of EM, sensitivity of the weights, and differences between strata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from mralign_core.estimation.diagnostics import Diagnostics
from mralign_core.estimation.diagnostics.convergence import Objective
from mralign_core.estimation.diagnostics.sensitivity import Sensitivity, SensitivityRow
from mralign_core.estimation.diagnostics.strata import Strata, StratumMove
from mralign_core.reporting.delta_graph import delta_graph
from mralign_core.reporting.matrix_figures import Transitions, weight_intervals
from mralign_core.reporting.style import FAINT, INK, MUTED, POLARITY_COLOURS, WIDTH, styled, with_alt_text
from mralign_core.reporting.titles import MATRIX_TITLES

STRATUM_COLOURS = ("#4b3f9e", "#b8890b", "#117733", "#aa4499", "#5b6675", "#56b4e9", "#8c510a")
DIAGNOSTIC_CHARTS = {
    "intervals": "Weights of the most frequent moves, with bootstrap intervals",
    "delta": "Where P⁺ and P⁻ differ most",
    "objective": "EM objective by iteration",
    "sensitivity": "Shift in w with other settings",
    "strata": "Where strata differ most",
}
"""Name → what it shows."""
_FACTORS = {"damping": "damping dp", "prior": "Dirichlet prior", "clip": "largest weight (clip)"}


def diagnostic_charts(diagnostics: Diagnostics, transitions: Transitions) -> dict[str, Figure]:
    """Every figure that there is something to show in, by name."""
    charts = {
        "delta": delta_graph(transitions.plus, transitions.minus, transitions.taxonomy),
        "objective": objective_curves(diagnostics.objectives),
        "sensitivity": sensitivity_curves(diagnostics.sensitivity),
    }
    if transitions.draws:
        charts["intervals"] = weight_intervals(transitions)
    if diagnostics.strata.moves:
        charts["strata"] = stratum_moves(diagnostics.strata)
    return charts


@styled
def objective_curves(objectives: Sequence[Objective]) -> Figure:
    """How far the MAP objective is below its maximum by EM iteration, as configured and undamped, a panel a matrix."""
    figure = Figure(figsize=(WIDTH, 2.7))
    panels = np.atleast_1d(figure.subplots(1, len(objectives), sharey=True))
    for axes, objective in zip(panels, objectives, strict=True):
        best = max(*objective.configured, *objective.undamped)
        for values, style in ((objective.undamped, {"color": "#a9b2bd"}), (objective.configured, {"color": INK})):
            # The last point of the run to convergence is the maximum itself, which a log scale has no place for.
            short = [best - value for value in values if best - value > 1e-6]
            name = "as configured" if values is objective.configured else "undamped, to convergence"
            axes.plot(range(len(short)), short, marker="o", ms=3.2, lw=1.4, label=name, **style)
        axes.set_yscale("log")
        axes.set_title(MATRIX_TITLES.get(objective.matrix, objective.matrix))
        axes.set_xlabel("EM iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("nats below the maximum")
    panels[-1].legend(fontsize=8, loc="upper right")
    return with_alt_text(figure, f"Nats below the maximum by EM iteration: {', '.join(map(_told_end, objectives))}.")


def _told_end(objective: Objective) -> str:
    short = max(*objective.configured, *objective.undamped) - objective.configured[-1]
    name = MATRIX_TITLES.get(objective.matrix, objective.matrix)
    return f"{name} ends {short:.2g} below it after {len(objective.configured) - 1} iterations"


@styled
def sensitivity_curves(sensitivity: Sensitivity) -> Figure:
    """Shift in w against damping, prior and clip, one at a time, the other two as configured."""
    figure = Figure(figsize=(WIDTH, 3.1))
    for axes, (name, title) in zip(figure.subplots(1, 3, sharey=True), _FACTORS.items(), strict=True):
        rows = sensitivity.along(name)
        places = np.arange(len(rows))
        shifts = [row.shift.mean_abs_log_ratio for row in rows]
        axes.bar(places, shifts, width=0.62, color="#0072b2", zorder=2)
        axes.set_title(title)
        axes.set_xticks(places, [_tick(name, row) for row in rows])
        for place, row in enumerate(rows):
            _bar_note(
                axes, place, row, is_configured=row.shift.mean_abs_log_ratio == 0 and _is_configured(sensitivity, row)
            )
        axes.grid(axis="y", color=FAINT, lw=0.7, zorder=0)
        axes.set_axisbelow(True)
    figure.axes[0].set_ylabel("mean |log w − log w of this run|")
    top = max(row.shift.mean_abs_log_ratio for name in _FACTORS for row in sensitivity.along(name))
    figure.axes[0].set_ylim(0, 1.25 * max(top, 0.01))
    figure.supxlabel("above each bar: share of segments whose weight is then on the other side of 1", fontsize=8.5)
    return with_alt_text(
        figure,
        "Bars of the mean shift in log w by setting.",
        *(_told_shifts(sensitivity.along(name), name, title) for name, title in _FACTORS.items()),
    )


def _told_shifts(rows: Sequence[SensitivityRow], name: str, title: str) -> str:
    told = [f"{_tick(name, row)} {row.shift.mean_abs_log_ratio:.3f}" for row in rows]
    return f"{title[0].upper()}{title[1:]}: {', '.join(told)}."


@styled
def stratum_moves(strata: Strata) -> Figure:
    """The moves whose probability differs most between strata, beside their probability in P⁺ and P⁻."""
    # Strata too small to be compared have no move.
    levels = [level for level in strata.traces if any(level in move.p for move in strata.moves)]
    colours = dict(zip(levels, STRATUM_COLOURS, strict=False))
    figure = Figure(figsize=(WIDTH, 1.5 + 0.3 * len(strata.moves)))
    axes = figure.subplots()
    for place, move in enumerate(strata.moves):
        known = [move.p[level] for level in levels if level in move.p]
        axes.plot([min(known), max(known)], [place, place], color=FAINT, lw=5, zorder=1, solid_capstyle="round")
    for level in levels:
        points = [(move.p[level], place) for place, move in enumerate(strata.moves) if level in move.p]
        counts = strata.traces[level]
        name = f"{level} ({counts['positive']} positive, {counts['negative']} negative)"
        _dots(axes, points, name, marker="o", s=46, color=colours[level], zorder=3)
    for side, polarity in (("plus", "positive"), ("minus", "negative")):
        points = [(move.p[side], place) for place, move in enumerate(strata.moves)]
        face: Any = {"facecolor": "none", "edgecolor": POLARITY_COLOURS[polarity], "linewidth": 1.4, "zorder": 4}
        _dots(axes, points, f"all {polarity} traces", marker="D", s=38, **face)
    axes.set_yticks(range(len(strata.moves)), [f"{move.source} → {move.target}" for move in strata.moves])
    axes.set_ylim(len(strata.moves) - 0.5, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("probability of the move")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2)
    return with_alt_text(
        figure,
        "Probabilities of the moves that differ most between strata.",
        *(_told_move(move) for move in strata.moves),
    )


def _told_move(move: StratumMove) -> str:
    known = [f"{MATRIX_TITLES.get(name, name)} {100 * value:.0f} %" for name, value in move.p.items()]
    return f"{move.source} → {move.target}: {', '.join(known)}."


def _dots(axes: Axes, points: Sequence[tuple[float, float]], label: str, **style: Any) -> None:
    across, down = zip(*points, strict=True) if points else ((), ())
    axes.scatter(across, down, label=label, **style)


def _is_configured(sensitivity: Sensitivity, row: SensitivityRow) -> bool:
    names = ("damping", "prior", "clip_min", "clip_max")
    return all(getattr(row, name) == getattr(sensitivity, name) for name in names)


def _tick(name: str, row: SensitivityRow) -> str:
    if name != "clip":
        return f"{getattr(row, name):g}"
    return "none" if row.clip_max is None else f"{row.clip_max:.2f}"


def _bar_note(axes: Axes, place: float, row: SensitivityRow, *, is_configured: bool) -> None:
    text = "this\nrun" if is_configured else f"{100 * row.shift.share_crossing:.0f} %"
    at = (place, row.shift.mean_abs_log_ratio)
    axes.annotate(text, at, (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=8, color=MUTED)
