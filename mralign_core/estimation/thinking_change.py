"""Did training change which move follows which? Δ = P_aligned − P_vanilla against a permutation null (Fig. 4).

An addition to the paper, which shows the strongest edges of Δ whatever their size. Two samples of one model differ
too, and their strongest edges look like a finding. So an edge is shown only where it is stronger than chance makes the
strongest of all:

* Both models answer the same questions. If training had changed nothing, a question's traces could as well have come
  from the other model. Each permutation exchanges the two models' traces of a question, all of them together, with
  probability one half, question by question.
* An edge's statistic is |Δ| over its standard error under equal P, so that a state seldom left does not decide by its
  noise. Its p-value is the share of permutations whose *largest* statistic over all edges is at least as large: the
  chance that any edge is shown falsely is at most the level, however many there are (Westfall and Young, 1993).
* Looked at are the edges with support in both models' traces together, which no permutation changes.

P is the paper's EM in each model and permutation. Shapes: N traces, Q questions, U distinct set pairs, R permutations,
K states.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mralign_core.estimation.bootstrap import MIN_SUPPORT
from mralign_core.estimation.em_tables import TransitionTables, fit_em_tables
from mralign_core.method import FloatArray, IntArray
from mralign_core.method.set_pairs import SetPairCounts, members_of_codes, moves_into_steps, moves_into_stop
from mralign_core.method.taxonomy import MAX_LABELS, Taxonomy
from mralign_core.method.transitions import TransitionEstimate, fit_em

NUM_PERMUTATIONS = 999
"""Of the models' traces by question; the smallest p-value is one in a thousand."""


class TwoModels(NamedTuple):
    """The labelled traces of two models on the same questions.

    Args:
        labels: (T, 2) states of each step in ascending order; 0 in the second place, or in both, where there is none.
        trace_of_step: (T,) which trace each step belongs to; the steps of a trace are together and in order.
        questions: (N,) number of each trace's question.
        is_first: (N,) whether it is a trace of the first, the aligned model.
    """

    labels: IntArray
    trace_of_step: IntArray
    questions: IntArray
    is_first: NDArray[np.bool_]


class ThinkingChange(NamedTuple):
    """P of two models, and for each edge how surprising its difference is.

    Args:
        first: of the aligned model.
        second: of the other.
        p_values: (K, K), corrected for the number of edges; 1 where an edge was too seldom seen to be looked at.
        num_edges: how many were looked at.
        num_questions: exchanged in the permutations.
        num_traces: of the first and of the second.
        num_making: (K, K) each, how many traces of the first, and of the second, make each move.
    """

    first: TransitionEstimate
    second: TransitionEstimate
    p_values: FloatArray
    num_edges: int
    num_questions: int
    num_traces: tuple[int, int]
    num_making: tuple[IntArray, IntArray]

    def is_shown(self, level: float) -> NDArray[np.bool_]:
        """The edges that differ at a level, such as .05, corrected for their number, (K, K)."""
        shown: NDArray[np.bool_] = self.p_values <= level
        return shown


def two_models(
    traces: pd.DataFrame, annotations: pd.DataFrame, variant: str, baseline: str, taxonomy: Taxonomy
) -> TwoModels:
    """The labelled traces of a variant and of what it is compared with.

    Args:
        traces: rows of :data:`~mralign_core.schemas.held_out_traces.HELD_OUT_TRACES`.
        annotations: rows of :data:`~mralign_core.schemas.annotations.ANNOTATIONS`; traces without any are left out.
        variant: the aligned model.
        baseline: the other.
        taxonomy: gives the state of each label.
    """
    compared = traces[traces["variant"].isin([variant, baseline]) & traces["trace_id"].isin(annotations["trace_id"])]
    place = {trace_id: number for number, trace_id in enumerate(compared["trace_id"])}
    steps = annotations[annotations["trace_id"].isin(place)]
    steps = steps.assign(place=steps["trace_id"].map(place)).sort_values(["place", "segment"])
    steps = steps.drop_duplicates(["place", "step"])
    states = [sorted(taxonomy.state(label) for label in labels) for labels in steps["labels"]]
    padded = [[*each, *[0] * (MAX_LABELS - len(each))] for each in states]
    return TwoModels(
        np.array(padded, dtype=np.int64).reshape(-1, MAX_LABELS),
        steps["place"].to_numpy(np.int64),
        pd.factorize(compared["question_id"])[0].astype(np.int64),
        (compared["variant"] == variant).to_numpy(bool),
    )


def thinking_change(
    traces: TwoModels, num_states: int, *, rng: np.random.Generator, num_permutations: int = NUM_PERMUTATIONS
) -> ThinkingChange:
    """Compare the transitions of two models' traces on the same questions.

    Args:
        traces: of both.
        num_states: K.
        rng: seeded generator of the permutations.
        num_permutations: R.
    """
    pairs, counts_QU = _count_by_question(traces, num_states)
    ours, theirs = counts_QU
    swapped = (rng.random((num_permutations, len(ours))) < 0.5).astype(float) @ (theirs - ours)
    firsts, seconds = (
        fit_em_tables(pairs, np.vstack([side.sum(axis=0), side.sum(axis=0) + sign * swapped]))
        for side, sign in ((ours, 1), (theirs, -1))
    )
    pooled = fit_em_tables(pairs, (ours + theirs).sum(axis=0)[None])
    is_edge = has_support(pooled.counts[0])
    statistics = _statistics(firsts, seconds, pooled.p[0])[:, is_edge]
    p_values = np.ones_like(pooled.p[0])
    if is_edge.any():
        largest = statistics[1:].max(axis=1)
        # Equal up to rounding is as large: a permutation that changes nothing must not count as smaller.
        exceeded = (largest[:, None] >= statistics[0] - 1e-9).sum(axis=0)
        p_values[is_edge] = (1 + exceeded) / (1 + num_permutations)
    return ThinkingChange(
        fit_em(_times(pairs, ours), num_states),
        fit_em(_times(pairs, theirs), num_states),
        p_values,
        int(is_edge.sum()),
        len(ours),
        (int(traces.is_first.sum()), int((~traces.is_first).sum())),
        traces_by_move(traces, num_states),
    )


def traces_by_move(traces: TwoModels, num_states: int) -> tuple[IntArray, IntArray]:
    """How many traces of the first and of the second model make each move, (K, K) each.

    A step with two labels makes the moves of both; a trace that makes a move again counts once.

    Args:
        traces: of both.
        num_states: K.

    >>> labels = np.array([[1, 0], [1, 2], [1, 0], [2, 0]])  # 1, then 1 or 2; another trace of 1, 2
    >>> both = TwoModels(labels, np.array([0, 0, 1, 1]), np.array([0, 0]), np.array([True, False]))
    >>> first, second = traces_by_move(both, 4)
    >>> first[1].tolist(), second[1].tolist()  # from 1
    ([0, 1, 1, 1], [0, 0, 1, 0])
    """
    sources, targets, trace = _all_moves(traces, num_states)
    left, entered = (np.stack(np.divmod(sets, num_states), axis=1) for sets in (sources, targets))
    is_left, is_entered = (np.stack([np.ones(len(sets), bool), sets[:, 1] > 0], axis=1) for sets in (left, entered))
    moves = np.repeat(left, MAX_LABELS, axis=1) * num_states + np.tile(entered, MAX_LABELS)
    is_made = np.repeat(is_left, MAX_LABELS, axis=1) & np.tile(is_entered, MAX_LABELS)
    makers, made = np.divmod(np.unique((trace[:, None] * num_states**2 + moves)[is_made]), num_states**2)
    first, second = (
        np.bincount(made[traces.is_first[makers] == is_first], minlength=num_states**2).reshape(num_states, -1)
        for is_first in (True, False)
    )
    return first, second


def has_support(counts: FloatArray) -> NDArray[np.bool_]:
    """The edges that are looked at, (K, K): made at least :data:`MIN_SUPPORT` times, from a state left twice as often.

    Args:
        counts: (K, K) soft counts in both models' traces.
    """
    is_left = counts.sum(axis=1, keepdims=True) >= 2 * MIN_SUPPORT
    supported: NDArray[np.bool_] = is_left & (counts >= MIN_SUPPORT)
    return supported


def _statistics(first: TransitionTables, second: TransitionTables, pooled: FloatArray) -> FloatArray:
    """|Δ| over its standard error if both had the pooled P, (R, K, K); 0 where that is 0."""
    left = [tables.counts.sum(axis=2, keepdims=True) for tables in (first, second)]
    variance = pooled * (1 - pooled) * sum(1 / np.maximum(times, 1e-9) for times in left)
    difference = np.abs(first.p - second.p)
    statistics: FloatArray = np.divide(difference, np.sqrt(variance), where=variance > 0, out=np.zeros_like(difference))
    return statistics


def _count_by_question(traces: TwoModels, num_states: int) -> tuple[SetPairCounts, tuple[FloatArray, FloatArray]]:
    """The distinct set pairs, and how often each question's traces have each, (Q, U), by model."""
    sources, targets, trace = _all_moves(traces, num_states)
    codes, pair = np.unique(sources * num_states**2 + targets, return_inverse=True)
    num_questions = int(traces.questions.max(initial=-1)) + 1
    cell = traces.questions[trace] * len(codes) + pair
    is_first = traces.is_first[trace]
    ours, theirs = (
        np.bincount(cell[side], minlength=num_questions * len(codes)).reshape(num_questions, -1).astype(float)
        for side in (is_first, ~is_first)
    )
    members = members_of_codes(codes, num_states)
    return SetPairCounts(*members, np.zeros(len(codes), dtype=np.int64), len(traces.questions), 0, 0), (ours, theirs)


def _all_moves(traces: TwoModels, num_states: int) -> tuple[IntArray, IntArray, IntArray]:
    """Number of the set left, of the set entered, and trace of each move, those into <stop> among them."""
    into_steps = moves_into_steps(traces.labels, traces.trace_of_step, num_states)
    into_stop = moves_into_stop(into_steps, num_states)
    sources, targets, trace = (
        np.concatenate([getattr(into_steps, name), getattr(into_stop, name)])
        for name in ("sources", "targets", "traces")
    )
    return sources, targets, trace


def _times(pairs: SetPairCounts, counts_QU: FloatArray) -> SetPairCounts:
    return pairs._replace(multiplicities=counts_QU.sum(axis=0).astype(np.int64))
