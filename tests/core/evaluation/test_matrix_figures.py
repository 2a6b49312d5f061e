"""What the figures of matrices choose to show: extremes, strongest edges, frequent moves with their intervals."""

import doctest
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.estimation.matrices import estimate_transitions
from mralign_core.estimation.traces import LabelledTrace
from mralign_core.estimation.weights import weigh_segments
from mralign_core.method.taxonomy import PAPER_TAXONOMY, Taxonomy
from mralign_core.method.transitions import fit_frequency
from mralign_core.reporting import delta_graph as delta
from mralign_core.reporting import matrix_figures
from mralign_core.reporting import style as drawing
from mralign_core.reporting.diagnostic_figures import DIAGNOSTIC_CHARTS, diagnostic_charts, sensitivity_curves
from tests.oracles import count_set_pairs

SVG = "{http://www.w3.org/2000/svg}"


def read(figure, tag):
    return [element.text for element in ElementTree.fromstring(drawing.to_svg(figure, "f")).iter(f"{SVG}{tag}")]


@pytest.mark.parametrize("module", [matrix_figures, delta])
def test_docstring_examples_hold(module):
    results = doctest.testmod(module)
    assert results.attempted and not results.failed


@pytest.mark.parametrize("side", ["plus", "minus"])
def test_extremes_are_the_same_share_at_each_end_of_the_supported(inputs, side):
    weights, supported = matrix_figures.transition_weights(inputs.transitions, side)
    top, bottom = matrix_figures.extreme_weights(weights, supported, 0.4)
    number = int(0.4 * supported.sum())
    assert top.sum() == bottom.sum() == number > 0
    rest = weights[supported & ~top & ~bottom]
    assert weights[top].min() >= rest.max() and weights[bottom].max() <= rest.min()
    assert supported[top | bottom].all()


def test_edges_have_support_and_the_two_sides_mirror_each_other(inputs):
    plus, minus = inputs.transitions.plus, inputs.transitions.minus
    above, below = delta.strongest_edges(plus, minus)
    assert 0 < len(above) <= 10 and 0 < len(below) <= 10
    for edge in above:
        assert plus.counts[edge.source, edge.target] >= matrix_figures.MIN_SUPPORT
        assert edge.difference == pytest.approx(plus.p[edge.source, edge.target] - minus.p[edge.source, edge.target])
    sizes = [edge.difference for edge in above]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] > 0 > below[0].difference
    swapped = delta.strongest_edges(minus, plus)
    assert [edge[:2] for edge in swapped[0]] == [edge[:2] for edge in below]


def test_the_graph_names_every_state_twice_and_every_edge_once(inputs):
    figure = delta.delta_graph(inputs.transitions.plus, inputs.transitions.minus, inputs.taxonomy, ("now", "before"))
    shown = read(figure, "text")
    assert all(shown.count(name) == 2 for name in inputs.taxonomy.state_names)
    assert "likelier in now than in before" in shown
    edges = sum(map(len, delta.strongest_edges(inputs.transitions.plus, inputs.transitions.minus)))
    assert len([title for title in read(figure, "title") if "points" in title]) == edges


def test_equal_matrices_of_another_label_set_say_that_nothing_differs():
    tiny = Taxonomy(("ask", "tell"), {"ask": "talk", "tell": "talk"}, {"ask": "asks", "tell": "tells"})
    one = fit_frequency(count_set_pairs([[(1,), (2,)]] * 9, tiny.num_states), tiny.num_states)
    assert read(delta.delta_graph(one, one, tiny), "text").count("no move with support differs") == 2
    angles = delta.node_angles(tiny)
    assert len(angles) == 4 and (np.diff(angles) < 0).all() and angles[0] - angles[-1] < 2 * np.pi


def test_intervals_are_of_the_most_frequent_moves_into_labels(inputs):
    moves = matrix_figures.frequent_moves(inputs.transitions, "plus")
    counts = [inputs.transitions.plus.counts[move] for move in moves]
    assert counts == sorted(counts, reverse=True) and min(counts) >= matrix_figures.MIN_SUPPORT
    assert all(target != inputs.taxonomy.stop for _, target in moves)
    names = inputs.taxonomy.state_names
    label = f"{names[moves[0][0]]} → {names[moves[0][1]]}  ({counts[0]:,.0f})"
    assert label in read(matrix_figures.weight_intervals(inputs.transitions), "text")


SECTIONS = [
    RewardConfig(),
    RewardConfig(support_shrinkage=20.0),
    RewardConfig(reference="opposite", support_shrinkage=3.0, clip_min=0.7, clip_max=1.9),
]


@pytest.fixture(scope="module")
def single_labels():
    """Traces of one label a step, and their matrices with draws."""
    rng = np.random.default_rng(5)
    traces = [
        LabelledTrace(
            f"t{n}",
            ("positive", "negative")[n % 2],
            [(int(s),) for s in rng.integers(1 + n % 2, 5, 6)],
            [*range(6)],
            "",
        )
        for n in range(40)
    ]
    return traces, estimate_transitions(
        traces, EstimateConfig(num_resamples=25, confidence=0.8), PAPER_TAXONOMY, rng=rng
    )


def show(matrices, section):
    return matrix_figures.Transitions.of(matrices, section, 0.8, PAPER_TAXONOMY)


@pytest.mark.parametrize("section", SECTIONS)
def test_weights_and_intervals_are_those_of_the_reward_stage(single_labels, section):
    traces, matrices = single_labels
    shown = show(matrices, section)
    segment_weights = weigh_segments(traces, matrices, section, confidence=0.8)
    expected = dict(
        zip(
            zip(segment_weights["trace_id"], segment_weights["segment"], strict=True),
            segment_weights.itertuples(),
            strict=True,
        )
    )
    for trace in traces:
        side = "plus" if trace.polarity == "positive" else "minus"
        weights, _ = matrix_figures.transition_weights(shown, side)
        low, high = matrix_figures.weight_bounds(shown, side)
        for place, (left, entered) in enumerate(pairwise([(0,), *trace.steps])):
            cell, row = (left[0], entered[0]), expected[trace.trace_id, place]
            assert (weights[cell], low[cell], high[cell]) == pytest.approx(
                (row.weight, row.weight_low, row.weight_high), nan_ok=True
            )


def test_a_class_of_few_traces_has_no_intervals(single_labels):
    traces, _ = single_labels
    few = [trace for n, trace in enumerate(traces) if n % 2 == 0 or n < 6]
    matrices = estimate_transitions(few, EstimateConfig(num_resamples=25), PAPER_TAXONOMY, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="a polarity has fewer than 10 questions with a labelled trace"):
        matrix_figures.weight_intervals(show(matrices, RewardConfig()))


@pytest.mark.parametrize("draw", [matrix_figures.weight_heatmaps, matrix_figures.weight_intervals])
def test_figures_say_when_the_run_weighs_by_other_matrices(single_labels, draw):
    _, matrices = single_labels
    titles = [
        [axes.get_title(loc="left") + axes.get_title() for axes in draw(show(matrices, section)).axes[:2]]
        for section in (RewardConfig(), RewardConfig(condition_on="stratum"))
    ]
    assert [["pooled over strata" in title for title in both] for both in titles] == [[False, False], [True, True]]


@pytest.mark.parametrize("bounds", [(np.exp(-1), np.e), (0.05, 1.2), (1.0, 3.0), (0.5, 1.0)])
def test_a_weight_of_one_has_the_middle_colour_at_any_clip(single_labels, bounds):
    shown = show(single_labels[1], RewardConfig(clip_min=bounds[0], clip_max=bounds[1]))
    norm = matrix_figures._weight_norm(shown)
    assert norm(0.0) == 0.5 and norm(np.log(bounds[0])) <= 0.5 <= norm(np.log(bounds[1]))
    drawing.to_png(matrix_figures.weight_heatmaps(shown))


def test_without_bootstrap_there_are_no_intervals(inputs):
    bare = inputs.transitions._replace(draws={})
    with pytest.raises(ValueError, match="num_resamples was 0"):
        matrix_figures.weight_intervals(bare)
    assert set(diagnostic_charts(inputs.diagnostics, bare)) == set(DIAGNOSTIC_CHARTS) - {"intervals"}


def test_sensitivity_marks_this_run_once_in_each_panel(inputs):
    shown = read(sensitivity_curves(inputs.diagnostics.sensitivity), "text")
    assert shown.count("run") == 3 and "none" in shown


def test_label_mix_shows_the_numbers(inputs):
    from mralign_core.reporting import figures

    polarities = dict(zip(inputs.candidates["trace_id"], inputs.candidates["polarity"], strict=True))
    shares = figures.label_shares(inputs.annotations, polarities, inputs.taxonomy)
    assert shares[["num_positive", "num_negative"]].to_numpy().sum() == inputs.annotations["labels"].map(len).sum()
    shown = read(figures.label_mix(inputs.annotations, polarities, inputs.taxonomy), "text")
    assert f"{shares['num_positive'].max():,}" in shown
