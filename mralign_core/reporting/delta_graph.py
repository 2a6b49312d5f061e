"""The Δ graph: where two matrices differ most, as moves on a circle of states (Fig. 4 of arXiv 2510.24794)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from numpy.typing import NDArray

from mralign_core.estimation.bootstrap import MIN_SUPPORT
from mralign_core.method import FloatArray
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.method.transitions import TransitionEstimate
from mralign_core.reporting.case_addresses import FIGURE_CASES, move_address
from mralign_core.reporting.style import INK, MUTED, WIDTH, as_ink, macro_colours, over, styled, with_alt_text

NUM_EDGES = 10
"""Strongest edges shown each way, as in the paper's figure."""
SIDE_COLOURS = ("#0072b2", "#d55e00")
_LEAST = 0.005
"""Smallest difference worth an arrow: half a point."""
_GAP = 0.55
"""Room between two macro-strategies on the circle, in steps between two states."""
_NUMBER_AT = (0.36, 0.54)
"""Where along an edge its number stands, in turn, so that fewer meet in the middle."""
_WIDEST = 6.0
"""Points; width of the strongest edge."""


class Edge(NamedTuple):
    """A move and by how much its probability differs."""

    source: int
    target: int
    difference: float


def strongest_edges(
    first: TransitionEstimate,
    second: TransitionEstimate,
    number: int = NUM_EDGES,
    is_shown: NDArray[np.bool_] | None = None,
) -> tuple[list[Edge], list[Edge]]:
    """The moves whose probability is most above and most below, in the first matrix against the second.

    A move counts only with support: its state was left at least :data:`MIN_SUPPORT` times in both, and the move was
    made as often where it is the likelier one. Of these, where ``is_shown`` says so, only some, (K, K).

    >>> from mralign_core.method.set_pairs import SetPairCounts
    >>> from mralign_core.method.transitions import fit_frequency
    >>> states, nine = np.eye(4, dtype=bool), np.full(3, 9)  # nine traces 1, 2, and nine traces 1, 1
    >>> walks = [SetPairCounts(states[[0, 1, b]], states[[1, b, 3]], nine, 9, 0, 0) for b in (2, 1)]
    >>> one, other = (fit_frequency(pairs, 4) for pairs in walks)
    >>> above, below = strongest_edges(one, other)
    >>> [(edge.source, edge.target) for edge in above], [(edge.source, edge.target) for edge in below]
    ([(1, 2)], [(1, 1), (1, 3)])
    """
    difference = first.p - second.p
    left = np.minimum(first.counts.sum(axis=1), second.counts.sum(axis=1))[:, None] >= MIN_SUPPORT
    if is_shown is not None:
        left = left & is_shown
    above = np.where(left & (first.counts >= MIN_SUPPORT), difference, 0.0)
    below = np.where(left & (second.counts >= MIN_SUPPORT), -difference, 0.0)
    return tuple(_largest(values, sign, number) for values, sign in ((above, 1), (below, -1)))  # type: ignore[return-value]


@styled
def delta_graph(
    first: TransitionEstimate,
    second: TransitionEstimate,
    taxonomy: Taxonomy,
    names: tuple[str, str] = ("P⁺", "P⁻"),
    is_shown: NDArray[np.bool_] | None = None,
    *,
    has_cases: bool = True,
) -> Figure:
    """Δ = first − second: the strongest edges of either sign, on a circle of states grouped by macro-strategy.

    Args:
        first: one estimate.
        second: the other.
        taxonomy: names and groups of the states.
        names: what to call the two.
        is_shown: (K, K) the moves that may be shown, such as those that differ beyond chance; all when None.
        has_cases: whether edges lead to the training traces that make the move.
    """
    figure = Figure(figsize=(WIDTH, 4.5))
    both = strongest_edges(first, second, is_shown=is_shown)
    widest = max((abs(edge.difference) for edges in both for edge in edges), default=1.0)
    titles = (f"likelier in {names[0]} than in {names[1]}", f"likelier in {names[1]} than in {names[0]}")
    for axes, edges, title, colour in zip(figure.subplots(1, 2), both, titles, SIDE_COLOURS, strict=True):
        _draw_circle(axes, taxonomy)
        for rank, edge in enumerate(edges):
            _draw_edge(axes, edge, taxonomy, colour, _WIDEST * abs(edge.difference) / widest, rank, has_cases)
        axes.set_title(title, loc="center")
        if not edges:
            none = "no move with support differs" if is_shown is None else "no move differs beyond chance"
            axes.text(0, 0, none, ha="center", va="center", color=MUTED)
    note = f"Numbers are points of probability; moves seen fewer than {MIN_SUPPORT} times are left out."
    figure.supxlabel(note, fontsize=8.5, color=MUTED)
    return with_alt_text(
        figure,
        "Two circles of states with arrows.",
        *(_told(edges, title, taxonomy) for edges, title in zip(both, titles, strict=True)),
    )


def _told(edges: list[Edge], title: str, taxonomy: Taxonomy) -> str:
    names = taxonomy.state_names
    moves = [f"{names[e.source]} → {names[e.target]} by {100 * abs(e.difference):.0f} points" for e in edges]
    return f"{title[0].upper()}{title[1:]}: {', '.join(moves) or 'no move with support'}."


def node_angles(taxonomy: Taxonomy) -> FloatArray:
    """Angle of each state, (K,), clockwise from <start> at the top; a gap parts macro-strategies."""
    macros = ["", *(taxonomy.macro_of(label) for label in taxonomy.labels), ""]
    steps = [0.0, *(1.0 + _GAP * (a != b) for a, b in pairwise(macros))]
    places = np.cumsum(steps)
    # <stop> is the last neighbour of <start>: leave a gap between them too.
    angles: FloatArray = np.pi / 2 - 2 * np.pi * places / (places[-1] + 1.0 + _GAP)
    return angles


def _largest(values: FloatArray, sign: int, number: int) -> list[Edge]:
    order = np.argsort(-values, axis=None, kind="stable")[:number]
    cells = [np.unravel_index(place, values.shape) for place in order if values.flat[place] >= _LEAST]
    return [Edge(int(a), int(b), sign * float(values[a, b])) for a, b in cells]


def _draw_circle(axes: Axes, taxonomy: Taxonomy) -> None:
    colours = macro_colours(taxonomy)
    angles = node_angles(taxonomy)
    for state, (name, angle) in enumerate(zip(taxonomy.state_names, angles, strict=True)):
        label = 0 < state < taxonomy.stop
        colour = colours[taxonomy.macro_of(name)] if label else INK
        place = (float(np.cos(angle)), float(np.sin(angle)))
        axes.add_patch(Circle(place, 0.035, facecolor=colour, edgecolor="white", lw=0.8, zorder=3))
        side: Any = "center" if abs(place[0]) < 0.12 else "left" if place[0] > 0 else "right"
        height: Any = "center" if side != "center" else "bottom" if place[1] > 0 else "top"
        axes.text(1.08 * place[0], 1.08 * place[1], name, ha=side, va=height, fontsize=8.5, color=as_ink(colour))
    axes.set_xlim(-1.75, 1.75)
    axes.set_ylim(-1.2, 1.2)
    axes.set_aspect("equal")
    axes.set_axis_off()


def _draw_edge(
    axes: Axes, edge: Edge, taxonomy: Taxonomy, colour: str, width: float, rank: int, has_cases: bool
) -> None:
    angles = node_angles(taxonomy)
    start, end = (np.array([np.cos(angles[s]), np.sin(angles[s])]) for s in (edge.source, edge.target))
    text = f"{100 * abs(edge.difference):.0f}"
    names = taxonomy.state_names
    gid = f"tip:{names[edge.source]} → {names[edge.target]}: {100 * edge.difference:+.1f} points"
    url = FIGURE_CASES + move_address(names[edge.source], names[edge.target]) if has_cases else None
    if edge.source == edge.target:
        loop = Circle(
            (0.87 * float(start[0]), 0.87 * float(start[1])),
            0.1,
            fill=False,
            edgecolor=colour,
            lw=width,
            alpha=0.75,
            zorder=2,
        )
        loop.set_gid(gid)
        loop.set_url(url)
        axes.add_patch(loop)
        _number(axes, 0.87 * start, text, colour)
        return
    bend = _bend(start, end)
    style: Any = {"arrowstyle": f"-|>,head_length={4 + width * 0.6},head_width={2 + width * 0.4}"}
    arrow = FancyArrowPatch(
        tuple(start),
        tuple(end),
        connectionstyle=f"arc3,rad={bend}",
        shrinkA=5,
        shrinkB=5,
        color=colour,
        lw=width,
        alpha=0.75,
        mutation_scale=1,
        zorder=2,
        **style,
    )
    arrow.set_gid(gid)
    arrow.set_url(url)
    axes.add_patch(arrow)
    _number(axes, _along(start, end, bend, _NUMBER_AT[rank % 2]), text, colour)


def _bend(start: NDArray[np.float64], end: NDArray[np.float64]) -> float:
    """Towards the middle of the circle, more so between neighbours; the way back takes another path."""
    near = 1 - float(np.linalg.norm(start - end)) / 2
    clockwise = start[0] * end[1] - start[1] * end[0] < 0
    return 0.1 + 0.45 * near if clockwise else -0.25 - 0.35 * near


def _along(start: NDArray[np.float64], end: NDArray[np.float64], bend: float, share: float) -> NDArray[np.float64]:
    """The point at a share of matplotlib's arc3 curve, a quadratic Bézier curve with one control point."""
    way = end - start
    control = (start + end) / 2 + bend * np.array([way[1], -way[0]])
    point: NDArray[np.float64] = (1 - share) ** 2 * start + 2 * share * (1 - share) * control + share**2 * end
    return point


def _number(axes: Axes, place: NDArray[np.float64], text: str, colour: str) -> None:
    box: Any = {"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.9}
    ink = as_ink(colour, over("white", 0.9, colour))  # an arrow may shine through
    axes.text(
        float(place[0]), float(place[1]), text, ha="center", va="center", fontsize=7.5, color=ink, bbox=box, zorder=4
    )
