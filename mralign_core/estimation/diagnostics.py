"""How sure are the transition matrices and the weights? One result with everything that the estimate stage can tell.

What is compared is always what training will see: the weights of the segments. A shift between two sets of weights is
the mean |log w − log w′| over labelled segments, and the share of them on the other side of 1.

Distances between two matrices are L1 distances of rows (0 equal, 2 nothing in common), averaged over rows in
proportion to how often each state is left in all traces. Matrices of few traces are far apart by chance alone, so a
distance between groups of traces stands beside those after shuffling which trace is in which group. Shuffles, folds and
simulations take traces as independent; several of one question may be less so.

Whatever has no need of single traces is computed from the transitions of all; the rest from a random sample of them.

What can't be computed is None, and ``skipped`` says why.

Shapes: K states, N traces, U distinct pairs of label sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.estimation import (
    CLASSES,
    MIN_STRATUM_TRACES,
    POLARITY_OF,
    Corpus,
    Estimator,
    LabelledTrace,
    TraceBatch,
    TransitionMatrices,
    Weigher,
    batch_of_traces,
    count_corpus,
    estimate_corpus,
    make_estimator,
    traces_of_batch,
)
from mralign_core.estimation.chain_tests import OrderComparison, StationarityTest, compare_orders, stationarity_test
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.method.transitions import FloatArray, SetPairCounts, TransitionEstimate

MIN_SUPPORT = 5
"""Soft counts below which an entry says more about the prior than about the traces."""
MIN_TRACES = 20
"""Traces of one polarity below which neither stationarity nor order is tested."""
MAX_TRACES = 2000
"""Traces of one polarity, and of both, that tests and shuffles use; of more, a seeded sample."""
MAX_STRATA = 6
"""Strata that are told apart; the smaller ones are put together."""
OTHER_STRATA = "(other)"
NUM_SHUFFLES = 99
SHUFFLE_QUANTILE = 0.95
"""Share of shuffles that a distance must exceed to be called more than chance."""
DAMPINGS = (0.2, 0.4, 0.6, 0.8, 1.0)
PRIORS = (0.01, 0.1, 1.0, 10.0)
CLIPS = (float(np.exp(0.5)), float(np.e), float(np.exp(1.5)), None)
"""Largest weight, with its inverse the smallest; None leaves ratios as they are."""
_NO_CLIP = 1e300


class Result(BaseModel):
    """Base of the parts: frozen, JSON both ways."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Yield(Result):
    """What one matrix was estimated from."""

    matrix: str
    traces: int
    transitions: int
    unlabelled_steps: int
    unlabelled_traces: int
    states_left: int
    """States left at least :data:`MIN_SUPPORT` times."""
    entries: int
    """Entries with at least :data:`MIN_SUPPORT` soft counts."""
    share_in_entries: float
    """Share of all soft counts that are in such entries."""


class Objective(Result):
    """The MAP objective, log-likelihood plus Dirichlet log-prior, before the first and after each iteration; nats."""

    matrix: str
    configured: tuple[float, ...]
    """As configured; one value where there are no iterations."""
    undamped: tuple[float, ...]
    """Undamped, to convergence, with the same prior."""


class WeightShift(Result):
    """How two sets of weights of the same segments differ."""

    segments: int
    """Labelled segments; the others have weight 1 in both."""
    mean_abs_log: float
    """Mean |log w − log w′|."""
    share_crossing_one: float
    """Share of segments that are on the other side of 1."""


class EstimatorRow(Result):
    """An estimator beside the paper's five damped iterations on up to two labels a segment."""

    estimator: str
    l1: dict[str, float]
    """Distance from the paper's matrix, for each of P⁺, P⁻ and P."""
    shift: WeightShift


class Distance(Result):
    """Distance between the matrices of two groups of traces."""

    between: str
    l1: float
    by_chance: float
    """Mean distance when traces are dealt to groups of these sizes at random."""
    chance_high: float
    """The :data:`SHUFFLE_QUANTILE` quantile of these distances."""

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
    polarities: Distance
    """P⁺ against P⁻."""
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


class SensitivityRow(Result):
    """One setting of the estimator and the clip, against the configured one."""

    damping: float
    prior: float
    clip_min: float | None
    clip_max: float | None
    shift: WeightShift
    share_clipped: float


class Sensitivity(Result):
    """Shift in w over a grid of settings."""

    damping: float
    """The configured value, as are the next three."""
    prior: float
    clip_min: float
    clip_max: float
    grid: tuple[SensitivityRow, ...]

    def along(self, name: str) -> list[SensitivityRow]:
        """Rows in which all but one setting, "damping", "prior" or "clip", are the configured ones, in order."""
        held = {"damping", "prior", "clip"} - {name}
        rows = [row for row in self.grid if all(_setting(row, key) == _setting(self, key) for key in held)]
        if name == "clip":
            return sorted(rows, key=lambda row: row.clip_max or np.inf)
        return sorted(rows, key=lambda row: float(getattr(row, name)))


class Diagnostics(Result):
    """Everything; parts are None where ``skipped`` has the reason under their name."""

    yields: tuple[Yield, ...]
    objectives: tuple[Objective, ...]
    estimators: tuple[EstimatorRow, ...]
    stationarity: dict[str, StationarityTest | None]
    """By polarity."""
    order: dict[str, OrderComparison | None]
    """By polarity."""
    strata: Strata | None
    sensitivity: Sensitivity
    used_traces: dict[str, int]
    """Traces that stationarity and order ("positive", "negative"), strata and shifts in weights were computed on: all
    that have a label, or a seeded sample of :data:`MAX_TRACES`. All else is of all traces."""
    skipped: dict[str, str]

    def to_json(self) -> str:
        """As JSON text."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str) -> Diagnostics:
        """Read what :meth:`to_json` wrote."""
        return cls.model_validate_json(text)


class Survey(NamedTuple):
    """What is known of the annotated traces.

    Args:
        corpus: the transitions of all.
        tested: by polarity, all labelled traces or a random sample of :data:`MAX_TRACES`.
        some: all labelled traces or a random sample of :data:`MAX_TRACES`, polarities as frequent as they are.
    """

    corpus: Corpus
    tested: dict[str, list[LabelledTrace]]
    some: list[LabelledTrace]


class _Drawn(NamedTuple):
    """A labelled trace in its place among all, with the random number by which it is kept or not."""

    key: float
    place: int
    trace: LabelledTrace


def survey_traces(batches: Iterable[TraceBatch], num_states: int, rng: np.random.Generator) -> Survey:
    """Count all transitions and draw the samples, in one pass.

    Args:
        batches: whole traces. The same traces in the same order give the same samples from the same seed, whatever
            their labels, as long as the same ones have any.
        num_states: K.
        rng: seeded generator of the samples.
    """
    drawn: dict[str, list[_Drawn]] = {name: [] for name in POLARITY_OF.values()}

    def drawing() -> Iterator[TraceBatch]:
        place = 0
        for batch in batches:
            for trace in traces_of_batch(batch):
                if any(trace.steps):
                    drawn[trace.polarity].append(_Drawn(rng.random(), place, trace))
                    place += 1
            for name, group in drawn.items():
                drawn[name] = nsmallest(MAX_TRACES, group)
            yield batch

    corpus = count_corpus(drawing(), num_states)
    # The smallest numbers of all are among the smallest of each polarity.
    some = nsmallest(MAX_TRACES, [one for group in drawn.values() for one in group])
    return Survey(corpus, {name: _in_order(group) for name, group in drawn.items()}, _in_order(some))


def _in_order(drawn: Sequence[_Drawn]) -> list[LabelledTrace]:
    return [one.trace for one in sorted(drawn, key=lambda one: one.place)]


def diagnose(
    surveys: Mapping[str, Survey],
    matrices: TransitionMatrices,
    estimate: EstimateConfig,
    reward: RewardConfig,
    rng: np.random.Generator,
    *,
    taxonomy: Taxonomy,
) -> Diagnostics:
    """Everything that can be said about matrices and weights from the traces they were estimated from.

    Args:
        surveys: the traces with up to "two" labels a segment, and with "one"; the samples are of the same traces.
        matrices: what the estimator made of those with ``estimate.labels_per_segment``.
        estimate: how.
        reward: how weights are made of the matrices.
        rng: seeded generator of folds, permutations, simulations and bootstraps.
        taxonomy: the labels.
    """
    skipped: dict[str, str] = {}
    survey = surveys[estimate.labels_per_segment]
    return Diagnostics(
        yields=_yields(survey.corpus, matrices),
        objectives=_objectives(survey.corpus, matrices, estimate),
        estimators=compare_estimators(surveys, reward, taxonomy),
        stationarity={
            name: _stationarity(name, group, taxonomy, rng, skipped) for name, group in survey.tested.items()
        },
        order={name: _order(name, group, rng, skipped) for name, group in survey.tested.items()},
        strata=_strata(survey.some, matrices, estimate, reward, rng, skipped),
        sensitivity=weight_sensitivity(survey, estimate, reward, taxonomy=taxonomy),
        used_traces={
            **{name: len(group) for name, group in survey.tested.items()},
            "strata and weights": len(survey.some),
        },
        skipped=skipped,
    )


def weighted_l1(p: FloatArray, q: FloatArray, counts: FloatArray) -> float:
    """L1 distance of the rows of two matrices, averaged in proportion to the row sums of ``counts``.

    >>> weighted_l1(np.array([[1.0, 0], [0, 1]]), np.array([[0.5, 0.5], [0, 1]]), np.array([[3.0, 0], [0, 1]]))
    0.75
    """
    rows = counts.sum(axis=1)
    return float(rows @ np.abs(p - q).sum(axis=1) / max(float(rows.sum()), 1e-300))


def weight_shift(weights: FloatArray, others: FloatArray) -> WeightShift:
    """Shift between two sets of weights of the same labelled segments.

    >>> weight_shift(np.array([2.0, 0.5]), np.array([2.0, 2.0])).share_crossing_one
    0.5
    """
    if not len(weights):
        return WeightShift(segments=0, mean_abs_log=0.0, share_crossing_one=0.0)
    one, other = np.log(weights), np.log(others)
    crossing = np.mean(one * other < 0)
    return WeightShift(
        segments=len(weights), mean_abs_log=float(np.mean(np.abs(one - other))), share_crossing_one=float(crossing)
    )


def compare_estimators(
    surveys: Mapping[str, Survey], reward: RewardConfig, taxonomy: Taxonomy
) -> tuple[EstimatorRow, ...]:
    """The paper's five damped EM iterations beside EM to convergence, the frequency estimate and single labels.

    The yardstick has up to two labels a segment whatever the run is configured to have. Matrices are of all traces;
    shifts are over the segments of the sample.

    Args:
        surveys: the traces with up to "two" labels a segment, and with "one".
        reward: how weights are made of matrices.
        taxonomy: the labels.
    """
    plain: dict[str, tuple[Survey, EstimateConfig]] = {
        "paper": (surveys["two"], EstimateConfig()),
        "converged": (surveys["two"], EstimateConfig(estimator="em_converged")),
        "frequency": (surveys["two"], EstimateConfig(estimator="frequency")),
        "single label": (surveys["one"], EstimateConfig()),
    }
    made, weights = {}, {}
    for name, (survey, section) in plain.items():
        made[name] = estimate_corpus(survey.corpus, section, taxonomy)
        weights[name] = _weigh(batch_of_traces(survey.some), made[name], reward).weights
    paper = made["paper"].estimates
    return tuple(
        EstimatorRow(
            estimator=name,
            l1={key: weighted_l1(paper[key].p, made[name].estimates[key].p, paper["all"].counts) for key in CLASSES},
            shift=weight_shift(weights["paper"], weights[name]),
        )
        for name in plain
    )


def weight_sensitivity(
    survey: Survey,
    estimate: EstimateConfig,
    reward: RewardConfig,
    *,
    taxonomy: Taxonomy,
) -> Sensitivity:
    """Shift in w when the damping, the prior or the clip is another one, over their whole grid.

    Matrices are estimated from all traces; shifts are over the segments of the sample.

    Args:
        survey: the traces as the estimator saw them.
        estimate: the configured estimator.
        reward: the configured weights.
        taxonomy: the labels.
    """
    corpus, batch = survey.corpus, batch_of_traces(survey.some)
    configured = _weigh(batch, estimate_corpus(corpus, estimate, taxonomy), reward).weights
    clips = {(1 / clip, clip) if clip else (None, None) for clip in CLIPS} | {(reward.clip_min, reward.clip_max)}
    rows = []
    for damping, prior in product({*DAMPINGS, estimate.damping}, {*PRIORS, estimate.prior}):
        section = estimate.model_copy(update={"damping": damping, "prior": prior})
        matrices = estimate_corpus(corpus, section, taxonomy)
        for low, high in clips:
            bounds = {"clip_min": low or 1 / _NO_CLIP, "clip_max": high or _NO_CLIP}
            weighed = _weigh(batch, matrices, reward.model_copy(update=bounds))
            shift = weight_shift(configured, weighed.weights)
            setting = {"damping": damping, "prior": prior, "clip_min": low, "clip_max": high}
            rows.append(SensitivityRow(**setting, shift=shift, share_clipped=weighed.share_clipped))
    rows.sort(key=lambda row: (row.damping, row.prior, row.clip_max or np.inf))
    return Sensitivity(
        damping=estimate.damping,
        prior=estimate.prior,
        clip_min=reward.clip_min,
        clip_max=reward.clip_max,
        grid=tuple(rows),
    )


def _setting(row: SensitivityRow | Sensitivity, name: str) -> object:
    return (row.clip_min, row.clip_max) if name == "clip" else getattr(row, name)


_NO_INTERVALS = 0.0
"""Coverage where there are no draws to make intervals of."""


class _Weighed(NamedTuple):
    """Weights of all segments of a batch, 1 where there is no label, and the share of labelled ones that is clipped."""

    weights: FloatArray
    share_clipped: float


def _weigh(batch: TraceBatch, matrices: TransitionMatrices, reward: RewardConfig) -> _Weighed:
    weigher = Weigher(matrices._replace(draws={}, strata_draws={}), reward, confidence=_NO_INTERVALS)
    weights = np.asarray(weigher.weigh(batch)["weight"], dtype=np.float64)
    has_label = (batch.labels[:, 0] > 0)[batch.step_of_segment]
    share = weigher.counts["clipped"] / max(int(has_label.sum()), 1)
    # An unlabelled segment has weight 1 whatever the matrices are.
    return _Weighed(weights[has_label], share)


def _yields(corpus: Corpus, matrices: TransitionMatrices) -> tuple[Yield, ...]:
    rows = []
    for name in CLASSES:
        pairs, counts = corpus.pairs(POLARITY_OF.get(name)), matrices.estimates[name].counts
        supported = counts >= MIN_SUPPORT
        rows.append(
            Yield(
                matrix=name,
                traces=pairs.num_traces,
                transitions=pairs.num_transitions,
                unlabelled_steps=pairs.num_empty_steps,
                unlabelled_traces=pairs.num_empty_traces,
                states_left=int((counts.sum(axis=1) >= MIN_SUPPORT).sum()),
                entries=int(supported.sum()),
                share_in_entries=float(counts[supported].sum() / max(float(counts.sum()), 1e-300)),
            )
        )
    return tuple(rows)


def _objectives(corpus: Corpus, matrices: TransitionMatrices, section: EstimateConfig) -> tuple[Objective, ...]:
    converge = make_estimator(EstimateConfig(estimator="em_converged", prior=section.prior), corpus.num_states)
    return tuple(
        Objective(
            matrix=name,
            configured=tuple(matrices.estimates[name].log_posterior.tolist()),
            undamped=tuple(converge(corpus.pairs(POLARITY_OF.get(name))).log_posterior.tolist()),
        )
        for name in CLASSES
    )


def _stationarity(
    polarity: str,
    traces: Sequence[LabelledTrace],
    taxonomy: Taxonomy,
    rng: np.random.Generator,
    skipped: dict[str, str],
) -> StationarityTest | None:
    long_enough = [trace.steps for trace in traces if sum(map(bool, trace.steps)) >= 3]
    if len(long_enough) < MIN_TRACES:
        skipped[f"stationarity.{polarity}"] = (
            f"too few: {len(long_enough)} {polarity} traces have two transitions between labels, "
            f"and fewer than {MIN_TRACES} tell nothing"
        )
        return None
    return stationarity_test([trace.steps for trace in traces], taxonomy.num_states, rng)


def _order(
    polarity: str, traces: Sequence[LabelledTrace], rng: np.random.Generator, skipped: dict[str, str]
) -> OrderComparison | None:
    if len(traces) < MIN_TRACES:
        skipped[f"order.{polarity}"] = (
            f"too few: {len(traces)} {polarity} traces have a label, and fewer than {MIN_TRACES} tell nothing"
        )
        return None
    return compare_orders([trace.steps for trace in traces], rng)


class _Tally(NamedTuple):
    """Transitions by distinct pair of sets: of all traces, of each, (N, U), and the estimator to use on them."""

    pairs: SetPairCounts
    by_trace: NDArray[np.int64]
    estimator: Estimator

    def fit(self, chosen: NDArray[np.bool_]) -> TransitionEstimate:
        """The estimate from the chosen traces."""
        return self.estimator(self.pairs._replace(multiplicities=chosen.astype(np.int64) @ self.by_trace))


def _tally(traces: Sequence[LabelledTrace], num_states: int, section: EstimateConfig) -> _Tally:
    walks = [[(0,), *(tuple(sorted(step)) for step in trace.steps if step), (num_states - 1,)] for trace in traces]
    ids: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    rows = [[ids.setdefault(pair, len(ids)) for pair in pairwise(walk)] for walk in walks]
    by_trace = np.array([np.bincount(row, minlength=len(ids)) for row in rows], dtype=np.int64)
    sources, targets = (_membership([pair[side] for pair in ids], num_states) for side in (0, 1))
    pairs = SetPairCounts(sources, targets, by_trace.sum(axis=0), len(traces), 0, 0)
    return _Tally(pairs, by_trace, make_estimator(section, num_states))


def _membership(sets: Sequence[tuple[int, ...]], num_states: int) -> NDArray[np.bool_]:
    member = np.zeros((len(sets), num_states), dtype=np.bool_)
    for row, states in enumerate(sets):
        member[row, list(states)] = True
    return member


def _strata(
    traces: Sequence[LabelledTrace],
    matrices: TransitionMatrices,
    estimate: EstimateConfig,
    reward: RewardConfig,
    rng: np.random.Generator,
    skipped: dict[str, str],
) -> Strata | None:
    stratum = np.array(_large_strata([trace.stratum for trace in traces]))
    levels = np.unique(stratum).tolist()
    if len(levels) < 2:
        skipped["strata"] = "all traces are of one stratum: no column of the questions tells one kind from another"
        return None
    positive = np.array([trace.polarity == "positive" for trace in traces])
    if min(positive.sum(), (~positive).sum()) < MIN_STRATUM_TRACES:
        skipped["strata"] = f"a polarity has fewer than {MIN_STRATUM_TRACES} labelled traces in the sample"
        return None
    tally = _tally(traces, len(matrices.state_names), estimate)
    distances = _Distances(tally, matrices.estimates["all"].counts, rng)
    large = _with_enough(stratum, levels, np.ones_like(positive))
    both = [level for level in _with_enough(stratum, levels, positive, ~positive) if level != OTHER_STRATA]
    if not both:
        skipped["strata.within"] = f"no stratum has {MIN_STRATUM_TRACES} traces of both polarities in the sample"
    for level in sorted(set(levels) - set(large)):
        skipped[f"strata.{level}"] = f"fewer than {MIN_STRATUM_TRACES} traces in the sample"
    return Strata(
        traces={
            level: {
                name: int((positive[stratum == level] == (name == "positive")).sum()) for name in POLARITY_OF.values()
            }
            for level in levels
        },
        polarities=distances.between("P⁺ and P⁻", positive),
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
        conditioned_shift=_conditioned_shift(traces, matrices, reward, skipped),
    )


def _with_enough(stratum: NDArray[np.str_], levels: Sequence[str], *groups: NDArray[np.bool_]) -> list[str]:
    """Strata with at least :data:`MIN_STRATUM_TRACES` traces of every group."""
    return [
        level for level in levels if all((group & (stratum == level)).sum() >= MIN_STRATUM_TRACES for group in groups)
    ]


class _Distances(NamedTuple):
    """Measures distances between groups of traces."""

    tally: _Tally
    counts: FloatArray
    rng: np.random.Generator

    def between(self, name: str, group: NDArray[np.bool_]) -> Distance:
        """Of a group from all other traces."""
        everywhere = np.ones(len(group), dtype=np.bool_)
        return self._beside_chance(name, group, [everywhere])

    def within(self, name: str, group: NDArray[np.bool_], stratum: NDArray[np.str_], levels: Sequence[str]) -> Distance:
        """Of a group from the other traces of the same stratum: the mean over strata, by their traces."""
        return self._beside_chance(name, group, [stratum == level for level in levels])

    def _beside_chance(self, name: str, group: NDArray[np.bool_], parts: Sequence[NDArray[np.bool_]]) -> Distance:
        shuffled = [self._mean(_shuffle(group, parts, self.rng), parts) for _ in range(NUM_SHUFFLES)]
        return Distance(
            between=name,
            l1=self._mean(group, parts),
            by_chance=float(np.mean(shuffled)),
            chance_high=float(np.quantile(shuffled, SHUFFLE_QUANTILE, method="higher")),
        )

    def _mean(self, group: NDArray[np.bool_], parts: Sequence[NDArray[np.bool_]]) -> float:
        distances = [
            weighted_l1(self.tally.fit(part & group).p, self.tally.fit(part & ~group).p, self.counts) for part in parts
        ]
        return float(np.average(distances, weights=[part.sum() for part in parts]))


def _large_strata(names: Sequence[str]) -> list[str]:
    kept = {name for name, _ in Counter(names).most_common(MAX_STRATA)}
    return [name if name in kept else OTHER_STRATA for name in names]


def _shuffle(
    group: NDArray[np.bool_], parts: Sequence[NDArray[np.bool_]], rng: np.random.Generator
) -> NDArray[np.bool_]:
    shuffled = group.copy()
    for part in parts:
        shuffled[part] = rng.permutation(group[part])
    return shuffled


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
        _weigh(batch, matrices, reward.model_copy(update={"condition_on": choice})).weights
        for choice in ("none", "stratum")
    )
    return weight_shift(pooled, own)
