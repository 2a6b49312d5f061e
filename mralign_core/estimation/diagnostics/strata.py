"""Do P and the weights partly learn the kind of question? Distances between groups of traces, beside chance.

Matrices of few traces are far apart by chance alone, so a distance between groups of traces stands beside those after
shuffling which question is in which group, with all its traces. Every part is computed whose own traces are there.

Shapes: K states, N traces, U distinct pairs of label sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.estimation.bootstrap import MIN_SUPPORT
from mralign_core.estimation.corpus import POLARITY_OF, count_corpus
from mralign_core.estimation.diagnostics.discrimination import question_numbers
from mralign_core.estimation.diagnostics.labelled_weights import labelled_weights
from mralign_core.estimation.diagnostics.result import Result
from mralign_core.estimation.estimators import MatrixEstimator, make_matrix_estimator
from mralign_core.estimation.matrices import MIN_STRATUM_TRACES, TransitionMatrices
from mralign_core.estimation.traces import LabelledTrace, batch_of_traces
from mralign_core.method import FloatArray, IntArray
from mralign_core.method.by_question import permute_between_questions
from mralign_core.method.distances import WeightShift, weight_shift, weighted_distance
from mralign_core.method.set_pairs import SetPairCounts
from mralign_core.method.transitions import TransitionEstimate

MAX_STRATA = 6
"""Strata that are told apart; the smaller ones are put together."""
OTHER_STRATA = "(other)"
NUM_SHUFFLES = 99
SHUFFLE_QUANTILE = 0.95
"""Share of shuffles that a distance must exceed to be called more than chance."""


class Distance(Result):
    """Distance between the matrices of two groups of traces."""

    between: str
    l1: float
    by_chance: float
    """Mean distance when questions are dealt to the groups at random."""
    chance_high: float
    """The :data:`SHUFFLE_QUANTILE` quantile of these distances."""
    p_value: float
    """Share of at least as large distances among the shuffles, the observed one among them."""

    @property
    def beyond_chance(self) -> bool:
        """Whether the distance exceeds what nearly all shuffles give."""
        return self.l1 > self.chance_high


class StratumMove(Result):
    """A move whose probability differs between strata."""

    source: str
    target: str
    p: dict[str, float]
    """By stratum, and of P⁺ and P⁻ as "plus" and "minus"."""


class Strata(Result):
    """Do the weights partly learn the kind of question?"""

    traces: dict[str, dict[str, int]]
    """Stratum → polarity → traces."""
    polarities: Distance | None
    """P⁺ against P⁻, where each polarity has :data:`MIN_STRATUM_TRACES`."""
    within: Distance | None
    """P⁺ against P⁻ of the same stratum, polarities shuffled within each: the mean over strata, by their traces."""
    compared: tuple[str, ...]
    """The strata that this is the mean over: those with :data:`MIN_STRATUM_TRACES` of each polarity."""
    strata: tuple[Distance, ...]
    """P of each stratum against P of all other traces, where either are :data:`MIN_STRATUM_TRACES`."""
    moves: tuple[StratumMove, ...]
    """Moves whose probability differs most between two strata, both of which make them possible often enough."""
    conditioned: tuple[str, ...]
    """Strata with enough traces of both polarities, which can have matrices of their own."""
    conditioned_shift: WeightShift | None
    """What ``reward.condition_on: stratum`` changes in the segments of these strata."""


def compare_strata(
    traces: Sequence[LabelledTrace],
    matrices: TransitionMatrices,
    estimate: EstimateConfig,
    reward: RewardConfig,
    rng: np.random.Generator,
    skipped: dict[str, str],
) -> Strata:
    """Whether matrices differ between polarities and between strata, and P⁺ and P⁻ within strata.

    Args:
        traces: labelled ones.
        matrices: what the estimator made of all traces.
        estimate: how.
        reward: how weights are made of the matrices.
        rng: seeded generator of the shuffles.
        skipped: gets the reason for each part that can't be computed.
    """
    stratum = np.array(_large_strata([trace.stratum for trace in traces]))
    levels = np.unique(stratum).tolist()
    positive = np.array([trace.polarity == "positive" for trace in traces], dtype=np.bool_)
    tally = _tally(traces, len(matrices.state_names), estimate)
    distances = _Distances(tally, matrices.estimates["all"].counts, question_numbers(traces), rng)
    large = _with_enough(stratum, levels, np.ones_like(positive)) if len(levels) > 1 else []
    both = [level for level in _with_enough(stratum, large, positive, ~positive) if level != OTHER_STRATA]
    has_both = min(positive.sum(), (~positive).sum()) >= MIN_STRATUM_TRACES
    if not has_both:
        skipped["polarities"] = f"a polarity has fewer than {MIN_STRATUM_TRACES} labelled traces in the sample"
    skipped |= _why_not_compared(levels, large, both)
    return Strata(
        traces={
            level: {
                name: int((positive[stratum == level] == (name == "positive")).sum()) for name in POLARITY_OF.values()
            }
            for level in levels
        },
        polarities=distances.between("P⁺ and P⁻", positive) if has_both else None,
        within=distances.within("P⁺ and P⁻ within strata", positive, stratum, both) if both else None,
        compared=tuple(both),
        strata=tuple(
            distances.between(f"{level} and the rest", stratum == level)
            # Of two strata, the one is the rest of the other.
            for level in (large[:1] if len(levels) == 2 else large)
            if (stratum != level).sum() >= MIN_STRATUM_TRACES
        ),
        moves=_stratum_moves(tally, stratum, large, matrices),
        conditioned=tuple(matrices.strata),
        conditioned_shift=_conditioned_shift(traces, matrices, reward, skipped) if len(levels) > 1 else None,
    )


def _why_not_compared(levels: Sequence[str], large: Sequence[str], both: Sequence[str]) -> dict[str, str]:
    if len(levels) < 2:
        return {"strata": "all traces are of one stratum: no column of the questions tells one kind from another"}
    few = {
        f"strata.{level}": f"fewer than {MIN_STRATUM_TRACES} traces in the sample" for level in set(levels) - set(large)
    }
    if not both:
        few["strata.within"] = f"no stratum has {MIN_STRATUM_TRACES} traces of both polarities in the sample"
    return dict(sorted(few.items()))


class _Tally(NamedTuple):
    """Transitions by distinct pair of sets: of all traces, of each, (N, U), and the estimator to use on them."""

    pairs: SetPairCounts
    by_trace: IntArray
    estimator: MatrixEstimator

    def fit(self, chosen: NDArray[np.bool_]) -> TransitionEstimate:
        """The estimate from the chosen traces."""
        return self.estimator(self.pairs._replace(multiplicities=chosen.astype(np.int64) @ self.by_trace))


def _tally(traces: Sequence[LabelledTrace], num_states: int, section: EstimateConfig) -> _Tally:
    corpus = count_corpus([batch_of_traces(traces)], num_states, keep_traces=True)
    return _Tally(corpus.pairs(), corpus.pairs_by_trace(), make_matrix_estimator(section, num_states))


def _with_enough(stratum: NDArray[np.str_], levels: Sequence[str], *groups: NDArray[np.bool_]) -> list[str]:
    """Strata with at least :data:`MIN_STRATUM_TRACES` traces of every group."""
    return [
        level for level in levels if all((group & (stratum == level)).sum() >= MIN_STRATUM_TRACES for group in groups)
    ]


class _Distances(NamedTuple):
    """Measures distances between groups of traces."""

    tally: _Tally
    counts: FloatArray
    questions: IntArray
    rng: np.random.Generator

    def between(self, name: str, group: NDArray[np.bool_]) -> Distance:
        """Of a group from all other traces."""
        everywhere = np.ones(len(group), dtype=np.bool_)
        return self._beside_chance(name, group, np.zeros(len(group), dtype=np.int64), [everywhere])

    def within(self, name: str, group: NDArray[np.bool_], stratum: NDArray[np.str_], levels: Sequence[str]) -> Distance:
        """Of a group from the other traces of the same stratum: the mean over strata, by their traces."""
        numbers = np.unique(stratum, return_inverse=True)[1].astype(np.int64)
        return self._beside_chance(name, group, numbers, [stratum == level for level in levels])

    def _beside_chance(
        self, name: str, group: NDArray[np.bool_], strata: IntArray, parts: Sequence[NDArray[np.bool_]]
    ) -> Distance:
        shuffles = (permute_between_questions(group, self.questions, strata, self.rng) for _ in range(NUM_SHUFFLES))
        shuffled = np.array([self._mean(shuffle, parts) for shuffle in shuffles])
        observed = self._mean(group, parts)
        return Distance(
            between=name,
            l1=observed,
            by_chance=float(shuffled.mean()),
            chance_high=float(np.quantile(shuffled, SHUFFLE_QUANTILE, method="higher")),
            # Shuffles that put the groups back differ from the observed one by rounding only.
            p_value=float((1 + np.sum(shuffled >= observed - 1e-9)) / (1 + NUM_SHUFFLES)),
        )

    def _mean(self, group: NDArray[np.bool_], parts: Sequence[NDArray[np.bool_]]) -> float:
        distances = [
            weighted_distance(self.tally.fit(part & group).p, self.tally.fit(part & ~group).p, self.counts)
            for part in parts
        ]
        return float(np.average(distances, weights=[part.sum() for part in parts]))


def _large_strata(names: Sequence[str]) -> list[str]:
    kept = {name for name, _ in Counter(names).most_common(MAX_STRATA)}
    return [name if name in kept else OTHER_STRATA for name in names]


def _stratum_moves(
    tally: _Tally, stratum: NDArray[np.str_], levels: Sequence[str], matrices: TransitionMatrices, num_moves: int = 10
) -> tuple[StratumMove, ...]:
    """Largest differences of probability between strata, where each has left the state often enough."""
    if not levels:
        return ()
    fits = {level: tally.fit(stratum == level) for level in levels}
    p = np.stack([fit.p for fit in fits.values()])
    left = np.stack([fit.counts.sum(axis=1) for fit in fits.values()])
    seen = np.stack([fit.counts for fit in fits.values()]).sum(axis=0) >= MIN_SUPPORT
    often = (left >= MIN_SUPPORT)[:, :, None]
    high, low = np.where(often, p, -np.inf).max(axis=0), np.where(often, p, np.inf).min(axis=0)
    gap = np.where(seen & (often.sum(axis=0) >= 2), high - low, 0.0)
    names = matrices.state_names
    moves = []
    for cell in np.argsort(-gap, axis=None, kind="stable")[:num_moves]:
        a, b = (int(place) for place in np.unravel_index(cell, gap.shape))
        if gap[a, b] > 0:
            by_stratum = {level: float(p[k, a, b]) for k, level in enumerate(levels) if left[k, a] >= MIN_SUPPORT}
            by_class = {name: float(matrices.estimates[name].p[a, b]) for name in POLARITY_OF}
            moves.append(StratumMove(source=names[a], target=names[b], p=by_stratum | by_class))
    return tuple(moves)


def _conditioned_shift(
    traces: Sequence[LabelledTrace], matrices: TransitionMatrices, reward: RewardConfig, skipped: dict[str, str]
) -> WeightShift | None:
    """Shift between the weights of pooled matrices and of each stratum's own, in the strata that have their own."""
    if not matrices.strata:
        skipped["strata.conditioned_shift"] = (
            f"no stratum has {MIN_STRATUM_TRACES} traces of both polarities, so none has weights of its own"
        )
        return None
    batch = batch_of_traces([trace for trace in traces if trace.stratum in matrices.strata])
    pooled, own = (
        labelled_weights(batch, matrices, reward.model_copy(update={"condition_on": choice})).weights
        for choice in ("none", "stratum")
    )
    return weight_shift(pooled, own)
