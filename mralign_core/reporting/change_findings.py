"""Which moves an aligned model makes more and less often than before: Δ against its permutation null (Fig. 4)."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from mralign_core.estimation.thinking_change import NUM_PERMUTATIONS, ThinkingChange, thinking_change, two_models
from mralign_core.evaluation.held_out_traces import VANILLA
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.reporting.decision_findings import p_text
from mralign_core.reporting.delta_graph import Edge, delta_graph, strongest_edges
from mralign_core.reporting.report_block import ARROW, Block
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
    return Block(
        title=f"Which moves {name} makes more, and which less often than before",
        lead=f"Δ = P of {name} − P of think on, from the labels of {change.num_traces[0]:,} and "
        f"{change.num_traces[1]:,} held-out thinkings on {change.num_questions:,} questions. A move is shown only "
        "where it differs more than any does when the two models' thinkings are exchanged question by question "
        f"({NUM_PERMUTATIONS} times): of two samples of one model, {100 * confidence:.3g} % and more show none.",
        sentences=change_sentences(change, taxonomy, confidence, variant),
        chart="change",
        figure=delta_graph(change.first, change.second, taxonomy, (name, "think on"), shown, has_cases=False),
        caption="The ten strongest differences each way, among moves that differ beyond chance.",
        tables=[change_table(change, taxonomy, name)],
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


def change_table(change: ThinkingChange, taxonomy: Taxonomy, name: str) -> ResultTable:
    """The strongest differences each way with their p-values, whether beyond chance or not."""
    rows = []
    for edge in itertools.chain(*strongest_edges(change.first, change.second)):
        place = (edge.source, edge.target)
        p_value = change.p_values[place]
        shares = [points(estimate.p[place]) for estimate in (change.second, change.first)]
        rows.append([_move(edge, taxonomy), *shares, points(edge.difference, signed=True), p_text(p_value)])
    columns = ["move", "think on, %", f"{name}, %", "difference, points", "p"]
    title = "The strongest differences; p is the chance that the strongest of all moves is as strong by chance"
    return ResultTable(columns, rows, title=title)


def _move(edge: Edge, taxonomy: Taxonomy) -> str:
    return f"{taxonomy.state_names[edge.source]}{ARROW}{taxonomy.state_names[edge.target]}"
