"""The figures of a run, drawn once and saved as SVG for the report or as a small PNG for a workflow's page.

Figures are built with matplotlib's object interface, so nothing global is left behind, and their SVG is a
function of the data alone: no date, no random ids. Colours keep one meaning throughout (see the palettes) and
stay apart under the common colour-vision deficiencies.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Literal, NamedTuple, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from mralign_core.evaluation.metrics import ALL_QUESTIONS, DIFFERENCE_COLUMNS, order_variants
from mralign_core.method.rewards import clip_weights
from mralign_core.method.taxonomy import PAPER_TAXONOMY, Taxonomy
from mralign_core.method.transitions import TransitionEstimate, transition_mask

P = ParamSpec("P")
FloatArray = NDArray[np.float64]

INK, MUTED, FAINT = "#1c2430", "#5b6675", "#e3e7ec"
POLARITY_COLOURS = {"positive": "#0072b2", "negative": "#d55e00"}
MACRO_COLOURS = ("#4b3f9e", "#b8890b", "#117733", "#aa4499")
"""Macro-strategies in taxonomy order; further ones repeat the cycle."""
VARIANT_COLOURS = {"sft": "#b8890b", "kto": "#117733", "mr_align": "#0072b2"}
VARIANT_NAMES = {"off": "think off", "on": "think on", "sft": "SFT", "kto": "KTO", "mr_align": "MR-ALIGN"}
METRIC_NAMES = {"acc": "Acc", "mis": "Mis", "em_thought": "EM_t", "em_answer": "EM_a"}

MAX_PNG_BYTES = 140_000
"""Below the 200 kB at which a workflow's page stops showing a data URI, once base64 has added a third."""
MIN_SUPPORT = 5
"""Transitions below which an entry of a matrix says more about the prior than about the traces."""

_FEW = f"hatched: seen fewer than {MIN_SUPPORT} times"
_BLUES = ["#f7fafc", "#9ecae1", "#2171b5", "#08306b"]
_PROBABILITY_MAP = LinearSegmentedColormap.from_list("probability", _BLUES)
_ORANGE_TO_BLUE = ["#b04a00", "#f4c7a1", "#fafafa", "#a6cee3", "#00568a"]
_WEIGHT_MAP = LinearSegmentedColormap.from_list("weight", _ORANGE_TO_BLUE)
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "mr-align",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.edgecolor": "#a9b2bd",
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "figure.constrained_layout.use": True,
}
_CURVES: dict[str, dict[str, tuple[str, str, Any]]] = {
    "loss": {"loss": ("loss", INK, "-")},
    "reward": {
        "reward_positive": ("positive traces", POLARITY_COLOURS["positive"], "-"),
        "reward_negative": ("negative traces", POLARITY_COLOURS["negative"], "-"),
    },
    "KL baseline z0": {
        "kl_baseline": ("clamped at 0", "#a9b2bd", "-"),
        "kl_raw": ("raw", INK, (0, (4, 2))),
    },
}
"""Rows of the training figure: column of the metrics table → (name, colour, line style)."""
_TIP = re.compile(r"""<g id=(?:"tip:([^"]*)"|'tip:([^']*)')>""")
_WIDTH = 10.4
"""Inches; the report shows figures at about 96 pixels an inch."""


class Transitions(NamedTuple):
    """What the estimate stage found, and how the reward stage turns it into weights."""

    plus: TransitionEstimate
    minus: TransitionEstimate
    all: TransitionEstimate
    reference: Literal["all", "opposite"] = "all"
    clip_min: float = float(np.exp(-1))
    clip_max: float = float(np.e)
    taxonomy: Taxonomy = PAPER_TAXONOMY


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an inline ``<svg>``, its ids prefixed by ``name`` so that several fit in one page."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = _TIP.sub(lambda match: f"<g><title>{match[1] or match[2]}</title>", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{name.replace("-", " ")}" ', 1).strip()


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG of at most :data:`MAX_PNG_BYTES`, at the highest resolution that fits."""
    for dpi in (120, 96, 72, 48):
        buffer = io.BytesIO()
        with matplotlib.rc_context(_STYLE):
            figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
        if len(buffer.getvalue()) <= MAX_PNG_BYTES:
            break
    return buffer.getvalue()


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under the project's style, leaving matplotlib's own settings as they were."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            figure = draw(*args, **kwargs)
            # Lay out once: each save would start from the layout of the one before, and end elsewhere.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            return figure

    return styled


@_styled
def yield_funnel(funnel: pd.DataFrame) -> Figure:
    """What each step of the selection kept.

    Args:
        funnel: columns ``step, kept, dropped, reason``; a step with several reasons has a row for each.
    """
    steps = funnel.groupby("step", sort=False).agg(kept=("kept", "last"), dropped=("dropped", "sum"))
    figure = Figure(figsize=(_WIDTH, 0.9 + 0.36 * len(steps)))
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
    return figure


@_styled
def label_mix(annotations: pd.DataFrame, polarities: Mapping[str, str], taxonomy: Taxonomy) -> Figure:
    """Share of each label in positive and in negative traces, grouped by macro-strategy.

    Args:
        annotations: rows of ``schemas.ANNOTATIONS``.
        polarities: trace_id → polarity.
        taxonomy: the labels, in the order to show.
    """
    shares = label_shares(annotations, polarities, taxonomy)
    figure = Figure(figsize=(_WIDTH, 2.0 + 0.36 * len(shares)))
    axes = figure.subplots()
    starts = shares.groupby("macro_strategy", sort=False).cumcount().eq(0).to_numpy()
    # A line of its own above each macro-strategy, for its name.
    places = np.arange(len(shares)) + 1.0 * np.cumsum(starts)
    for offset, (polarity, colour) in zip((-0.19, 0.19), POLARITY_COLOURS.items(), strict=True):
        bars = axes.barh(places + offset, 100 * shares[polarity], height=0.36, color=colour, label=polarity)
        for bar, (_, row) in zip(bars, shares.iterrows(), strict=True):
            bar.set_gid(f"tip:{row['label']}: {100 * row[polarity]:.1f} % of the labels in {polarity} traces")
    axes.set_yticks(places, shares["label"].tolist())
    axes.invert_yaxis()
    axes.set_xlabel("share of all labels in the traces of that polarity, %")
    colours = macro_colours(taxonomy)
    right = 118 * max(0.01, float(shares[list(POLARITY_COLOURS)].to_numpy().max()))
    axes.set_xlim(0, right)
    for tick, macro in zip(axes.get_yticklabels(), shares["macro_strategy"], strict=True):
        tick.set_color(colours[macro])
    for macro, members in shares.groupby("macro_strategy", sort=False):
        colour = colours[str(macro)]
        low, high = places[members.index[0]] - 1.2, places[members.index[-1]] + 0.45
        axes.add_patch(Rectangle((0, low), right, high - low, color=colour, alpha=0.07, lw=0, zorder=0))
        totals = " · ".join(f"{100 * members[name].sum():.0f} % of {name}" for name in POLARITY_COLOURS)
        style: Any = {"va": "center", "fontsize": 8.5, "color": colour}
        axes.text(right * 0.006, low + 0.35, f"{macro!s}: {totals} labels", **style)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.07), ncols=2)
    return figure


def label_shares(annotations: pd.DataFrame, polarities: Mapping[str, str], taxonomy: Taxonomy) -> pd.DataFrame:
    """A row a label in taxonomy order: ``macro_strategy, label``, and its share of the labels by polarity."""
    rows = annotations[["trace_id", "labels"]].explode("labels").dropna()
    polarity = rows["trace_id"].map(dict(polarities)).rename("polarity")
    shares = pd.crosstab(rows["labels"].rename("label"), polarity, normalize="columns")
    order = [(taxonomy.macro_of(label), label) for label in taxonomy.labels]
    table = pd.DataFrame(order, columns=["macro_strategy", "label"])
    shares = shares.reindex(index=table["label"], columns=list(POLARITY_COLOURS)).fillna(0.0)
    return table.assign(**{name: shares[name].to_numpy(float) for name in POLARITY_COLOURS})


def macro_colours(taxonomy: Taxonomy) -> dict[str, str]:
    """Macro-strategy → its colour, by its place in the taxonomy."""
    names = dict.fromkeys(taxonomy.macro_of(label) for label in taxonomy.labels)
    return {name: MACRO_COLOURS[place % len(MACRO_COLOURS)] for place, name in enumerate(names)}


@_styled
def transition_heatmaps(transitions: Transitions) -> Figure:
    """P⁺ beside P⁻, rows from, columns to."""
    names, norm = transitions.taxonomy.state_names, Normalize(0, 1)
    figure, panels = _matrix_figure(names)
    titles = ("P⁺: moves where thinking made the answers right", "P⁻: moves where thinking made them wrong")
    for axes, title, estimate in zip(panels, titles, (transitions.plus, transitions.minus), strict=True):
        texts = np.where(estimate.p >= 0.045, np.char.mod("%.0f", 100 * estimate.p), "")
        tips = np.char.add(np.char.mod("P = %.3f, ", estimate.p), np.char.mod("%.1f seen", estimate.counts))
        shown = np.where(_possible(len(names)), estimate.p, np.nan)
        seldom = np.broadcast_to(estimate.counts.sum(axis=1, keepdims=True) < MIN_SUPPORT, shown.shape)
        _draw_matrix(axes, shown, ~seldom, texts, tips, names, _PROBABILITY_MAP, norm)
        axes.set_title(title)
    _colour_bar(figure, panels, _PROBABILITY_MAP, norm, f"probability of the next state, in cells %; {_FEW}")
    return figure


@_styled
def weight_heatmaps(transitions: Transitions) -> Figure:
    """The clipped weights of single-label transitions, on a log scale around 1; little support is veiled."""
    names = transitions.taxonomy.state_names
    figure, panels = _matrix_figure(names)
    norm = Normalize(np.log(transitions.clip_min), np.log(transitions.clip_max))
    titles = {"plus": "w⁺: weights in positive traces", "minus": "w⁻: weights in negative traces"}
    for axes, (side, title) in zip(panels, titles.items(), strict=True):
        weights, supported = transition_weights(transitions, side)
        telling = supported & (np.abs(np.log(weights)) >= 0.1)
        texts = np.where(telling, np.char.mod("%.1f", weights), "")
        tips = np.char.add(np.char.mod("w = %.2f", weights), np.where(supported, "", ", few seen"))
        _draw_matrix(axes, np.log(weights), supported, texts, tips, names, _WEIGHT_MAP, norm)
        axes.set_title(title)
    bar = _colour_bar(figure, panels, _WEIGHT_MAP, norm, f"weight, log scale; {_FEW}")
    ticks = _weight_ticks(transitions.clip_min, transitions.clip_max)
    bar.set_ticks(np.log(ticks), labels=[f"{tick:.2f}" for tick in ticks])
    return figure


def transition_weights(transitions: Transitions, side: str) -> tuple[FloatArray, NDArray[np.bool_]]:
    """The weight of every single-label transition, and whether it rests on enough traces.

    Implements Eq. 10 of arXiv 2510.24794 for steps of one label. A weight is supported when the transition
    was seen at least :data:`MIN_SUPPORT` times in all traces, and its first state as often on that side.

    Args:
        transitions: the estimates.
        side: ``"plus"`` or ``"minus"``.

    Returns:
        Weights of shape (K, K), NaN where the transition can't happen, and a mask of shape (K, K).
    """
    numerator, opposite = transitions.plus, transitions.minus
    if side == "minus":
        numerator, opposite = opposite, numerator
    denominator = transitions.all.p if transitions.reference == "all" else opposite.p
    possible = _possible(len(denominator)) & (denominator > 0)
    ratios = np.divide(numerator.p, denominator, out=np.full(denominator.shape, np.nan), where=possible)
    left = numerator.counts.sum(axis=1, keepdims=True)
    supported = possible & (transitions.all.counts >= MIN_SUPPORT) & (left >= MIN_SUPPORT)
    return clip_weights(ratios, transitions.clip_min, transitions.clip_max), supported


def weight_colour(weight: float) -> str:
    """A weight's colour on the scale of the weight maps, as ``#rrggbb``, at the paper's clip bounds."""
    return to_hex(_WEIGHT_MAP(Normalize(-1, 1)(np.log(weight))))


def _possible(num_states: int) -> NDArray[np.bool_]:
    """Transitions worth showing, shape (K, K): those allowed, less <stop> to itself."""
    possible = transition_mask(num_states) > 0
    possible[-1] = False
    return possible


def _weight_ticks(low: float, high: float) -> list[float]:
    return [low, *(tick for tick in (0.5, 0.7, 1.0, 1.4, 2.0) if low < tick < high), high]


def _matrix_figure(state_names: Sequence[str]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH, 1.7 + 0.235 * len(state_names)))
    return figure, list(figure.subplots(1, 2, sharey=True))


def _draw_matrix(
    axes: Axes,
    values: FloatArray,
    supported: NDArray[np.bool_],
    texts: NDArray[np.str_],
    tips: NDArray[np.str_],
    names: Sequence[str],
    colour_map: Colormap,
    norm: Normalize,
) -> None:
    """One patch a cell, so that each can carry a tool-tip; NaN stays blank, and few seen is hatched."""
    size = len(names)
    for row, column in np.argwhere(np.isfinite(values)):
        colour = colour_map(norm(values[row, column]))
        style: Any = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.6}
        ink = INK if np.dot(colour[:3], (0.299, 0.587, 0.114)) > 0.55 else "white"
        if not supported[row, column]:
            style, ink = (
                {"facecolor": "#fcfdfd", "edgecolor": "#dbe0e6", "hatch": "////", "linewidth": 0},
                MUTED,
            )
        cell = Rectangle((column, row), 1, 1, **style)
        cell.set_gid(f"tip:{names[row]} → {names[column]}: {tips[row, column]}")
        cell.set_in_layout(False)
        axes.add_patch(cell)
        if texts[row, column]:
            place = (column + 0.5, row + 0.52)
            note = axes.text(*place, texts[row, column], ha="center", va="center", fontsize=6.8, color=ink)
            note.set_in_layout(False)
    axes.set_xlim(0, size)
    axes.set_ylim(size, 0)
    axes.set_facecolor("#f3f4f6")
    axes.set_xticks(np.arange(size) + 0.5, names, rotation=90, fontsize=8)
    axes.set_yticks(np.arange(size) + 0.5, names, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("to")
    axes.set_ylabel("from" if axes.get_subplotspec().is_first_col() else "")  # type: ignore[union-attr]


def _colour_bar(figure: Figure, panels: Sequence[Axes], colour_map: Colormap, norm: Normalize, label: str) -> Any:
    scale = ScalarMappable(norm=norm, cmap=colour_map)
    bar = figure.colorbar(scale, ax=list(panels), location="bottom", fraction=0.035, aspect=50, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return bar


@_styled
def weight_histogram(rewards: pd.DataFrame, polarities: Mapping[str, str], clip_min: float, clip_max: float) -> Figure:
    """Segment weights by polarity on a log scale, with the share clipped at either end.

    Args:
        rewards: rows of ``schemas.REWARDS``.
        polarities: trace_id → polarity.
        clip_min: smallest weight.
        clip_max: largest weight.
    """
    figure = Figure(figsize=(_WIDTH, 3.0))
    axes = figure.subplots()
    weights = rewards["weight"].astype(float)
    polarity = rewards["trace_id"].map(dict(polarities)).fillna("unknown")
    colours = {**POLARITY_COLOURS, "unknown": MUTED}
    shown = {name: weights[polarity == name] for name in colours if (polarity == name).any()}
    axes.hist(
        list(shown.values()),
        bins=list(np.geomspace(clip_min, clip_max, 41)),
        stacked=True,
        color=[colours[name] for name in shown],
        label=[f"{name} traces ({len(values):,} segments)" for name, values in shown.items()],
        edgecolor="white",
        linewidth=0.4,
    )
    axes.set_ylim(0, axes.get_ylim()[1] * 1.15)
    for edge, below, side in ((clip_min, True, "left"), (clip_max, False, "right")):
        share = (rewards["clipped"].astype(bool) & ((weights < 1) == below)).mean()
        place = axes.get_xaxis_transform()
        text = f"{100 * share:.1f} % clipped\nat {edge:.2f}"
        axes.text(edge, 0.97, text, ha=side, va="top", transform=place)
    axes.axvline(1, color=INK, lw=0.8, ls=(0, (3, 3)))
    axes.set_xscale("log")
    axes.set_xlim(clip_min / 1.03, clip_max * 1.03)
    ticks = _weight_ticks(clip_min, clip_max)
    axes.set_xticks(ticks, [f"{tick:.2f}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("weight of a segment's tokens (log scale)")
    axes.set_ylabel("segments")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


@_styled
def log_likelihood_curves(transitions: Transitions) -> Figure:
    """Observed log-likelihood (Eq. 8) by EM iteration, a panel a matrix: they rest on different traces."""
    estimates = {"P⁺": transitions.plus, "P⁻": transitions.minus, "P": transitions.all}
    figure = Figure(figsize=(_WIDTH, 2.3))
    for axes, (name, estimate) in zip(figure.subplots(1, 3), estimates.items(), strict=True):
        values = estimate.log_likelihood
        axes.plot(range(len(values)), values, color=INK, marker="o", ms=4, lw=1.4)
        axes.set_title(name)
        axes.set_xlabel("EM iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.ticklabel_format(axis="y", useOffset=False, style="plain")
        axes.margins(x=0.08, y=0.15)
    figure.axes[0].set_ylabel("log-likelihood")
    return figure


@_styled
def training_curves(metrics: Mapping[str, pd.DataFrame]) -> Figure:
    """Loss, rewards of both classes, and the KL baseline (raw and clamped), a column a variant.

    Args:
        metrics: variant → rows of ``schemas.TRAINING_METRICS``.
    """
    variants = order_variants(list(metrics))
    figure = Figure(figsize=(_WIDTH, 6.2))
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
        axes.set_title(VARIANT_NAMES.get(variant, variant))
    for axes in grid[-1]:
        axes.set_xlabel("optimiser step")
    return figure


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


@_styled
def difference_intervals(differences: pd.DataFrame) -> Figure:
    """Differences in Acc and in Mis with their paired intervals, in points, over all questions.

    Args:
        differences: what ``metrics.paired_differences`` returns.
    """
    shown = differences[differences["stratum"] == ALL_QUESTIONS].astype(dict.fromkeys(DIFFERENCE_COLUMNS, float))
    pairs = list(dict.fromkeys(zip(shown["variant"], shown["baseline"], strict=True)))
    figure = Figure(figsize=(_WIDTH, 1.3 + 0.34 * len(pairs)))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, metric, better in zip(panels, ("acc", "mis"), ("higher is better", "lower is better"), strict=True):
        rows = shown[shown["metric"] == metric].set_index(["variant", "baseline"])
        for place, pair in enumerate(pairs):
            _interval(axes, place, pair, rows.loc[pair])
        axes.axvline(0, color=INK, lw=0.8)
        axes.set_title(f"{METRIC_NAMES[metric]} ({better})")
        axes.set_xlabel("difference, points")
        axes.set_ylim(len(pairs) - 0.5, -0.5)
    widest = 105 * np.nanmax(np.abs(shown[list(DIFFERENCE_COLUMNS)].to_numpy(float)), initial=0.005)
    panels[0].set_xlim(-widest, widest)
    names = [f"{VARIANT_NAMES.get(a, a)} − {VARIANT_NAMES.get(b, b)}" for a, b in pairs]
    panels[0].set_yticks(range(len(pairs)), names)
    return figure


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
    dot.set_gid(f"tip:{difference:+.1f} points, interval {low:+.1f} to {high:+.1f}")
