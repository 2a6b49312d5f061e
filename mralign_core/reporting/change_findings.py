"""Which moves an aligned model makes more and less often than before: Δ against its permutation null (Fig. 4)."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mralign_core.estimation.thinking_change import NUM_PERMUTATIONS, ThinkingChange, thinking_change, two_models
from mralign_core.evaluation.held_out_traces import VANILLA
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.reporting.case_addresses import FIGURE_CASES, case_address
from mralign_core.reporting.decision_findings import p_text
from mralign_core.reporting.delta_graph import Edge, delta_graph, strongest_edges
from mralign_core.reporting.report_block import ARROW, Block, LinkedTable
from mralign_core.reporting.result_table import ResultTable
from mralign_core.reporting.run_findings import points
from mralign_core.reporting.titles import variant_title


def change_block(
    traces: pd.DataFrame, annotations: pd.DataFrame, taxonomy: Taxonomy, confidence: float, variant: str
) -> Block | None:
    """Which moves an aligned variant makes more and less often than think-on (Fig. 4); None where either has no labels.

    Args:
        traces: rows of ``schemas.held_out_traces``.
        annotations: rows of ``schemas.annotations``, of these.
        taxonomy: the labels.
        confidence: 1 − the level at which an edge is shown, corrected for the number of edges.
        variant: the aligned one.
    """
    compared = two_models(traces, annotations, variant, VANILLA, taxonomy)
    if compared.is_first.all() or not compared.is_first.any():
        return None
    change = thinking_change(compared, taxonomy.num_states, rng=np.random.default_rng(0))
    shown = change.is_shown(1 - confidence)
    name = variant_title(variant)
    figure = delta_graph(change.first, change.second, taxonomy, (name, "think on"), shown, has_cases=False)
    _lead_to_thinkings(figure, change, taxonomy, variant, shown)
    return Block(
        title=f"Which moves {name} makes more, and which less often than before",
        lead=f"Δ = P of {name} − P of think on, from the labels of {change.num_traces[0]:,} and "
        f"{change.num_traces[1]:,} held-out thinkings on {change.num_questions:,} questions. A move is shown only "
        "where it differs more than any does when the two models' thinkings are exchanged question by question "
        f"({NUM_PERMUTATIONS} times): of two samples of one model, {100 * confidence:.3g} % and more show none.",
        sentences=change_sentences(change, taxonomy, confidence, variant),
        chart="change",
        figure=figure,
        caption="The ten strongest differences each way, among moves that differ beyond chance.",
        tables=[change_table(change, taxonomy, variant)],
        has_cases=False,
    )


def change_sentences(change: ThinkingChange, taxonomy: Taxonomy, confidence: float, variant: str) -> list[str]:
    """How many moves differ, and which most."""
    shown = change.is_shown(1 - confidence)
    text = f"Of {change.num_edges:,} moves with support, {int(shown.sum()):,} differ beyond chance"
    above, below = strongest_edges(change.first, change.second, is_shown=shown)
    told = [
        f"{verb} {', '.join(f'{_move(edge, taxonomy)} ({100 * edge.difference:+.0f} points)' for edge in edges[:3])}"
        for verb, edges in (("more often", above), ("less often", below))
        if edges
    ]
    if not told:
        return [f"{text}: no change of {variant_title(variant)}'s thinking is claimed."]
    return [f"{text}; {' and '.join(told)}.".replace("-", "−")]


def change_table(change: ThinkingChange, taxonomy: Taxonomy, variant: str) -> LinkedTable:
    """The strongest differences each way with their p-values, whether beyond chance or not, and how many thinkings of
    each model make the move, which these numbers lead to; a row leads to those of the model that makes it more often.
    """
    name, models = variant_title(variant), (VANILLA, variant)
    rows, addresses, cells = [], [], {}
    for edge in itertools.chain(*strongest_edges(change.first, change.second)):
        place = (edge.source, edge.target)
        numbers = [f"{making[place]:,}" for making in reversed(change.num_making)]
        shares = [points(estimate.p[place]) for estimate in (change.second, change.first)]
        difference = points(edge.difference, signed=True)
        rows.append([_move(edge, taxonomy), *shares, difference, p_text(change.p_values[place]), *numbers])
        for column, model in enumerate(models, start=len(rows[-1]) - len(models)):
            cells[len(rows) - 1, column] = thinkings_address(model, edge, taxonomy)
        addresses.append(thinkings_address(models[edge.difference > 0], edge, taxonomy))
    columns = ["move", "think on, %", f"{name}, %", "difference, points", "p", "n, think on", f"n, {name}"]
    title = "The strongest differences; p is the chance that the strongest of all moves is as strong by chance, n the "
    title += "number of thinkings that make the move"
    return LinkedTable.of(ResultTable(columns, rows, title=title), addresses, cells)


def thinkings_address(variant: str, edge: Edge, taxonomy: Taxonomy) -> str:
    """The held-out answers of a variant in whose thinking a move is made."""
    return case_address("answers", variant=variant, pattern=_move(edge, taxonomy))


def _lead_to_thinkings(
    figure: Figure, change: ThinkingChange, taxonomy: Taxonomy, variant: str, is_shown: NDArray[np.bool_]
) -> None:
    """Have each edge of a Δ graph lead to the thinkings of the model that makes the move more often."""
    above, below = strongest_edges(change.first, change.second, is_shown=is_shown)
    addresses = {
        _move(edge, taxonomy): thinkings_address(model, edge, taxonomy)
        for model, edges in ((variant, above), (VANILLA, below))
        for edge in edges
    }
    for patch in (patch for axes in figure.axes for patch in axes.patches):
        move = (patch.get_gid() or "").removeprefix("tip:").rpartition(":")[0]  # "tip:a → b: +1.0 points"
        if move in addresses:
            patch.set_url(FIGURE_CASES + addresses[move])


def _move(edge: Edge, taxonomy: Taxonomy) -> str:
    return f"{taxonomy.state_names[edge.source]}{ARROW}{taxonomy.state_names[edge.target]}"
