import xml.etree.ElementTree as ElementTree
from io import BytesIO

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from PIL import Image
from sample_run import annotation, as_scores, score, training_metrics

from mralign_core.evaluation.metrics import paired_differences
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.reporting import diagnostic_figures, figures, matrix_figures, style
from mralign_core.reporting.delta_graph import delta_graph
from mralign_core.reporting.matrix_figures import weight_intervals

SVG = "{http://www.w3.org/2000/svg}"


def polarities(inputs):
    return dict(zip(inputs.candidates["trace_id"], inputs.candidates["polarity"], strict=True))


DRAWINGS = {
    "funnel": lambda inputs: figures.yield_funnel(inputs.funnel),
    "labels": lambda inputs: figures.label_mix(inputs.annotations, polarities(inputs), inputs.taxonomy),
    "matrices": lambda inputs: matrix_figures.transition_heatmaps(inputs.transitions),
    "weights": lambda inputs: matrix_figures.weight_heatmaps(inputs.transitions),
    "histogram": lambda inputs: figures.weight_histogram(inputs.segment_weights, polarities(inputs), np.exp(-1), np.e),
    "delta": lambda inputs: delta_graph(inputs.transitions.plus, inputs.transitions.minus, inputs.taxonomy),
    "intervals": lambda inputs: weight_intervals(inputs.transitions),
    "objective": lambda inputs: diagnostic_figures.objective_curves(inputs.diagnostics.objectives),
    "sensitivity": lambda inputs: diagnostic_figures.sensitivity_curves(inputs.diagnostics.sensitivity),
    "strata": lambda inputs: diagnostic_figures.stratum_moves(inputs.diagnostics.strata),
    "training": lambda inputs: figures.training_curves(inputs.training),
    "differences": lambda inputs: figures.difference_intervals(inputs.differences),
}


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def titles(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}title")]


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_figure_is_the_same_again_well_formed_and_small(name, inputs):
    before = dict(matplotlib.rcParams)
    figure = DRAWINGS[name](inputs)
    svg = style.to_svg(figure, name)
    assert svg == style.to_svg(DRAWINGS[name](inputs), name)
    ids = [found for element in ElementTree.fromstring(svg).iter() if (found := element.get("id"))]
    assert len(ids) == len(set(ids)) and all(identifier.startswith(f"{name}-") for identifier in ids)
    assert "metadata" not in svg and "<style" not in svg and len(svg) < 400_000
    png = style.to_png(figure)
    assert len(png) <= style.MAX_PNG_BYTES
    assert Image.open(BytesIO(png)).width >= 900
    assert dict(matplotlib.rcParams) == before


def test_text_is_as_wide_at_every_resolution_so_that_no_name_is_cut_off():
    """A layout is made once, at matplotlib's own resolution; pictures are saved at others."""

    @style.styled
    def named():
        figure = figures.Figure(figsize=(style.WIDTH, 3))
        figure.subplots().set_yticks([0], ["matched draws, signed − placebo of matched signed"])
        return figure

    figure, inches = named(), []
    for dpi in (100, 120, 96, 72, 48):
        figure.set_dpi(dpi)
        with matplotlib.rc_context(style.STYLE):  # as it is saved
            figure.draw_without_rendering()
        extent = figure.axes[0].get_yticklabels()[0].get_window_extent()
        assert extent.x0 > 0
        inches.append(extent.width / dpi)
    assert max(inches) < 1.01 * min(inches)


def test_saving_again_gives_the_same_bytes(inputs):
    figure = DRAWINGS["labels"](inputs)
    first = style.to_svg(figure, "l"), style.to_png(figure)
    assert first == (style.to_svg(figure, "l"), style.to_png(figure))


def test_heat_maps_name_all_17_states_on_both_axes_and_every_cell_has_a_tip(inputs):
    svg = style.to_svg(matrix_figures.transition_heatmaps(inputs.transitions), "m")
    shown = texts(svg)
    for state in PAPER_TAXONOMY.state_names:
        # Rows are named once, columns under each of the two matrices.
        assert shown.count(state) == 3
    assert len(titles(svg)) == 2 * 16 * 16
    p, count = inputs.transitions.plus.p[0, 5], inputs.transitions.plus.counts[0, 5]
    assert f"<start> → decomposition: P = {p:.3f}, {count:.1f} seen" in titles(svg)


def test_weights_are_the_clipped_ratio_and_unsupported_cells_are_marked(inputs):
    transitions = inputs.transitions
    weights, supported = matrix_figures.transition_weights(transitions, "minus")
    ratio = transitions.minus.p[:-1, 1:] / transitions.all.p[:-1, 1:]
    assert weights[:-1, 1:] == pytest.approx(np.clip(ratio, np.exp(-1), np.e))
    assert np.isnan(weights[:, 0]).all() and np.isnan(weights[-1]).all()
    assert not supported[transitions.all.counts < matrix_figures.MIN_SUPPORT].any() and supported.any()
    svg = style.to_svg(matrix_figures.weight_heatmaps(transitions), "w")
    few = sum("few seen" in title for title in titles(svg))
    assert few == sum(
        int((~matrix_figures.transition_weights(transitions, s)[1]).sum()) - 33 for s in ("plus", "minus")
    )


def test_contrast_weights_divide_by_the_opposite_polarity(inputs):
    contrast = inputs.transitions._replace(reference="opposite")
    weights, _ = matrix_figures.transition_weights(contrast, "plus")
    ratio = contrast.plus.p[:-1, 1:] / contrast.minus.p[:-1, 1:]
    assert weights[:-1, 1:] == pytest.approx(np.clip(ratio, np.exp(-1), np.e))


def test_label_shares_are_of_the_labels_of_that_polarity():
    rows = [
        annotation("a", 0, ["framing", "analogy"]),
        annotation("a", 1, ["analogy"]),
        annotation("b", 0, ["framing"]),
        annotation("b", 1, []),
    ]
    shares = figures.label_shares(pd.DataFrame(rows), {"a": "positive", "b": "negative"}, PAPER_TAXONOMY).set_index(
        "label"
    )
    assert list(shares.index) == list(PAPER_TAXONOMY.labels)
    assert shares.loc["analogy", ["positive", "negative"]].tolist() == pytest.approx([2 / 3, 0])
    assert shares.loc["framing", ["positive", "negative"]].tolist() == pytest.approx([1 / 3, 1])


def test_traces_without_any_label_still_draw():
    frame = pd.DataFrame([annotation("a", 0, [])])
    assert "framing" in texts(style.to_svg(figures.label_mix(frame, {"a": "positive"}, PAPER_TAXONOMY), "l"))


def test_histogram_states_the_share_clipped_at_each_end():
    weights = [0.5, 0.5, 1.0, 2.0]
    frame = pd.DataFrame({"trace_id": "a", "weight": weights, "ratio": weights, "clipped": [True, False, False, True]})
    shown = texts(style.to_svg(figures.weight_histogram(frame, {}, 0.5, 2.0), "h"))
    assert shown.count("25.0 % clipped") == 2 and {"at 0.5", "at 2"} <= set(shown)
    assert "unknown traces (4 segments)" in shown


@pytest.mark.parametrize("bounds", [(0.5, 2.0), (1e-9, 1e9)])
def test_histogram_shows_weights_beyond_the_clip_and_no_empty_decades(bounds):
    frame = pd.DataFrame({"trace_id": "a", "weight": [0.2, 1.0, 1.0, 5.0], "ratio": 1.0, "clipped": False})
    (axes,) = figures.weight_histogram(frame, {}, *bounds).axes
    assert sum(bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)) == 4
    assert axes.get_xlim() == pytest.approx((0.2 / 1.03, 5.0 * 1.03))


def test_histogram_of_signed_weights_is_linear_around_0_and_tells_the_clip_by_the_ratio():
    ratios = [0.1, 0.5, 1.0, 9.0]
    frame = pd.DataFrame({"trace_id": "a", "weight": [-3.0, -1.4, 0.0, 3.0], "ratio": ratios, "clipped": False})
    frame["clipped"] = [True, False, False, True]
    figure = figures.weight_histogram(frame, {}, 0.22, 4.5, "signed")
    (axes,) = figure.axes
    assert axes.get_xscale() == "linear" and axes.get_xlim()[0] < -3
    assert [np.asarray(line.get_xdata())[0] for line in axes.lines] == [0.0]
    assert texts(style.to_svg(figure, "h")).count("25.0 % clipped") == 2


def test_training_curves_say_where_rewards_are_not_defined():
    svg = style.to_svg(figures.training_curves({"sft": training_metrics("sft")}), "t")
    assert texts(svg).count("not defined for this objective") == 2
    both = texts(style.to_svg(figures.training_curves({v: training_metrics(v) for v in ("kto", "sft")}), "t"))
    assert {"SFT", "KTO", "raw", "clamped at 0", "positive traces", "negative traces"} <= set(both)


def test_difference_intervals_show_all_comparisons_and_undefined_ones():
    rows = [
        score(v, f"q{i}", None if v == "sft" else True, (i + len(v)) % 3 > 0)
        for v in ("on", "sft", "kto")
        for i in range(9)
    ]
    differences = paired_differences(as_scores(rows), num_resamples=100, confidence=0.9, rng=np.random.default_rng(0))
    svg = style.to_svg(figures.difference_intervals(differences), "d")
    assert {"SFT − think on", "KTO − think on", " – not defined"} <= set(texts(svg))
    assert len([title for title in titles(svg) if "interval" in title]) == 2


def test_hostile_text_stays_text():
    hostile = "</svg><script>alert('$x^')</script>\"&"
    funnel = pd.DataFrame([(hostile, 3, 1, "")], columns=["step", "kept", "dropped", "reason"])
    svg = style.to_svg(figures.yield_funnel(funnel), "f")
    assert "<script" not in svg
    assert hostile in texts(svg) and any(title.startswith(hostile) for title in titles(svg))


def test_a_step_with_several_reasons_is_one_bar():
    rows = [("select", 5, 2, "mixed"), ("select", 5, 3, "both wrong")]
    svg = style.to_svg(figures.yield_funnel(pd.DataFrame(rows, columns=["step", "kept", "dropped", "reason"])), "f")
    assert titles(svg) == ["select: 5 kept, 5 dropped"]
