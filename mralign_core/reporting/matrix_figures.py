"""Figures of transition matrices and of the weights made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, TwoSlopeNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from mralign_core.config import RewardConfig
from mralign_core.estimation.bootstrap import MIN_QUESTIONS_FOR_INTERVAL, MIN_SUPPORT
from mralign_core.estimation.corpus import CLASSES
from mralign_core.estimation.matrices import TransitionMatrices
from mralign_core.estimation.weights import fraction_of
from mralign_core.method import FloatArray
from mralign_core.method.segment_weights import WeightForm, probability_ratios, segment_weights
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.method.transitions import TransitionEstimate, transition_mask
from mralign_core.reporting.case_addresses import FIGURE_CASES, move_address
from mralign_core.reporting.style import INK, MUTED, POLARITY_COLOURS, WIDTH, ink_on, styled, with_alt_text

EXTREME_SHARE = 0.15
"""Share of the supported weights that is marked at either end, as in Fig. 7 of the paper."""
NUM_INTERVALS = 12
"""Most frequent moves whose weights are shown with intervals, a class."""
WEIGHT_COLOURS = ("#b04a00", "#f4c7a1", "#fafafa", "#a6cee3", "#00568a")
"""From the smallest weight over that of a move that tells nothing to the largest, evenly spaced."""

_FEW = f"hatched: seen fewer than {MIN_SUPPORT} times"
_BLUES = ["#f7fafc", "#9ecae1", "#2171b5", "#08306b"]
_PROBABILITY_MAP = LinearSegmentedColormap.from_list("probability", _BLUES)
_WEIGHT_MAP = LinearSegmentedColormap.from_list("weight", list(WEIGHT_COLOURS))
_EXTREME_COLOURS = ("#00335a", "#7a2d00")
_FRAMED = f"framed: top and bottom {100 * EXTREME_SHARE:.0f} % of the others"


class Transitions(NamedTuple):
    """What the estimate stage found, and how the reward stage turns it into weights."""

    plus: TransitionEstimate
    minus: TransitionEstimate
    all: TransitionEstimate
    taxonomy: Taxonomy
    confidence: float
    """Coverage of the intervals made of ``draws``."""
    reference: Literal["all", "opposite"] = "all"
    clip_min: float = float(np.exp(-1))
    clip_max: float = float(np.e)
    draws: Mapping[str, NDArray[np.float32]] = MappingProxyType({})
    """Matrices of bootstrap resamples by class, (R, K, K) each; empty without bootstrap."""
    support_shrinkage: float = 0.0
    """Soft counts at which a ratio is drawn halfway (of its logarithm) to 1; 0 never."""
    condition_on: Literal["none", "stratum"] = "none"
    """Matrices behind the weights of the run. These here are always those of all strata."""
    form: WeightForm = "ratio"
    """What the reward stage makes of the clipped ratios. What is drawn here are the clipped ratios, always."""
    leave_own_question_out: bool = False
    """Whether the weights of the run leave the trace's own question out. These matrices never do."""
    channels: FloatArray | None = None
    """(3, S, S + 1) with hidden labels; see ``TransitionMatrices``."""

    @classmethod
    def of(
        cls, matrices: TransitionMatrices, reward: RewardConfig, confidence: float, taxonomy: Taxonomy
    ) -> Transitions:
        """What is shown of matrices that are made into weights in this way."""
        plus, minus, every = (matrices.estimates[name] for name in CLASSES)
        return cls(
            plus,
            minus,
            every,
            taxonomy,
            confidence,
            reward.reference,
            reward.clip_min,
            reward.clip_max,
            matrices.draws,
            reward.support_shrinkage,
            reward.condition_on,
            reward.form,
            reward.leave_own_question_out,
            matrices.channels,
        )

    def of_side(self, side: str) -> tuple[TransitionEstimate, TransitionEstimate]:
        """The estimates above and below the fraction of Eq. 10."""
        numerator, denominator = fraction_of(side, self.reference)
        return getattr(self, numerator), getattr(self, denominator)

    def weigh(self, ratios: FloatArray, support: FloatArray) -> FloatArray:
        """Weights in the paper's form, clipped ratios, that rest on so many soft counts."""
        return segment_weights(
            ratios, support, shrinkage=self.support_shrinkage, low=self.clip_min, high=self.clip_max
        ).weights


@styled
def transition_heatmaps(transitions: Transitions) -> Figure:
    """P⁺ beside P⁻, rows from, columns to."""
    names, norm = transitions.taxonomy.state_names, Normalize(0, 1)
    figure, panels = _matrix_figure(names)
    titles = ("P⁺: moves where thinking made the answers right", "P⁻: moves where thinking made them wrong")
    sides = (transitions.plus, transitions.minus)
    for axes, title, estimate, polarity in zip(panels, titles, sides, POLARITY_COLOURS, strict=True):
        texts = np.where(estimate.p >= 0.045, np.char.mod("%.0f", 100 * estimate.p), "")
        tips = np.char.add(np.char.mod("P = %.3f, ", estimate.p), np.char.mod("%.1f seen", estimate.counts))
        shown = np.where(_possible(len(names)), estimate.p, np.nan)
        seldom = np.broadcast_to(estimate.counts.sum(axis=1, keepdims=True) < MIN_SUPPORT, shown.shape)
        _draw_matrix(axes, shown, ~seldom, texts, tips, names, _PROBABILITY_MAP, norm, polarity)
        axes.set_title(title)
    _colour_bar(figure, panels, _PROBABILITY_MAP, norm, f"probability of the next state, in cells %; {_FEW}")
    return with_alt_text(
        figure,
        f"Two heat maps of {len(names)} by {len(names)} states, from each to the next.",
        f"Most frequent in P⁺: {_most_frequent(transitions.plus, names)}.",
        f"Most frequent in P⁻: {_most_frequent(transitions.minus, names)}.",
    )


@styled
def weight_heatmaps(transitions: Transitions) -> Figure:
    """The clipped weights of single-label transitions, on a log scale around 1, as Fig. 7 of the paper shows them.

    The top and bottom 15 % of the supported ones are framed; little support is veiled.
    """
    names = transitions.taxonomy.state_names
    figure, panels = _matrix_figure(names)
    norm = _weight_norm(transitions)
    titles = _weight_titles(transitions)
    for axes, (side, title), polarity in zip(panels, titles.items(), POLARITY_COLOURS, strict=True):
        weights, supported = transition_weights(transitions, side)
        telling = supported & (np.abs(np.log(weights)) >= 0.1)
        texts = np.where(telling, np.char.mod("%.1f", weights), "")
        tips = np.char.add(np.char.mod("w = %.2f", weights), np.where(supported, "", ", few seen"))
        _draw_matrix(axes, np.log(weights), supported, texts, tips, names, _WEIGHT_MAP, norm, polarity)
        for cells, colour in zip(extreme_weights(weights, supported), _EXTREME_COLOURS, strict=True):
            _frame_cells(axes, cells, colour)
        axes.set_title(title)
    what = "weight" if transitions.form == "ratio" else "clipped ratio"
    bar = _colour_bar(figure, panels, _WEIGHT_MAP, norm, f"{what}, log scale either side of 1; {_FEW}; {_FRAMED}")
    ticks = weight_ticks(transitions.clip_min, transitions.clip_max)
    bar.set_ticks(np.log(ticks), labels=[f"{tick:.2f}" for tick in ticks])
    return with_alt_text(
        figure,
        f"Two heat maps of the {what} of a move from each of {len(names)} states to the next.",
        *(_range_of_weights(transitions, side, title) for side, title in _weight_titles(transitions).items()),
    )


def transition_weights(transitions: Transitions, side: str) -> tuple[FloatArray, NDArray[np.bool_]]:
    """The weight of every single-label transition, and whether it rests on enough traces.

    Implements Eq. 10 of arXiv 2510.24794 for steps of one label, with the run's shrinkage and the matrices of all
    strata. A weight is supported when the transition was seen at least :data:`MIN_SUPPORT` times in all traces, and its
    first state as often on that side.

    Args:
        transitions: the estimates.
        side: ``"plus"`` or ``"minus"``.

    Returns:
        Weights of shape (K, K), NaN where the transition can't happen, and a mask of shape (K, K).
    """
    numerator, denominator = transitions.of_side(side)
    possible = _possible(len(denominator.p)) & (denominator.p > 0)
    ratios = np.where(possible, probability_ratios(numerator.p, denominator.p), np.nan)
    left = numerator.counts.sum(axis=1, keepdims=True)
    supported = possible & (transitions.all.counts >= MIN_SUPPORT) & (left >= MIN_SUPPORT)
    return transitions.weigh(ratios, numerator.counts), supported


def extreme_weights(
    weights: FloatArray, supported: NDArray[np.bool_], share: float = EXTREME_SHARE
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The largest and the smallest of the supported weights, as masks of shape (K, K).

    Of equal weights, those in later cells (row by row) count as the larger ones.

    >>> top, bottom = extreme_weights(np.array([[0.5, 1.0], [2.0, 9.0]]), np.array([[True, True], [True, False]]), 0.4)
    >>> top.tolist(), bottom.tolist()
    ([[False, False], [True, False]], [[True, False], [False, False]])
    """
    cells = np.flatnonzero(supported)
    order = cells[np.argsort(weights.flat[cells], kind="stable")]
    number = int(share * len(cells))
    masks = []
    for chosen in (order[len(order) - number :], order[:number]):
        mask = np.zeros(weights.shape, dtype=np.bool_)
        mask.flat[chosen] = True
        masks.append(mask)
    return masks[0], masks[1]


def weight_colour(tone: float) -> str:
    """The colour of a weight on the scale of the weight maps, as ``#rrggbb``, at the paper's clip bounds.

    Args:
        tone: how far the weight is from that of a move that tells nothing, as a logarithm.
    """
    return to_hex(_WEIGHT_MAP(Normalize(-1, 1)(min(max(tone, -1.0), 1.0))))


def _possible(num_states: int) -> NDArray[np.bool_]:
    """Transitions worth showing, shape (K, K): those allowed, less <stop> to itself."""
    possible = transition_mask(num_states) > 0
    possible[-1] = False
    return possible


def weight_ticks(low: float, high: float) -> list[float]:
    """Weights to mark on a log scale between the clip bounds."""
    return [low, *(tick for tick in (0.5, 0.7, 1.0, 1.4, 2.0) if low < tick < high), high]


def _weight_norm(transitions: Transitions) -> Normalize:
    """Log-weights to colours: 1 is in the middle, however far the clip bounds are from it."""
    # A bound of exactly 1 leaves no room on its side, which the scale needs a little of.
    low, high = min(np.log(transitions.clip_min), -1e-6), max(np.log(transitions.clip_max), 1e-6)
    return TwoSlopeNorm(0, vmin=low, vmax=high)


def _weight_titles(transitions: Transitions) -> dict[str, str]:
    """Title by side; says so where the run's own weights are not of these matrices, or not the clipped ratios."""
    if transitions.condition_on == "stratum":
        return {"plus": "w⁺: positive, pooled over strata", "minus": "w⁻: negative, pooled over strata"}
    what = "weights" if transitions.form == "ratio" else "clipped ratios"
    if transitions.leave_own_question_out:
        return {"plus": f"w⁺: {what} with the own question", "minus": f"w⁻: {what} with the own question"}
    return {"plus": f"w⁺: {what} in positive traces", "minus": f"w⁻: {what} in negative traces"}


def _frame_cells(axes: Axes, cells: NDArray[np.bool_], colour: str) -> None:
    for row, column in np.argwhere(cells):
        frame = Rectangle((column + 0.07, row + 0.07), 0.86, 0.86, fill=False, edgecolor=colour, linewidth=1.3)
        frame.set_in_layout(False)
        axes.add_artist(frame)


def _matrix_figure(state_names: Sequence[str]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, 1.7 + 0.235 * len(state_names)))
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
    polarity: str,
) -> None:
    """One patch a cell, so that each can carry a tool-tip; NaN stays blank, and few seen is hatched."""
    size = len(names)
    for row, column in np.argwhere(np.isfinite(values)):
        colour = colour_map(norm(values[row, column]))
        style: Any = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.6}
        ink = ink_on(colour[:3])
        if not supported[row, column]:
            style, ink = (
                {"facecolor": "#fcfdfd", "edgecolor": "#dbe0e6", "hatch": "////", "linewidth": 0},
                MUTED,
            )
        cell = Rectangle((column, row), 1, 1, **style)
        cell.set_gid(f"tip:{names[row]} → {names[column]}: {tips[row, column]}")
        cell.set_url(FIGURE_CASES + move_address(names[row], names[column], polarity))
        cell.set_in_layout(False)
        axes.add_artist(cell)  # `add_patch` would work out limits of the axes, which are set below
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


@styled
def weight_intervals(transitions: Transitions) -> Figure:
    """Weights of the most frequent moves of each class with their bootstrap intervals, on a log scale.

    Moves are from one label to one label. The count is of soft counts in traces of the class. A dot is filled where
    the interval lies on one side of 1; a move without support on either side of the fraction has no interval.

    Raises:
        ValueError: there was no bootstrap.
    """
    if not transitions.draws:
        raise ValueError(
            "weights have no intervals: estimate.num_resamples was 0, or a polarity has fewer than "
            f"{MIN_QUESTIONS_FOR_INTERVAL} questions with a labelled trace"
        )
    figure = Figure(figsize=(WIDTH, 1.1 + 0.27 * NUM_INTERVALS))
    panels = figure.subplots(1, 2, sharex=True)
    colours = POLARITY_COLOURS.values()
    for axes, (side, title), colour in zip(panels, _weight_titles(transitions).items(), colours, strict=True):
        _draw_intervals(axes, transitions, side, colour)
        axes.axvline(1, color=INK, lw=0.8, ls=(0, (3, 3)))
        axes.set_title(title)
    _log_weight_axis(panels[0], transitions)
    return with_alt_text(
        figure, *(_decided_moves(transitions, side, title) for side, title in _weight_titles(transitions).items())
    )


def _decided_moves(transitions: Transitions, side: str, title: str) -> str:
    """Of how many moves the interval excludes 1, and which they are."""
    names, moves = transitions.taxonomy.state_names, frequent_moves(transitions, side)
    weights, _ = transition_weights(transitions, side)
    low, high = weight_bounds(transitions, side)
    decided = [move for move in moves if low[move] > 1 or high[move] < 1]
    told = [f"{names[a]} → {names[b]} {weights[a, b]:.2f} [{low[a, b]:.2f}, {high[a, b]:.2f}]" for a, b in decided]
    text = f"{title}: of the {len(moves)} most frequent moves the interval of {len(decided)} excludes 1"
    return f"{text}: {'; '.join(told)}." if told else f"{text}."


def _range_of_weights(transitions: Transitions, side: str, title: str) -> str:
    """The largest and the smallest of the supported weights."""
    names = transitions.taxonomy.state_names
    weights, supported = transition_weights(transitions, side)
    if not supported.any():
        return f"{title}: no move was seen {MIN_SUPPORT} times."
    cells = [np.unravel_index(place, weights.shape) for place in np.flatnonzero(supported)]
    least, most = (pick(cells, key=lambda cell: weights[cell]) for pick in (min, max))
    told = [f"{names[a]} → {names[b]} {weights[a, b]:.2f}" for a, b in (most, least)]
    return f"{title}: of {len(cells)} moves with support the largest is {told[0]}, the smallest {told[1]}."


def _most_frequent(estimate: TransitionEstimate, names: Sequence[str], number: int = 3) -> str:
    """The moves made most often, with their probabilities."""
    order = np.argsort(-estimate.counts, axis=None, kind="stable")[:number]
    cells = zip(*np.unravel_index(order, estimate.counts.shape), strict=True)
    return ", ".join(f"{names[a]} → {names[b]} {100 * estimate.p[a, b]:.0f} %" for a, b in cells)


def _draw_intervals(axes: Axes, transitions: Transitions, side: str, colour: str) -> None:
    names, moves = transitions.taxonomy.state_names, frequent_moves(transitions, side)
    weights, _ = transition_weights(transitions, side)
    low, high = weight_bounds(transitions, side)
    for place, (a, b) in enumerate(moves):
        axes.plot([low[a, b], high[a, b]], [place, place], color=colour, lw=2.2, solid_capstyle="round")
        decided = low[a, b] > 1 or high[a, b] < 1
        face = colour if decided else "white"
        (dot,) = axes.plot([weights[a, b]], [place], "o", ms=6.5, mfc=face, mec=colour, mew=1.5)
        known = np.isfinite(low[a, b])
        interval = f"interval {low[a, b]:.2f} to {high[a, b]:.2f}" if known else "no interval: too few seen"
        dot.set_gid(f"tip:w = {weights[a, b]:.2f}, {interval}")
        dot.set_url(FIGURE_CASES + move_address(names[a], names[b], "positive" if side == "plus" else "negative"))
    counts = transitions.of_side(side)[0].counts
    ticks = [f"{names[a]} → {names[b]}  ({counts[a, b]:,.0f})" for a, b in moves]
    axes.set_yticks(range(len(moves)), ticks, fontsize=8)
    axes.set_ylim(len(moves) - 0.4, -0.6)
    axes.set_xlabel(f"weight (log scale), {100 * transitions.confidence:.0f} % interval")


def frequent_moves(transitions: Transitions, side: str, number: int = NUM_INTERVALS) -> list[tuple[int, int]]:
    """The moves that lead into a label most often in the traces of one class, as (state left, state entered)."""
    counts = (transitions.plus if side == "plus" else transitions.minus).counts.copy()
    # No segment is weighed by the move into <stop>.
    counts[:, -1] = 0
    order = np.argsort(-counts, axis=None, kind="stable")[:number]
    cells = zip(*np.unravel_index(order, counts.shape), strict=True)
    return [(int(a), int(b)) for a, b in cells if counts[a, b] >= MIN_SUPPORT]


def weight_bounds(transitions: Transitions, side: str) -> tuple[FloatArray, FloatArray]:
    """Percentile bootstrap intervals of the clipped weights of single-label transitions, (K, K) low and high.

    NaN where numerator or denominator have fewer than :data:`MIN_SUPPORT` soft counts, as in the reward stage.

    Args:
        transitions: the estimates with their draws.
        side: ``"plus"`` or ``"minus"``.
    """
    names = fraction_of(side, transitions.reference)
    ratios = probability_ratios(*(transitions.draws[name].astype(np.float64) for name in names))
    tail = (1 - transitions.confidence) / 2
    # As in the reward stage, the support is that of the estimate in every draw.
    own, reference = (estimate.counts for estimate in transitions.of_side(side))
    low, high = np.quantile(transitions.weigh(ratios, own), [tail, 1 - tail], axis=0)
    enough = np.minimum(own, reference) >= MIN_SUPPORT
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def _log_weight_axis(axes: Axes, transitions: Transitions) -> None:
    axes.set_xscale("log")
    axes.set_xlim(transitions.clip_min / 1.05, transitions.clip_max * 1.05)
    ticks = weight_ticks(transitions.clip_min, transitions.clip_max)
    axes.set_xticks(ticks, [f"{tick:.1f}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
