"""How figures are drawn and saved: style, palettes, SVG for the report and small PNG for a workflow's page.

Figures are built with matplotlib's object interface, so nothing global is left behind, and their SVG is a
function of the data alone: no date, no random ids. Colours keep one meaning throughout (see the palettes) and
stay apart under the common colour-vision deficiencies; text has a contrast of 4.5 or more (WCAG 2, AA). What is seen in
a figure is said by the function that draws it, as the figure's label (:func:`with_alt_text`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
from markupsafe import escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.typing import ColorType
from PIL import Image

from mralign_core.method.taxonomy import Taxonomy
from mralign_core.reporting.case_addresses import FIGURE_CASES

P = ParamSpec("P")

INK, MUTED, FAINT = "#1c2430", "#5b6675", "#e3e7ec"
POLARITY_COLOURS = {"positive": "#0072b2", "negative": "#d55e00"}
MACRO_COLOURS = ("#4b3f9e", "#b8890b", "#117733", "#aa4499")
"""Macro-strategies in taxonomy order; further ones repeat the cycle."""
LEAST_CONTRAST = 4.5
"""Of text with what is behind it (WCAG 2, level AA)."""
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
_CASES = re.compile(rf"""<a xlink:href=(?:"{FIGURE_CASES}([^"]*)"|'{FIGURE_CASES}([^']*)')[^>]*>""")
_TIP = re.compile(r"""<g id=(?:"tip:([^"]*)"|'tip:([^']*)')>""")
WIDTH = 10.4
"""Inches; the report shows figures at about 96 pixels an inch."""


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an inline ``<svg>``, its ids prefixed by ``name`` so that several fit in one page.

    Its label is what a screen reader says in its place.
    """
    buffer = io.StringIO()
    dpi = figure.dpi
    with matplotlib.rc_context(STYLE):
        # `savefig` would draw it once more before, for a layout that it has.
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    figure.dpi = dpi
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = _TIP.sub(lambda match: f"<g><title>{match[1] or match[2]}</title>", svg)
    svg = _CASES.sub(lambda match: f'<a data-cases="{match[1] or match[2]}">', svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(figure.get_label() or name)}" ', 1).strip()


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
            if engine := figure.get_layout_engine():
                engine.execute(figure)
            figure.set_layout_engine("none")
            return figure

    return styled


def macro_colours(taxonomy: Taxonomy) -> dict[str, str]:
    """Macro-strategy → its colour, by its place in the taxonomy."""
    names = dict.fromkeys(taxonomy.macro_of(label) for label in taxonomy.labels)
    return {name: MACRO_COLOURS[place % len(MACRO_COLOURS)] for place, name in enumerate(names)}


def with_alt_text(figure: Figure, *sentences: str) -> Figure:
    """Say what is seen in a figure, with its numbers, for those who don't see it."""
    figure.set_label(" ".join(sentence for sentence in sentences if sentence))
    return figure


def contrast(first: ColorType, second: ColorType) -> float:
    """The contrast ratio of WCAG 2 between two opaque colours, from 1 to 21.

    >>> round(contrast("black", "white"), 1), round(contrast("#767676", "white"), 2)
    (21.0, 4.54)
    """
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def ink_on(background: ColorType) -> str:
    """Black or white, whichever reads better: of the two, one has a contrast of 4.58 or more with any colour."""
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, background))


def as_ink(colour: ColorType, background: ColorType = "white") -> str:
    """A colour, made so much darker that text in it reads on a light background.

    >>> as_ink("#0072b2"), contrast(as_ink("#d55e00"), "white") >= LEAST_CONTRAST
    ('#0072b2', True)
    """
    red, green, blue = to_rgb(colour)
    for percent in range(100, 0, -2):
        darker = to_hex((red * percent / 100, green * percent / 100, blue * percent / 100))
        if contrast(darker, background) >= LEAST_CONTRAST:
            return darker
    return "#000000"


def over(colour: ColorType, alpha: float, background: ColorType = "white") -> str:
    """What is seen of a colour that lets some of the background through."""
    red, green, blue = (
        alpha * above + (1 - alpha) * below for above, below in zip(to_rgb(colour), to_rgb(background), strict=True)
    )
    return to_hex((red, green, blue))


def _luminance(colour: ColorType) -> float:
    """The relative luminance of sRGB, from 0 to 1."""
    channels = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour))
    return sum(share * channel for share, channel in zip((0.2126, 0.7152, 0.0722), channels, strict=True))
