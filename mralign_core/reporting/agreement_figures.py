"""Figures of agreement between annotation sets: κ of every pair, and κ by label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from mralign_core.reporting.style import FAINT, MUTED, WIDTH, ink_on, styled, with_alt_text

LEVEL_TITLES = {"label": "κ on labels", "macro": "κ on macro-strategies"}
PAIR_COLOURS = ("#0072b2", "#d55e00", "#117733", "#aa4499", "#b8890b")
MOST_TELLING = len(PAIR_COLOURS)
_KAPPA_MAP = LinearSegmentedColormap.from_list("kappa", ["#f7fafc", "#9ecae1", "#2171b5", "#08306b"])


def telling_pairs(pairs: pd.DataFrame) -> list[tuple[str, str]]:
    """The pairs worth emphasis, at most ``MOST_TELLING``.

    First the run's two annotators, then its consolidated labels with those of other panels and of people, then with
    other panels' annotators, then all others.

    Args:
        pairs: rows with columns ``a`` and ``b``.
    """
    every = list(dict.fromkeys(zip(pairs["a"], pairs["b"], strict=True)))

    def rank(pair: tuple[str, str]) -> int:
        if pair == ("run A", "run B"):
            return 0
        if "run pipeline" in pair:
            return 1 + any(name.endswith((" A", " B")) for name in pair)
        return 3

    return sorted(every, key=rank)[:MOST_TELLING]


@styled
def kappa_matrices(pairs: pd.DataFrame) -> Figure:
    """κ of every two sets, strict below the diagonal and by entailment above it; labels left, macro-strategies right.

    Args:
        pairs: table ``pairs`` of a comparison.
    """
    names = list(dict.fromkeys([*pairs["a"], *pairs["b"]]))
    figure = Figure(figsize=(WIDTH, 2.1 + 0.34 * len(names)), layout=_roomy())
    for axes, (level, title) in zip(figure.subplots(1, 2, sharey=True), LEVEL_TITLES.items(), strict=True):
        for row in pairs[pairs["level"] == level].itertuples(index=False):
            first, second = names.index(row.a), names.index(row.b)
            low, high = max(first, second), min(first, second)
            place = (low, high) if row.rule == "strict" else (high, low)
            _cell(axes, *place, float(row.kappa), f"{row.a} · {row.b}, {row.rule}, {row.segments} segments")
        axes.set(xlim=(0, len(names)), ylim=(len(names), 0))
        axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=90, fontsize=8)
        axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_facecolor("#f3f4f6")
        axes.set_title(title)
    figure.supxlabel("below the diagonal: equal sets (strict); above: one contains the other (entailment)", size=9)
    return with_alt_text(figure, f"κ of every two of {len(names)} annotation sets.", *_told_pairs(pairs))


def _told_pairs(pairs: pd.DataFrame) -> list[str]:
    """κ on labels of the telling pairs, by equal sets."""
    known = pairs[(pairs["level"] == "label") & (pairs["rule"] == "strict")].set_index(["a", "b"])["kappa"]
    return [f"{a} · {b}: {float(known[a, b]):.2f}." for a, b in telling_pairs(pairs) if (a, b) in known.index]


def _roomy() -> ConstrainedLayoutEngine:
    """Long names of sets are at the edges, and text grows a little at other resolutions than the layout's."""
    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)


def _cell(axes: Axes, row: int, column: int, kappa: float, about: str) -> None:
    defined = np.isfinite(kappa)
    colour = _KAPPA_MAP(Normalize(0, 1, clip=True)(kappa)) if defined else (0.95, 0.96, 0.96, 1.0)
    cell = Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8)
    cell.set_gid(f"tip:{about}: κ = {kappa:.3f}" if defined else f"tip:{about}: κ is not defined")
    cell.set_in_layout(False)
    axes.add_patch(cell)
    text = f"{kappa:.2f}".replace("-", "−") if defined else "–"
    note = axes.text(column + 0.5, row + 0.52, text, ha="center", va="center", fontsize=7.5, color=ink_on(colour[:3]))
    note.set_in_layout(False)


@styled
def label_kappas(per_label: pd.DataFrame) -> Figure:
    """κ of each label for the telling pairs with their intervals, and for all others as faint dots.

    Args:
        per_label: table ``per_label`` of a comparison.
    """
    labels = list(dict.fromkeys(per_label["label"]))
    shown = telling_pairs(per_label)
    figure = Figure(figsize=(WIDTH, 1.5 + (0.14 + 0.075 * len(shown)) * len(labels)), layout=_roomy())
    axes = figure.subplots()
    places = {label: place for place, label in enumerate(labels)}
    faint = per_label[[pair not in shown for pair in zip(per_label["a"], per_label["b"], strict=True)]]
    if len(faint):
        style: Any = {"s": 9, "color": "#c3cad3", "label": "other pairs", "zorder": 1}
        axes.scatter(faint["kappa"].astype(float), faint["label"].map(places), **style)
    offsets = np.linspace(-0.32, 0.32, len(shown)) if len(shown) > 1 else np.zeros(1)
    for (a, b), offset, colour in zip(shown, offsets, PAIR_COLOURS, strict=False):
        rows = per_label[(per_label["a"] == a) & (per_label["b"] == b)]
        _dots(axes, rows, rows["label"].map(places) + offset, colour, f"{a} · {b}")
    axes.axvline(0, color=MUTED, lw=0.8, zorder=0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.set_xlim(right=1.02)
    axes.set_xlabel("κ of having the label or not, with its interval; no dot where neither set has the label")
    for place in range(1, len(labels)):
        axes.axhline(place - 0.5, color=FAINT, lw=0.6, zorder=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8.5)
    return with_alt_text(
        figure, f"κ of each of {len(labels)} labels.", *(_told_labels(per_label, *pair) for pair in shown)
    )


def _told_labels(per_label: pd.DataFrame, a: str, b: str) -> str:
    """The labels that a pair agrees on most and least."""
    rows = per_label[(per_label["a"] == a) & (per_label["b"] == b)].dropna(subset=["kappa"])
    if rows.empty:
        return f"{a} · {b}: κ is defined for no label."
    rows = rows.assign(kappa=rows["kappa"].astype(float)).sort_values("kappa", kind="stable")
    least, most = (f"{row['label']} {row['kappa']:.2f}" for _, row in rows.iloc[[0, -1]].iterrows())
    return f"{a} · {b}: highest {most}, lowest {least}."


def _dots(axes: Axes, rows: pd.DataFrame, heights: pd.Series, colour: str, name: str) -> None:
    kappas, lows, highs = (rows[column].astype(float) for column in ("kappa", "kappa_low", "kappa_high"))
    axes.hlines(heights, lows, highs, color=colour, lw=1.4)
    for kappa, height, row in zip(kappas, heights, rows.itertuples(index=False), strict=True):
        (dot,) = axes.plot([kappa], [height], "o", ms=4, color=colour)
        dot.set_gid(f"tip:{row.label}, {name}: κ = {kappa:.3f}; {row.num_a} and {row.num_b} segments")
    axes.plot([], [], "o-", ms=4, lw=1.4, color=colour, label=name)
