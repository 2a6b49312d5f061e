"""Is one first-order matrix enough? Tests of the two assumptions behind the transition matrices of §3.2.2.

The paper leaves both untested: that P does not change along a trace (stationarity), and that the next state depends
on the present one only (order one). Everything here is an addition to it.

Decisions:

* Stationarity compares label → label transitions of the first and the second half of each trace. <start> → and
  → <stop> are left out: each belongs to one half by construction. Of an odd number, the middle one is left out.
* Sets of two labels enter through Eq. 6. Without a prior, the likelihood is concave in P, so plain EM from the uniform
  matrix reaches its maximum; where several matrices reach it, the maximum is still one number.
* Where the halves part depends on where the trace stops. A chain with one and the same P is found in the states that
  lead to <stop> as its end comes near, so its halves differ although P does not. The χ² and permutation p-values take
  that for a change of P (in 70 to 100 % of simulated corpora at a nominal 10 %, where the chance of stopping differs by
  label); the simulated p-value, from traces of a chain with one P, does not.
* Order compares held-out log-likelihoods of transitions that have two predecessors, {<start>} → y₁ being one. Its
  states are whole label sets. With labels as states, a longer context would tell which set the present label came
  from, and a first-order chain of sets would seem to have memory. So it is the order of the chain of sets that is
  tested: Eq. 6, first-order in labels, is one such chain of order one.
* The gain of the second order is compared with that of traces simulated from a first-order chain of sets fitted to the
  same traces, since how much a second order loses by its sparser counts depends on the traces.

Shapes: N traces, U distinct pairs of label sets, H tables of multiplicities, K states, T transitions, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mralign_core.method.transitions import FloatArray

IntArray = NDArray[np.int64]
Traces = Sequence[Sequence[Sequence[int]]]
Progress = Callable[[int, int], None]

MIN_COUNT = 0.01
"""Soft counts below which a transition has not been seen, and takes no degree of freedom."""
_CHUNK = 64
"""Resamples whose EM runs together."""


@dataclass(frozen=True)
class StationarityTest:
    """Likelihood-ratio test of "P is the same in both halves of a trace".

    Args:
        num_traces: traces with at least two label → label transitions, which are those that have halves.
        num_transitions: transitions compared.
        statistic: 2 (log-likelihood with a matrix a half − with one matrix).
        degrees_of_freedom: over states left in both halves, the states entered from them anywhere, less one.
        chi2_p_value: upper tail of χ² at the statistic; too small on sparse tables.
        permutation_p_value: share of at least as large statistics when the halves of whole traces are swapped at
            random. Assumes that a trace's two halves could change places: no P changes, and no end effect.
        simulated_p_value: share of at least as large statistics, each standardised by its own degrees of freedom,
            among traces simulated from one first-order chain of label sets with <start> and <stop>. Assumes that this
            chain, fitted to the traces, is the true one; it is sparser than the truth, hence the standardising. The
            one to trust.
        num_resamples: permutations, and simulations.
    """

    num_traces: int
    num_transitions: int
    statistic: float
    degrees_of_freedom: int
    chi2_p_value: float
    permutation_p_value: float
    simulated_p_value: float
    num_resamples: int


@dataclass(frozen=True)
class OrderComparison:
    """Held-out log-likelihood of chains of label sets of order zero, one and two, in nats a transition.

    Args:
        num_traces: traces with a transition that has two predecessors.
        num_transitions: such transitions.
        num_sets: distinct label sets, each a state.
        num_folds: folds of whole traces.
        kappa: pseudo-counts with which each order leans on the one below.
        zeroth: mean held-out log-likelihood without memory.
        first: of the first-order chain.
        second: of the second-order chain.
        gain: second − first; above 0 the second order predicts better.
        gain_low: lower end of its bootstrap interval over traces.
        gain_high: upper end.
        confidence: coverage of the interval.
        simulated_p_value: share of at least as large gains among traces simulated from one first-order chain of sets.
            A small one says that something before the present set matters: the set before it, or what kind of trace
            it is.
        num_simulations: such sets of traces.
    """

    num_traces: int
    num_transitions: int
    num_sets: int
    num_folds: int
    kappa: float
    zeroth: float
    first: float
    second: float
    gain: float
    gain_low: float
    gain_high: float
    confidence: float
    simulated_p_value: float
    num_simulations: int


class Halves(NamedTuple):
    """Label → label transitions of both halves, by distinct pair of label sets.

    Args:
        sources: (U, K) bool, membership in the set that is left.
        targets: (U, K) bool, membership in the set that is entered.
        first: (N, U) transitions in the first half of each trace.
        second: (N, U) transitions in the second half.
    """

    sources: NDArray[np.bool_]
    targets: NDArray[np.bool_]
    first: IntArray
    second: IntArray


def chi2_tail(statistic: float, degrees_of_freedom: int) -> float:
    """Probability that χ² with so many degrees of freedom is at least as large.

    >>> round(chi2_tail(3.841, 1), 3), chi2_tail(0.0, 4), chi2_tail(1.0, 0)
    (0.05, 1.0, 1.0)
    """
    if degrees_of_freedom < 1 or statistic <= 0:
        return 1.0
    half = torch.tensor([degrees_of_freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def split_halves(traces: Traces, num_states: int) -> Halves:
    """Count the label → label transitions of each half of each trace that has at least two.

    Args:
        traces: per trace, per step, the state indices of its labels; steps without any are skipped.
        num_states: K.

    >>> halves = split_halves([[(1,), (2,), (1,), (2,)], [(1,), (2,)]], num_states=4)
    >>> halves.first.tolist(), halves.second.tolist()  # 1→2, 2→1, 1→2: the middle one is left out
    ([[1]], [[1]])
    """
    walks = [_labelled(trace) for trace in traces]
    ids: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    rows = []
    for walk in (walk for walk in walks if len(walk) >= 3):
        pairs = list(pairwise(walk))
        half = len(pairs) // 2
        parts = pairs[:half], pairs[-half:]
        rows.append(tuple([ids.setdefault(pair, len(ids)) for pair in part] for part in parts))
    first, second = (
        np.array([np.bincount(row[side], minlength=len(ids)) for row in rows], dtype=np.int64).reshape(
            len(rows), len(ids)
        )
        for side in (0, 1)
    )
    sides = ([pair[side] for pair in ids] for side in (0, 1))
    sources, targets = (_membership(sets, num_states) for sets in sides)
    return Halves(sources, targets, first, second)


def max_log_likelihoods(
    sources: NDArray[np.bool_],
    targets: NDArray[np.bool_],
    multiplicities: FloatArray,
    *,
    tolerance: float = 1e-4,
    num_iterations: int = 1000,
) -> tuple[FloatArray, FloatArray]:
    """Largest log-likelihood (Eq. 8) over all matrices, for several tables of the same pairs at once.

    Undamped EM without prior from the uniform matrix, until no table gains ``tolerance`` nats an iteration. Factors
    ρ are left out: they are the same for every matrix.

    Args:
        sources: (U, K) bool.
        targets: (U, K) bool.
        multiplicities: (H, U) transitions of each pair in each table.
        tolerance: nats.
        num_iterations: most iterations.

    Returns:
        (H,) log-likelihoods, and (H, K, K) soft counts.

    >>> one, two = np.eye(2, dtype=bool)
    >>> log_likelihoods, counts = max_log_likelihoods(np.array([one, one]), np.array([one, two]), np.array([[1.0, 3]]))
    >>> round(float(log_likelihoods[0]), 4), counts[0].tolist()  # 1 log ¼ + 3 log ¾
    (-2.2493, [[1.0, 3.0], [0.0, 0.0]])
    """
    num_states = sources.shape[1]
    pair_of_path, cell_of_path = _paths(sources, targets)
    times_UH = torch.tensor(np.ascontiguousarray(multiplicities.T), dtype=torch.float64)
    p_CH = torch.full((num_states**2, len(multiplicities)), 1 / num_states, dtype=torch.float64)
    last = torch.full((len(multiplicities),), -torch.inf, dtype=torch.float64)
    for _ in range(num_iterations):
        sums_UH = torch.zeros_like(times_UH).index_add_(0, pair_of_path, p_CH[cell_of_path])
        reached = torch.special.xlogy(times_UH, sums_UH).sum(dim=0)
        shares_UH = times_UH / sums_UH
        shares_UH[times_UH == 0] = 0
        counts_CH = p_CH * torch.zeros_like(p_CH).index_add_(0, cell_of_path, shares_UH[pair_of_path])
        if bool((reached - last < tolerance).all()):
            break
        last = reached
        counts_KKH = counts_CH.reshape(num_states, num_states, -1)
        p_CH = (counts_KKH / counts_KKH.sum(dim=1, keepdim=True).clamp_min(1e-300)).reshape(p_CH.shape)
    return reached.numpy(), counts_CH.T.reshape(-1, num_states, num_states).numpy()


def stationarity_test(
    traces: Traces,
    num_states: int,
    rng: np.random.Generator,
    *,
    num_resamples: int = 199,
    on_progress: Progress | None = None,
) -> StationarityTest:
    """Test whether P is the same in the first and the second half of traces; see the module on what is trusted.

    Args:
        traces: per trace, per step, the state indices of its labels.
        num_states: K.
        rng: seeded generator of permutations and simulations.
        num_resamples: of each.
        on_progress: called with resamples done and in all.

    Raises:
        ValueError: no trace has two label → label transitions.

    >>> changing = [[(1,), (1,), (1,), (2,), (1,), (2,), (1,)]] * 30
    >>> result = stationarity_test(changing, 4, np.random.default_rng(0), num_resamples=19)
    >>> result.num_transitions, result.degrees_of_freedom, result.permutation_p_value
    (180, 1, 0.05)
    """
    halves = split_halves(traces, num_states)
    if not len(halves.first):
        raise ValueError("no trace has two label → label transitions, so none has halves to compare")
    done = _Progress(on_progress, 2 * num_resamples)
    pairs = halves.sources, halves.targets
    observed = _statistics(*pairs, np.stack([halves.first.sum(axis=0), halves.second.sum(axis=0)])[None])
    swap = rng.integers(2, size=(num_resamples, len(halves.first)))
    moved = swap @ (halves.second - halves.first)
    tables = np.stack([halves.first.sum(axis=0) + moved, halves.second.sum(axis=0) - moved], axis=1)
    permuted = _chunked(lambda part: _statistics(*pairs, part), tables, done)
    simulated = _simulated_statistics(traces, num_states, rng, num_resamples, done)
    statistic, freedom = float(observed.values[0]), int(observed.degrees_of_freedom[0])
    return StationarityTest(
        num_traces=len(halves.first),
        num_transitions=int(halves.first.sum() + halves.second.sum()),
        statistic=statistic,
        degrees_of_freedom=freedom,
        chi2_p_value=chi2_tail(statistic, freedom),
        permutation_p_value=_p_value(statistic, permuted.values),
        simulated_p_value=_p_value(float(observed.standardised[0]), simulated.standardised),
        num_resamples=num_resamples,
    )


def compare_orders(
    traces: Traces,
    rng: np.random.Generator,
    *,
    num_folds: int = 10,
    kappa: float = 10.0,
    prior: float = 0.1,
    num_resamples: int = 1000,
    num_simulations: int = 199,
    confidence: float = 0.95,
) -> OrderComparison:
    """Compare chains of label sets of order zero, one and two by held-out log-likelihood over folds of whole traces.

    With C the counts of the other folds: P(c) ∝ C_c + prior, P(c | b) ∝ C_bc + kappa · P(c), and
    P(c | a, b) ∝ C_abc + kappa · P(c | b).

    Args:
        traces: per trace, per step, the state indices of its labels.
        rng: seeded generator of the folds, the bootstrap and the simulations.
        num_folds: folds; each trace is held out once.
        kappa: pseudo-counts of the lower order in each row of the higher one.
        prior: pseudo-count of each label set, and of <stop>.
        num_resamples: bootstrap resamples of traces.
        num_simulations: simulated sets of as many traces.
        confidence: coverage of the interval.

    Raises:
        ValueError: there are fewer traces than folds.

    >>> cycle = [[(1,), (1,), (2,), (2,)] * 3] * 10  # what follows 1 depends on what came before it
    >>> result = compare_orders(cycle, np.random.default_rng(0), num_folds=2, num_resamples=99, num_simulations=19)
    >>> result.num_transitions, result.gain_low > 0.1, result.simulated_p_value
    (120, True, 0.05)
    """
    chain, walks = _fit_set_chain(traces)
    if len(walks) < num_folds:
        raise ValueError(f"{len(walks)} traces are fewer than the {num_folds} folds they are to be held out in")
    settings = _Smoothing(chain.stop, num_folds, prior, kappa)
    triples = _triples(walks)
    scores_T3 = _held_out(triples, settings, rng)
    zeroth, first, second = (float(mean) for mean in scores_T3.mean(axis=0))
    low, high = _ratio_interval(scores_T3[:, 2] - scores_T3[:, 1], triples, rng, num_resamples, confidence)
    simulated = [_held_out(_simulate_triples(chain, rng), settings, rng).mean(axis=0) for _ in range(num_simulations)]
    gains = np.array([by_order[2] - by_order[1] for by_order in simulated])
    return OrderComparison(
        num_traces=len(walks),
        num_transitions=len(scores_T3),
        num_sets=chain.stop - 1,
        num_folds=num_folds,
        kappa=kappa,
        zeroth=zeroth,
        first=first,
        second=second,
        gain=second - first,
        gain_low=low,
        gain_high=high,
        confidence=confidence,
        simulated_p_value=_p_value(second - first, gains, tie=1e-9),
        num_simulations=num_simulations,
    )


class _Progress:
    """Adds up the resamples done for a callback."""

    def __init__(self, on_progress: Progress | None, total: int) -> None:
        self._on_progress, self._total, self._done = on_progress, total, 0

    def add(self, number: int) -> None:
        self._done += number
        if self._on_progress:
            self._on_progress(self._done, self._total)


def _labelled(trace: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    return [tuple(sorted({int(state) for state in step})) for step in trace if len(step)]


def _membership(sets: Sequence[tuple[int, ...]], num_states: int) -> NDArray[np.bool_]:
    member = np.zeros((len(sets), num_states), dtype=np.bool_)
    for row, states in enumerate(sets):
        member[row, list(states)] = True
    return member


def _paths(sources: NDArray[np.bool_], targets: NDArray[np.bool_]) -> tuple[torch.Tensor, torch.Tensor]:
    """Every base pair of every pair of sets: which pair of sets it is of, and its cell in a flat matrix."""
    pair, source, target = np.nonzero(sources[:, :, None] & targets[:, None, :])
    return torch.tensor(pair), torch.tensor(source * sources.shape[1] + target)


class _Statistics(NamedTuple):
    """Likelihood-ratio statistics and their degrees of freedom, each (R,)."""

    values: FloatArray
    degrees_of_freedom: IntArray

    @property
    def standardised(self) -> FloatArray:
        """Less their mean and over their standard deviation, had they been χ²."""
        freedom = np.maximum(self.degrees_of_freedom, 1)
        standardised: FloatArray = (self.values - freedom) / np.sqrt(2 * freedom)
        return standardised


def _statistics(sources: NDArray[np.bool_], targets: NDArray[np.bool_], tables: IntArray) -> _Statistics:
    """Statistics of tables of both halves, (R, 2, U)."""
    three = np.concatenate([tables, tables.sum(axis=1, keepdims=True)], axis=1).astype(np.float64)
    flat, counts = max_log_likelihoods(sources, targets, three.reshape(-1, three.shape[-1]))
    first, second, pooled = flat.reshape(-1, 3).T
    freedom = _degrees_of_freedom(counts.reshape(len(tables), 3, *counts.shape[1:]))
    return _Statistics(np.maximum(2 * (first + second - pooled), 0.0), freedom)


def _degrees_of_freedom(counts: FloatArray) -> IntArray:
    """Over rows with counts in both halves, the cells that have any in the pooled table, less one.

    Args:
        counts: (R, 3, K, K) soft counts of the first half, the second, and both.
    """
    in_both = (counts[:, :2].sum(axis=3) > MIN_COUNT).all(axis=1)
    cells = (counts[:, 2] > MIN_COUNT).sum(axis=2)
    freedom: IntArray = ((cells - 1) * in_both).sum(axis=1)
    return freedom


def _p_value(observed: float, resampled: FloatArray, tie: float = 1e-3) -> float:
    """Share at least as large, the observed one among them; ties count, by default up to what EM leaves open."""
    return float((1 + np.sum(resampled >= observed - tie)) / (1 + len(resampled)))


def _chunked(compute: Callable[[IntArray], _Statistics], tables: IntArray, done: _Progress) -> _Statistics:
    parts = []
    for start in range(0, len(tables), _CHUNK):
        parts.append(compute(tables[start : start + _CHUNK]))
        done.add(len(parts[-1].values))
    return _Statistics(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class _SetChain(NamedTuple):
    """The first-order chain of whole label sets that traces follow, <start> and <stop> included.

    Args:
        names: the label sets; set number 0 is <start>, these have 1 and up, and the one after them is <stop>.
        successors: sets that followed, with repetitions, grouped by the set before.
        offset: where the group of each set begins.
        size: how many there are in it.
        num_walks: traces it was made from.
    """

    names: list[tuple[int, ...]]
    successors: IntArray
    offset: IntArray
    size: IntArray
    num_walks: int

    @property
    def stop(self) -> int:
        """The set number of <stop>."""
        return len(self.names) + 1


class _Move(NamedTuple):
    """One step of the simulated walks that have not stopped: which they are, the set left, the set entered."""

    walk: IntArray
    left: IntArray
    entered: IntArray


def _fit_set_chain(traces: Traces) -> tuple[_SetChain, list[IntArray]]:
    """The chain, and the traces with a label as walks over set numbers, from <start> to <stop>."""
    labelled = [walk for walk in (_labelled(trace) for trace in traces) if walk]
    names = sorted({step for walk in labelled for step in walk})
    number = {step: place for place, step in enumerate(names, start=1)}
    stop = len(names) + 1
    walks = [np.array([0, *(number[step] for step in walk), stop], dtype=np.int64) for walk in labelled]
    left, entered = (_joined([walk[side] for walk in walks]) for side in (slice(None, -1), slice(1, None)))
    size = np.bincount(left, minlength=stop + 1)
    offset = np.cumsum(size) - size
    return _SetChain(names, entered[np.argsort(left, kind="stable")], offset, size, len(walks)), walks


def _simulate_moves(chain: _SetChain, num_walks: int, rng: np.random.Generator) -> Iterator[_Move]:
    """Walk from <start> until all have entered <stop>."""
    walk, left = np.arange(num_walks), np.zeros(num_walks, dtype=np.int64)
    while len(walk):
        entered = chain.successors[chain.offset[left] + rng.integers(chain.size[left])]
        yield _Move(walk, left, entered)
        goes_on = entered < chain.stop
        walk, left = walk[goes_on], entered[goes_on]


def _simulated_statistics(
    traces: Traces, num_states: int, rng: np.random.Generator, num_resamples: int, done: _Progress
) -> _Statistics:
    """Statistics of sets of traces simulated from one chain, with fresh halves."""
    chain, walks = _fit_set_chain(traces)
    pairs = np.unique(np.concatenate([np.stack([walk[1:-2], walk[2:-1]], axis=1) for walk in walks]), axis=0)
    member = _membership([(), *chain.names, ()], num_states)
    sources, targets = member[pairs[:, 0]], member[pairs[:, 1]]

    def simulate(part: IntArray) -> _Statistics:
        return _statistics(sources, targets, _simulate_tables(chain, pairs, len(part), rng))

    return _chunked(simulate, np.zeros((num_resamples, 1), dtype=np.int64), done)


def _simulate_tables(chain: _SetChain, pairs: IntArray, num_resamples: int, rng: np.random.Generator) -> IntArray:
    """Walk from <start> to <stop> as often as there are traces; tables of the halves over (U, 2) pairs, (R, 2, U)."""
    pair_id = np.full((chain.stop + 1, chain.stop + 1), -1, dtype=np.int64)
    pair_id[pairs[:, 0], pairs[:, 1]] = np.arange(len(pairs))
    length = np.zeros(num_resamples * chain.num_walks, dtype=np.int64)
    inner: list[tuple[IntArray, IntArray]] = []
    for move in _simulate_moves(chain, len(length), rng):
        between = (move.left > 0) & (move.entered < chain.stop)
        inner.append((move.walk[between], pair_id[move.left[between], move.entered[between]]))
        length[move.walk[between]] += 1
    tables = np.zeros((num_resamples, 2, len(pairs)), dtype=np.int64)
    # The first move, out of <start>, is no label → label transition: the one made at step s has place s - 1.
    for place, (walk, pair) in enumerate(inner[1:]):
        half = length[walk] // 2
        for side, within in enumerate((place < half, place >= length[walk] - half)):
            np.add.at(tables, (walk[within] // chain.num_walks, side, pair[within]), 1)
    return tables


class _Triples(NamedTuple):
    """Transitions with two predecessors: set numbers, each (T,), and which trace they are of, (T,)."""

    before: IntArray
    source: IntArray
    target: IntArray
    trace: IntArray
    num_traces: int


class _Smoothing(NamedTuple):
    """How held-out probabilities are made; ``num_targets`` are the sets that can be entered, <stop> among them."""

    num_targets: int
    num_folds: int
    prior: float
    kappa: float


def _triples(walks: Sequence[IntArray]) -> _Triples:
    before, source, target = (_joined([walk[shift : len(walk) - 2 + shift] for walk in walks]) for shift in range(3))
    trace = np.repeat(np.arange(len(walks)), [len(walk) - 2 for walk in walks])
    return _Triples(before, source, target, trace, len(walks))


def _simulate_triples(chain: _SetChain, rng: np.random.Generator) -> _Triples:
    """The triples of as many simulated walks as there are traces."""
    before = np.zeros(chain.num_walks, dtype=np.int64)
    moves, befores = list(_simulate_moves(chain, chain.num_walks, rng)), []
    for move in moves:
        befores.append(before[move.walk])
        before[move.walk] = move.left
    # The first move has one predecessor only.
    walk, left, entered = (_joined(list(column)) for column in zip(*moves[1:], strict=True))
    return _Triples(_joined(befores[1:]), left, entered, walk, chain.num_walks)


def _joined(parts: Sequence[IntArray]) -> IntArray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def _held_out(triples: _Triples, settings: _Smoothing, rng: np.random.Generator) -> FloatArray:
    """Log-probability of each transition under the three orders, from the other folds, (T, 3)."""
    fold = (rng.permutation(triples.num_traces) % settings.num_folds)[triples.trace]
    base = settings.num_targets + 1
    context = triples.before * base + triples.source

    def others(key: IntArray) -> IntArray:
        return _count_in_other_folds(key, fold, settings.num_folds)

    num_others = others(np.zeros_like(fold))
    zeroth = (others(triples.target) + settings.prior) / (num_others + settings.prior * settings.num_targets)
    pair, triple = triples.source * base + triples.target, context * base + triples.target
    first = (others(pair) + settings.kappa * zeroth) / (others(triples.source) + settings.kappa)
    second = (others(triple) + settings.kappa * first) / (others(context) + settings.kappa)
    logs: FloatArray = np.log(np.stack([zeroth, first, second], axis=1))
    return logs


def _count_in_other_folds(key: IntArray, fold: IntArray, num_folds: int) -> IntArray:
    """For each transition, how many of the other folds have the same key, (T,)."""
    _, place = np.unique(key, return_inverse=True)
    within = place * num_folds + fold
    number: IntArray = np.bincount(place)[place] - np.bincount(within)[within]
    return number


def _ratio_interval(
    values: FloatArray, triples: _Triples, rng: np.random.Generator, num_resamples: int, confidence: float
) -> tuple[float, float]:
    """Percentile interval of the mean value, traces resampled whole."""
    sums = np.bincount(triples.trace, weights=values, minlength=triples.num_traces)
    sizes = np.bincount(triples.trace, minlength=triples.num_traces)
    drawn = rng.integers(triples.num_traces, size=(num_resamples, triples.num_traces))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
