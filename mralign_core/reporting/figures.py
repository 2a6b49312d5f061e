"""The figures of a run: yield, label mix, weights, training and results.

Those of matrices are in ``matrix_figures``, those of diagnostics in ``diagnostic_figures``; style and saving in
``style``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator

from mralign_core.evaluation.metrics import DIFFERENCE_COLUMNS, order_variants
from mralign_core.method.segment_weights import WeightForm, neutral_weight
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.reporting.case_addresses import FIGURE_CASES, case_address
from mralign_core.reporting.matrix_figures import weight_ticks
from mralign_core.reporting.style import (
    FAINT,
    INK,
    MUTED,
    POLARITY_COLOURS,
    WIDTH,
    as_ink,
    macro_colours,
    over,
    styled,
    with_alt_text,
)
from mralign_core.reporting.titles import METRIC_DIRECTIONS, metric_title, variant_title

TINT = 0.07
"""How much of its colour stands behind the labels of a macro-strategy."""
VARIANT_COLOURS = {"sft": "#b8890b", "kto": "#117733", "mr_align": "#0072b2"}

_CURVES: dict[str, dict[str, tuple[str, str, Any]]] = {
    "loss": {"loss": ("loss", INK, "-")},
    "implicit reward, nats": {
        "implicit_reward_positive": ("positive traces", POLARITY_COLOURS["positive"], "-"),
        "implicit_reward_negative": ("negative traces", POLARITY_COLOURS["negative"], "-"),
    },
    "KL baseline z0, nats": {
        "kl_baseline": ("clamped at 0", "#a9b2bd", "-"),
        "kl_raw": ("raw", INK, (0, (4, 2))),
    },
}
"""Rows of the training figure: column of the metrics table → (name, colour, line style)."""


@styled
def yield_funnel(funnel: pd.DataFrame) -> Figure:
    """What each step of the selection kept.

    Args:
        funnel: columns ``step, kept, dropped, reason``; a step with several reasons has a row for each.
    """
    steps = funnel.groupby("step", sort=False).agg(kept=("kept", "last"), dropped=("dropped", "sum"))
    figure = Figure(figsize=(WIDTH, 0.9 + 0.36 * len(steps)))
    axes = figure.subplots()
    places = np.arange(len(steps))
    widest = max(1.0, float((steps["kept"] + steps["dropped"]).max()))
    bars = axes.barh(places, steps["kept"], color=POLARITY_COLOURS["positive"], height=0.62)
    axes.barh(places, steps["dropped"], left=steps["kept"], color=FAINT, height=0.62)
    for place, bar, (step, row) in zip(places, bars, steps.iterrows(), strict=True):
        bar.set_gid(f"tip:{step}: {row['kept']:,.0f} kept, {row['dropped']:,.0f} dropped")
        text = f"{row['kept']:,.0f}" + (f"  (−{row['dropped']:,.0f})" if row["dropped"] else "")
        axes.text(row["kept"] + row["dropped"] + widest / 100, float(place), text, va="center", fontsize=9)
    axes.set_yticks(places, [str(step) for step in steps.index])
    axes.invert_yaxis()
    axes.set_xlim(0, widest * 1.16)
    axes.set_xlabel("kept (blue) and dropped (grey)")
    told = [f"{step} {row['kept']:,.0f} (dropped {row['dropped']:,.0f})" for step, row in steps.iterrows()]
    return with_alt_text(figure, f"Bars of what each step kept: {'; '.join(told)}.")


@styled
def label_mix(annotations: pd.DataFrame, polarities: Mapping[str, str], taxonomy: Taxonomy) -> Figure:
    """Share and number of each label in positive and in negative traces, grouped by macro-strategy (Table 7).

    Args:
        annotations: rows of ``schemas.annotations``.
        polarities: trace_id → polarity.
        taxonomy: the labels, in the order to show.
    """
    shares = label_shares(annotations, polarities, taxonomy)
    figure = Figure(figsize=(WIDTH, 2.0 + 0.36 * len(shares)))
    axes = figure.subplots()
    starts = shares.groupby("macro_strategy", sort=False).cumcount().eq(0).to_numpy()
    # A line of its own above each macro-strategy, for its name.
    places = np.arange(len(shares)) + 1.0 * np.cumsum(starts)
    for offset, (polarity, colour) in zip((-0.19, 0.19), POLARITY_COLOURS.items(), strict=True):
        bars = axes.barh(places + offset, 100 * shares[polarity], height=0.36, color=colour, label=polarity)
        for bar, (_, row) in zip(bars, shares.iterrows(), strict=True):
            number = f"{row[f'num_{polarity}']:,}"
            bar.set_gid(f"tip:{row['label']}: {number}, {100 * row[polarity]:.1f} % of the labels in {polarity} traces")
            bar.set_url(FIGURE_CASES + case_address("traces", label=str(row["label"]), polarity=polarity))
            end = (bar.get_width(), bar.get_y() + bar.get_height() / 2)
            axes.annotate(number, end, (3, 0), textcoords="offset points", va="center", fontsize=7, color=MUTED)
    axes.set_yticks(places, shares["label"].tolist())
    axes.invert_yaxis()
    axes.set_xlabel("share of all labels in the traces of that polarity, %; with their number")
    colours = macro_colours(taxonomy)
    inks = {name: as_ink(colour, over(colour, TINT)) for name, colour in colours.items()}
    right = 118 * max(0.01, float(shares[list(POLARITY_COLOURS)].to_numpy().max()))
    axes.set_xlim(0, right)
    for tick, macro in zip(axes.get_yticklabels(), shares["macro_strategy"], strict=True):
        tick.set_color(inks[macro])
    for macro, members in shares.groupby("macro_strategy", sort=False):
        colour = colours[str(macro)]
        low, high = places[members.index[0]] - 1.2, places[members.index[-1]] + 0.45
        axes.add_patch(Rectangle((0, low), right, high - low, color=colour, alpha=TINT, lw=0, zorder=0))
        totals = " · ".join(f"{100 * members[name].sum():.0f} % of {name}" for name in POLARITY_COLOURS)
        style: Any = {"va": "center", "fontsize": 8.5, "color": inks[str(macro)]}
        axes.text(right * 0.006, low + 0.35, f"{macro!s}: {totals} labels", **style)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.07), ncols=2)
    return with_alt_text(figure, *(_frequent_labels(shares, polarity) for polarity in POLARITY_COLOURS))


def _frequent_labels(shares: pd.DataFrame, polarity: str, number: int = 3) -> str:
    """The labels seen most often in the traces of a polarity."""
    total = int(shares[f"num_{polarity}"].sum())
    most = shares.sort_values(f"num_{polarity}", ascending=False, kind="stable").head(number)
    told = [f"{row['label']} {100 * row[polarity]:.0f} %" for _, row in most.iterrows() if row[polarity]]
    return f"{polarity.capitalize()} traces: {total:,} labels{', most often ' if told else ''}{', '.join(told)}."


def label_shares(annotations: pd.DataFrame, polarities: Mapping[str, str], taxonomy: Taxonomy) -> pd.DataFrame:
    """A row a label by macro-strategy, in taxonomy order: its share of the labels and its number, by polarity.

    Columns: ``macro_strategy, label, positive, negative, num_positive, num_negative``.
    """
    rows = annotations[["trace_id", "labels"]].explode("labels").dropna()
    polarity = rows["trace_id"].map(dict(polarities)).rename("polarity")
    numbers = pd.crosstab(rows["labels"].rename("label"), polarity)
    macros = list(dict.fromkeys(taxonomy.macro_of(label) for label in taxonomy.labels))
    labels = sorted(taxonomy.labels, key=lambda label: macros.index(taxonomy.macro_of(label)))
    numbers = numbers.reindex(index=labels, columns=list(POLARITY_COLOURS)).fillna(0).astype(int)
    table = pd.DataFrame([(taxonomy.macro_of(label), label) for label in labels], columns=["macro_strategy", "label"])
    for name in POLARITY_COLOURS:
        counted = numbers[name].to_numpy()
        table[name], table[f"num_{name}"] = counted / max(counted.sum(), 1), counted
    return table


@styled
def weight_histogram(
    segment_weights: pd.DataFrame,
    polarities: Mapping[str, str],
    clip_min: float,
    clip_max: float,
    form: WeightForm = "ratio",
) -> Figure:
    """Segment weights by polarity, on a log scale where all are above 0, with the share clipped at either end.

    All weights are shown, also those that ``reward.normalize`` put beyond the clip; bounds so wide that no weight comes
    near them don't stretch the axis.

    Args:
        segment_weights: rows of ``schemas.segment_weights``.
        polarities: trace_id → polarity.
        clip_min: smallest ratio.
        clip_max: largest ratio.
        form: what became of the clipped ratios.
    """
    figure = Figure(figsize=(WIDTH, 3.0))
    axes = figure.subplots()
    weights = segment_weights["weight"].astype(float)
    polarity = segment_weights["trace_id"].map(dict(polarities)).fillna("unknown")
    colours = {**POLARITY_COLOURS, "unknown": MUTED}
    shown = {name: weights[polarity == name] for name in colours if (polarity == name).any()}
    low = float(np.min(weights.to_numpy(), initial=max(clip_min, np.exp(-1))))
    high = float(np.max(weights.to_numpy(), initial=min(clip_max, np.e)))
    is_log = low > 0
    bins = list((np.geomspace if is_log else np.linspace)(low, high, 41))
    _, _, bars = axes.hist(
        list(shown.values()),
        bins=bins,
        stacked=True,
        color=[colours[name] for name in shown],
        label=[f"{name} traces ({len(values):,} segments)" for name, values in shown.items()],
        edgecolor="white",
        linewidth=0.4,
    )
    groups: Any = [bars] if len(shown) == 1 else bars
    for name, of_class in zip(shown, groups, strict=True):
        _lead_to_traces(of_class, bins, name)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.15)
    ends = []
    for edge, below, place, side in ((clip_min, True, 0.01, "left"), (clip_max, False, 0.99, "right")):
        share = (segment_weights["clipped"].astype(bool) & ((segment_weights["ratio"] < 1) == below)).mean()
        ends.append(f"{100 * share:.1f} % clipped at {edge:.3g}")
        text = f"{100 * share:.1f} % clipped\nat {edge:.3g}{'' if form == 'ratio' else ' (ratio)'}"
        axes.text(place, 0.97, text, ha=side, va="top", transform=axes.transAxes)
    axes.axvline(neutral_weight(form), color=INK, lw=0.8, ls=(0, (3, 3)))
    if is_log:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.03, high * 1.03)
        ticks = weight_ticks(low, high)
        axes.set_xticks(ticks, [f"{tick:.2f}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"weight of a segment's tokens{' (log scale)' if is_log else ''}")
    axes.set_ylabel("segments")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    medians = [f"{len(values):,} of {name} traces with median {values.median():.2f}" for name, values in shown.items()]
    return with_alt_text(figure, f"Histogram of segment weights: {', '.join(medians)}; {', '.join(ends)}.")


def _lead_to_traces(bars: Any, bins: Sequence[float], polarity: str) -> None:
    """Have the bars of a class lead to the traces that they count; the last bar alone counts its upper bound."""
    for bar, (least, most) in zip(bars, pairwise(map(float, bins)), strict=True):
        is_last = most == bins[-1]
        bounds = {"weight_min": repr(least), "weight_max": repr(most if is_last else math.nextafter(most, least))}
        bar.set_url(FIGURE_CASES + case_address("traces", polarity=polarity, **bounds))


@styled
def training_curves(metrics: Mapping[str, pd.DataFrame]) -> Figure:
    """Loss, implicit rewards of both classes, and the KL baseline (raw and clamped), a column a variant.

    Args:
        metrics: variant → rows of ``schemas.training_metrics``.
    """
    variants = order_variants(list(metrics))
    figure = Figure(figsize=(WIDTH, 6.2))
    grid = figure.subplots(len(_CURVES), len(variants), squeeze=False, sharex="col")
    for row, (name, curves) in enumerate(_CURVES.items()):
        for axes, variant in zip(grid[row], variants, strict=True):
            _curve(axes, metrics[variant].astype(float), curves)
        grid[row, 0].set_ylabel(name)
        drawn = [axes for axes in grid[row] if axes.lines]
        if row and drawn:
            _share_limits(drawn)
            drawn[0].legend(fontsize=8, loc="best")
    for axes, variant in zip(grid[0], variants, strict=True):
        axes.set_title(variant_title(variant))
    for axes in grid[-1]:
        axes.set_xlabel("optimiser step")
    return with_alt_text(figure, "Curves by optimiser step.", *(_course(name, metrics[name]) for name in variants))


def _course(variant: str, table: pd.DataFrame) -> str:
    """From where to where the curves of a variant go."""
    told = []
    for column in (name for curves in _CURVES.values() for name in curves):
        values = table[column].dropna().astype(float)
        if len(values):
            told.append(f"{column.replace('_', ' ')} from {values.iloc[0]:.3g} to {values.iloc[-1]:.3g}")
    return f"{variant_title(variant)}, {len(table)} points: {', '.join(told) or 'nothing measured'}."


def _curve(axes: Axes, table: pd.DataFrame, curves: Mapping[str, tuple[str, str, Any]]) -> None:
    for name, (label, colour, line) in curves.items():
        points = table[["step", name]].dropna()
        if len(points):
            axes.plot(points["step"], points[name], color=colour, ls=line, lw=1.6, label=label)
    if not axes.lines:
        middle: Any = {"transform": axes.transAxes, "ha": "center", "color": MUTED}
        axes.text(0.5, 0.5, "not defined for this objective", **middle)
        axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _share_limits(panels: Sequence[Axes]) -> None:
    """The same y range, with 0 marked, in all panels, so that variants can be compared by eye."""
    limits = np.array([axes.get_ylim() for axes in panels])
    for axes in panels:
        axes.set_ylim(float(limits[:, 0].min()), float(limits[:, 1].max()))
        axes.axhline(0, color="#a9b2bd", lw=0.7, zorder=0)


@styled
def difference_intervals(differences: pd.DataFrame, metrics: Sequence[str] = ("acc", "mis")) -> Figure:
    """Differences in Acc and in Mis with their paired intervals, in points, over all questions.

    Of several sets it shows what the headline speaks of.

    Args:
        differences: what ``metrics.paired_differences`` returns.
        metrics: those to show, a panel each.
    """
    shown = differences[differences["stratum"] == differences["stratum"].iloc[0]]
    shown = shown.astype(dict.fromkeys(DIFFERENCE_COLUMNS, float))
    pairs = list(dict.fromkeys(zip(shown["variant"], shown["baseline"], strict=True)))
    figure = Figure(figsize=(WIDTH, 1.3 + 0.34 * len(pairs)))
    panels = figure.subplots(1, len(metrics), sharex=True, sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        rows = shown[shown["metric"] == metric].set_index(["variant", "baseline"])
        for place, pair in enumerate(pairs):
            _interval(axes, place, pair, rows.loc[pair])
        axes.axvline(0, color=INK, lw=0.8)
        axes.set_title(f"{metric_title(metric, metrics)} ({METRIC_DIRECTIONS[metric]})")
        axes.set_xlabel("difference, points")
        axes.set_ylim(len(pairs) - 0.5, -0.5)
    widest = 105 * np.nanmax(np.abs(shown[list(DIFFERENCE_COLUMNS)].to_numpy(float)), initial=0.005)
    panels[0].set_xlim(-widest, widest)
    names = [f"{variant_title(a)} − {variant_title(b)}" for a, b in pairs]
    panels[0].set_yticks(range(len(pairs)), names)
    told = [_told_intervals(shown, metric, metric_title(metric, metrics)) for metric in metrics]
    return with_alt_text(figure, "Differences in points with their intervals.", *told)


def _told_intervals(shown: pd.DataFrame, metric: str, title: str) -> str:
    rows = shown[shown["metric"] == metric].dropna(subset=["difference"])
    told = [
        f"{variant_title(row.variant)} − {variant_title(row.baseline)} {100 * row.difference:+.1f} "
        f"[{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
        for row in rows.itertuples()
    ]
    return f"{title}: {', '.join(told) or 'not defined'}."


def _interval(axes: Axes, place: int, pair: tuple[str, str], row: pd.Series) -> None:
    difference, low, high = (100 * float(row[name]) for name in DIFFERENCE_COLUMNS)
    if np.isnan(difference):
        axes.text(0, place, " – not defined", va="center", color=MUTED)
        return
    decided = low > 0 or high < 0
    colour = VARIANT_COLOURS.get(pair[0], MUTED)
    axes.plot([low, high], [place, place], color=colour, lw=2.2, solid_capstyle="round")
    face = colour if decided else "white"
    (dot,) = axes.plot([difference], [place], "o", ms=8, mfc=face, mec=colour, mew=1.8)
    dot.set_url(FIGURE_CASES + case_address("answers", variant=pair[0], against=pair[1], flip="any"))
    dot.set_gid(f"tip:{difference:+.1f} points, interval {low:+.1f} to {high:+.1f}")
