"""The map of open labels: what it shows, that names don't cover each other, and that it fits a workflow's page."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from mralign_core.induction.inducing import OPEN_LABEL_COLUMNS
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.reporting.induction_figures import cluster_map
from mralign_core.reporting.style import MAX_PNG_BYTES, to_png, to_svg


def open_labels(num_labels, per_label=4, num_noise=3, crowded=False):
    """Labels in clusters around points of a circle, or all around one point."""
    rng = np.random.default_rng(0)
    rows: list[tuple[Any, ...]] = []
    for number in range(num_labels):
        angle = 0.0 if crowded else 2 * np.pi * number / num_labels
        for member in range(per_label):
            x, y = 10 * np.cos(angle) + rng.normal(), 10 * np.sin(angle) + rng.normal()
            rows.append((f"phrase {number}.{member}", 5 + member, True, number, False, f"label_{number}", x, y))
    rows += [(f"noise {n}", 5, True, None, True, None, float(n), 0.0) for n in range(num_noise)]
    rows.append(("rare", 1, False, None, False, None, None, None))
    return pd.DataFrame(rows, columns=OPEN_LABEL_COLUMNS).astype({"cluster": "Int64"})


def taxonomy(num_labels, num_macros=3):
    names = tuple(f"label_{number}" for number in range(num_labels))
    macros = {name: f"macro {min(place, num_macros - 1)}" for place, name in enumerate(names)}
    return Taxonomy(names, macros, dict.fromkeys(names, "d"))


def written(figure):
    """Text → box, in pixels, of the induced labels' names."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    # The box of the text alone, without the line to its cluster.
    return {
        text.get_text(): Text.get_window_extent(text, renderer)
        for text in figure.axes[0].texts
        if text.get_text().startswith("label_")
    }


@pytest.mark.parametrize(("num_labels", "crowded"), [(1, False), (6, False), (15, False), (12, True)])
def test_every_label_is_named_once_and_no_name_covers_another(num_labels, crowded):
    figure = cluster_map(open_labels(num_labels, crowded=crowded), taxonomy(num_labels))
    boxes = written(figure)
    assert set(boxes) == set(taxonomy(num_labels).labels)
    listed = list(boxes.values())
    overlapping = [(i, j) for i in range(len(listed)) for j in range(i) if listed[i].overlaps(listed[j])]
    assert not overlapping


def test_open_labels_are_written_where_there_is_room():
    small, full = (cluster_map(open_labels(n, crowded=False), taxonomy(n)) for n in (3, 20))
    assert {"phrase 0.0", "noise 2"} <= {text.get_text() for text in small.axes[0].texts}
    assert not [text for text in full.axes[0].texts if text.get_text().startswith("phrase")]


def test_rare_labels_are_not_on_the_map_and_noise_is_counted():
    figure = cluster_map(open_labels(3), taxonomy(3))
    assert figure.axes[0].get_title(loc="left").startswith("15 open labels, 3 induced ones; 3 are noise")
    assert "rare" not in to_svg(figure, "m")


def test_macro_strategies_have_colours_of_their_own():
    figure = cluster_map(open_labels(7), taxonomy(7, num_macros=7))
    shades = {text.get_text(): text.get_color() for text in figure.axes[0].texts if "label_" in text.get_text()}
    assert len(set(shades.values())) == 7


def test_the_picture_fits_the_page_and_the_svg_is_the_same_twice():
    rows = open_labels(40, per_label=12, num_noise=100)
    assert len(to_png(cluster_map(rows, taxonomy(40)))) <= MAX_PNG_BYTES
    assert to_svg(cluster_map(rows, taxonomy(40)), "m") == to_svg(cluster_map(rows, taxonomy(40)), "m")
