"""The map of open labels that taxonomy induction found (App. B.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mralign_core.method.taxonomy import Taxonomy
from mralign_core.reporting.style import FAINT, INK, MACRO_COLOURS, MUTED, WIDTH, as_ink, styled, with_alt_text

MAP_HEIGHT = 7.2
"""Inches."""
SMALLEST_DOT, LARGEST_DOT = 12.0, 320.0
"""Areas of dots, in points squared."""
ABOVE_DOTS = 0.04
"""How far above the middle of its members a name stands, as a share of the map's height."""
TEXT_WIDTH, TEXT_HEIGHT = 0.0105, 0.036
"""Of a letter and of a line, as shares of the width and height that the open labels take up."""
MOST_MACROS_IN_LEGEND = 12
MOST_PHRASES_WRITTEN = 60
"""On a fuller map only the induced labels are written, not the open ones."""
PALETTE = (*MACRO_COLOURS, "#1f9aa8", "#8a5a33", "#cc6677", "#6f8a00")
"""Of macro-strategies; an induced set may well have more than the paper's four."""


@styled
def cluster_map(open_labels: pd.DataFrame, taxonomy: Taxonomy) -> Figure:
    """Open labels in the plane, near where their embeddings are near, coloured by macro-strategy; noise is grey.

    Args:
        open_labels: rows with ``induction.inducing.OPEN_LABEL_COLUMNS``; those without a place are left out.
        taxonomy: the induced labels.
    """
    placed = open_labels.dropna(subset=["x", "y"])
    figure = Figure(figsize=(WIDTH, MAP_HEIGHT))
    axes = figure.subplots()
    macros = dict.fromkeys(taxonomy.macro_of(label) for label in taxonomy.labels)
    colours = {macro: PALETTE[place % len(PALETTE)] for place, macro in enumerate(macros)}
    areas = _areas(placed["count"].to_numpy(float))
    noise = placed["is_noise"].to_numpy(bool)
    axes.scatter(placed["x"][noise], placed["y"][noise], s=areas[noise], color=FAINT, edgecolors=MUTED, lw=0.5)
    for macro, colour in colours.items():
        inside = placed["label"].map(taxonomy.macro_strategies).eq(macro).to_numpy(bool)
        axes.scatter(
            placed["x"][inside], placed["y"][inside], s=areas[inside], color=colour, alpha=0.55, edgecolors="white"
        )
    if len(placed) <= MOST_PHRASES_WRITTEN:
        _write_phrases(axes, placed, areas)
    _write_names(axes, placed, taxonomy, colours)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.09)
    counted = f"{len(placed):,} open labels, {taxonomy.num_labels} induced ones; {int(noise.sum()):,} are noise (grey)"
    axes.set_title(counted)
    _legend(axes, colours)
    sizes = placed["label"].value_counts()
    told = [f"{label} of {sizes.get(label, 0)}" for label in taxonomy.labels]
    return with_alt_text(figure, f"Map of {counted}.", f"Clusters: {', '.join(told)}.")


def _areas(counts: np.ndarray) -> np.ndarray:
    """Dot areas by the root of the count: counts have a long tail."""
    return SMALLEST_DOT + (LARGEST_DOT - SMALLEST_DOT) * np.sqrt(counts / counts.max(initial=1.0))


def _write_phrases(axes: Axes, placed: pd.DataFrame, areas: np.ndarray) -> None:
    """Each open label below its dot."""
    for row, area in zip(placed.itertuples(index=False), areas, strict=True):
        down = -np.sqrt(area) / 2 - 1
        style: Any = {"ha": "center", "va": "top", "fontsize": 7, "color": MUTED}
        axes.annotate(str(row.open_label), (row.x, row.y), (0, down), textcoords="offset points", **style)


def _write_names(axes: Axes, placed: pd.DataFrame, taxonomy: Taxonomy, colours: dict[str, str]) -> None:
    """Each label's name above the middle of its members, moved up or down until it covers no other name."""
    low = placed[["x", "y"]].min()
    span = (placed[["x", "y"]].max() - low).replace(0, 1.0)
    middles = placed.groupby("label")[["x", "y"]].median()
    written: list[tuple[float, float, float]] = []
    for label, middle in middles.sort_values("y").iterrows():
        across, middle_up = (float(value) for value in (middle - low) / span)
        up = middle_up + ABOVE_DOTS
        half_width = len(str(label)) * TEXT_WIDTH / 2
        step = 0
        while _covers(across, place := up + _detour(step), half_width, written):
            step += 1
        written.append((across, place, half_width))
        at = (across * span["x"] + low["x"], place * span["y"] + low["y"])
        text = axes.annotate(
            str(label),
            (middle["x"], middle["y"]),
            xytext=at,
            ha="center",
            va="center",
            fontsize=9.5,
            fontweight="bold",
            color=as_ink(colours[taxonomy.macro_of(str(label))]),
            arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.5} if step else None,
        )
        text.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])


def _detour(step: int) -> float:
    """0, then a line up, a line down, two lines up, …"""
    lines = (step + 1) // 2
    return TEXT_HEIGHT * (lines if step % 2 else -lines)


def _covers(across: float, up: float, half_width: float, written: list[tuple[float, float, float]]) -> bool:
    return any(abs(across - x) < half_width + w and abs(up - y) < 0.99 * TEXT_HEIGHT for x, y, w in written)


def _legend(axes: Axes, colours: dict[str, str]) -> None:
    """Macro-strategies by colour, as far as there is room."""
    shown = dict(list(colours.items())[:MOST_MACROS_IN_LEGEND])
    for macro, colour in shown.items():
        axes.scatter([], [], s=40, color=colour, alpha=0.55, label=macro)
    columns = min(4, max(1, len(shown)))
    legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=columns, title="macro-strategy")
    legend.get_title().set_color(INK)
