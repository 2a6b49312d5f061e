"""How figures are drawn and saved: style, palettes, SVG for the report and small PNG for a workflow's page.

Figures are built with matplotlib's object interface, so nothing global is left behind, and their SVG is a
function of the data alone: no date, no random ids. Colours keep one meaning throughout (see the palettes) and
stay apart under the common colour-vision deficiencies.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from mralign_core.method.taxonomy import Taxonomy

P = ParamSpec("P")

INK, MUTED, FAINT = "#1c2430", "#5b6675", "#e3e7ec"
POLARITY_COLOURS = {"positive": "#0072b2", "negative": "#d55e00"}
MACRO_COLOURS = ("#4b3f9e", "#b8890b", "#117733", "#aa4499")
"""Macro-strategies in taxonomy order; further ones repeat the cycle."""
MAX_PNG_BYTES = 140_000
"""Below the 200 kB at which a workflow's page stops showing a data URI, once base64 has added a third."""

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "mr-align",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.hinting": "none",  # else text has another width at each resolution, and the layout is made at one
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
_TIP = re.compile(r"""<g id=(?:"tip:([^"]*)"|'tip:([^']*)')>""")
WIDTH = 10.4
"""Inches; the report shows figures at about 96 pixels an inch."""


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an inline ``<svg>``, its ids prefixed by ``name`` so that several fit in one page."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
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
        drawn, small = io.BytesIO(), io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(drawn, format="png", dpi=dpi, metadata={"Software": None})
        # Flat colours lose nothing by a palette, and the file a half.
        Image.open(drawn).convert("RGB").quantize(256).save(small, format="png", optimize=True)
        if len(small.getvalue()) <= MAX_PNG_BYTES:
            break
    return small.getvalue()


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under the project's style, leaving matplotlib's own settings as they were."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            # Lay out once: each save would start from the layout of the one before, and end elsewhere.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            return figure

    return styled


def macro_colours(taxonomy: Taxonomy) -> dict[str, str]:
    """Macro-strategy → its colour, by its place in the taxonomy."""
    names = dict.fromkeys(taxonomy.macro_of(label) for label in taxonomy.labels)
    return {name: MACRO_COLOURS[place % len(MACRO_COLOURS)] for place, name in enumerate(names)}
