"""Is one first-order matrix enough? Tests of the two assumptions behind the transition matrices of §3.2.2.

The paper leaves both untested: that P does not change along a trace (``method.stationarity``), and that the next state
depends on the present one only (``method.chain_order``). Everything here is an addition to it. Decisions:

* Where the halves part depends on where the trace stops. A chain with one and the same P is found in the states that
  lead to <stop> as its end comes near, so its halves differ although P does not. The χ² and permutation p-values take
  that for a change of P (in 70 to 100 % of simulated corpora at a nominal 10 %, where the chance of stopping differs by
  label); the simulated p-value, from traces of a chain with one P, does not.
* Folds, swaps of halves and the bootstrap are of whole questions, for traces of one question are alike. Simulated
  traces are independent, as a chain makes them: where traces of one question share more than that, the simulated
  p-values are too small.
* The gain of the second order is compared with that of traces simulated from a first-order chain of sets fitted to the
  same traces, since how much a second order loses by its sparser counts depends on the traces.

Shapes: U distinct pairs of label sets, T transitions, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mralign_core.method import FloatArray, IntArray
from mralign_core.method.by_question import question_folds
from mralign_core.method.chain_order import Smoothing, held_out_scores, simulate_triples, triples_of
from mralign_core.method.set_chains import Traces, fit_set_chain, labelled_steps
from mralign_core.method.set_pairs import membership, padded_sets
from mralign_core.method.stationarity import (
    LikelihoodRatios,
    chi2_tail,
    likelihood_ratios,
    simulate_halves,
    split_halves,
)

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
        permutation_p_value: share of at least as large statistics when the halves of all traces of a question
            are swapped at random. Assumes that a trace's two halves could change places: no P changes, no end effect.
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
        num_folds: folds of whole questions.
        kappa: pseudo-counts with which each order leans on the one below.
        zeroth: mean held-out log-likelihood without memory.
        first: of the first-order chain.
        second: of the second-order chain.
        gain: second − first; above 0 the second order predicts better.
        gain_low: lower end of its bootstrap interval over questions.
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


def stationarity_test(
    traces: Traces,
    num_states: int,
    rng: np.random.Generator,
    *,
    question_ids: Sequence[str] = (),
    num_resamples: int = 199,
    on_progress: Callable[[int, int], None] | None = None,
) -> StationarityTest:
    """Test whether P is the same in the first and the second half of traces; see the module on what is trusted.

    Args:
        traces: per trace, per step, the state indices of its labels.
        num_states: K.
        rng: seeded generator of permutations and simulations.
        question_ids: the question of each trace; without them, each trace is of its own.
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
    done = _ResampleCounter(on_progress, 2 * num_resamples)
    pairs = halves.sources, halves.targets
    observed = likelihood_ratios(*pairs, np.stack([halves.first.sum(axis=0), halves.second.sum(axis=0)])[None])
    questions = _numbered(question_ids, traces, min_steps=3)
    swap = rng.integers(2, size=(num_resamples, int(questions.max()) + 1))[:, questions]
    moved = swap @ (halves.second - halves.first)
    tables = np.stack([halves.first.sum(axis=0) + moved, halves.second.sum(axis=0) - moved], axis=1)
    permuted = _in_chunks(lambda part: likelihood_ratios(*pairs, part), tables, done)
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
    question_ids: Sequence[str] = (),
    num_folds: int = 10,
    kappa: float = 10.0,
    prior: float = 0.1,
    num_resamples: int = 1000,
    num_simulations: int = 199,
    confidence: float = 0.95,
) -> OrderComparison:
    """Compare chains of label sets of order zero, one and two by held-out log-likelihood over folds of questions.

    Args:
        traces: per trace, per step, the state indices of its labels.
        rng: seeded generator of the folds, the bootstrap and the simulations.
        question_ids: the question of each trace; without them, each trace is of its own.
        num_folds: folds; each trace is held out once.
        kappa: pseudo-counts of the lower order in each row of the higher one.
        prior: pseudo-count of each label set, and of <stop>.
        num_resamples: bootstrap resamples of questions.
        num_simulations: simulated sets of as many traces.
        confidence: coverage of the interval.

    Raises:
        ValueError: there are fewer questions than folds.

    >>> cycle = [[(1,), (1,), (2,), (2,)] * 3] * 10  # what follows 1 depends on what came before it
    >>> result = compare_orders(cycle, np.random.default_rng(0), num_folds=2, num_resamples=99, num_simulations=19)
    >>> result.num_transitions, result.gain_low > 0.1, result.simulated_p_value
    (120, True, 0.05)
    """
    chain, walks = fit_set_chain(traces)
    questions = _numbered(question_ids, traces, min_steps=1)
    if (num_questions := len(np.unique(questions))) < num_folds:
        raise ValueError(f"{num_questions} questions are fewer than the {num_folds} folds they are to be held out in")
    smoothing = Smoothing(chain.stop, num_folds, prior, kappa)
    triples = triples_of(walks)
    scores_T3 = held_out_scores(triples, smoothing, question_folds(questions, num_folds, rng))
    zeroth, first, second = (float(mean) for mean in scores_T3.mean(axis=0))
    of_question = questions[triples.trace]
    low, high = _ratio_interval(scores_T3[:, 2] - scores_T3[:, 1], of_question, rng, num_resamples, confidence)
    gains = np.empty(num_simulations)
    each_its_own = np.arange(len(walks))
    for simulation in range(num_simulations):
        simulated = simulate_triples(chain, rng)
        folds = question_folds(each_its_own, num_folds, rng)
        by_order = held_out_scores(simulated, smoothing, folds).mean(axis=0)
        gains[simulation] = by_order[2] - by_order[1]
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


class _ResampleCounter:
    """Adds up the resamples done for a callback."""

    def __init__(self, on_progress: Callable[[int, int], None] | None, total: int) -> None:
        self._on_progress, self._total, self._done = on_progress, total, 0

    def add(self, number: int) -> None:
        self._done += number
        if self._on_progress:
            self._on_progress(self._done, self._total)


def _simulated_statistics(
    traces: Traces, num_states: int, rng: np.random.Generator, num_resamples: int, done: _ResampleCounter
) -> LikelihoodRatios:
    """Statistics of sets of traces simulated from one chain, with fresh halves."""
    chain, walks = fit_set_chain(traces)
    pairs = np.unique(np.concatenate([np.stack([walk[1:-2], walk[2:-1]], axis=1) for walk in walks]), axis=0)
    member = membership(padded_sets([(0,), *chain.names, (num_states - 1,)]), num_states)
    sources, targets = member[pairs[:, 0]], member[pairs[:, 1]]

    def simulate(part: IntArray) -> LikelihoodRatios:
        return likelihood_ratios(sources, targets, simulate_halves(chain, pairs, len(part), rng))

    return _in_chunks(simulate, np.zeros((num_resamples, 1), dtype=np.int64), done)


def _in_chunks(
    compute: Callable[[IntArray], LikelihoodRatios], tables: IntArray, done: _ResampleCounter
) -> LikelihoodRatios:
    parts = []
    for start in range(0, len(tables), _CHUNK):
        parts.append(compute(tables[start : start + _CHUNK]))
        done.add(len(parts[-1].values))
    return LikelihoodRatios(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _p_value(observed: float, resampled: FloatArray, tie: float = 1e-3) -> float:
    """Share at least as large, the observed one among them; ties count, by default up to what EM leaves open."""
    return float((1 + np.sum(resampled >= observed - tie)) / (1 + len(resampled)))


def _ratio_interval(
    values: FloatArray, questions: IntArray, rng: np.random.Generator, num_resamples: int, confidence: float
) -> tuple[float, float]:
    """Percentile interval of the mean value, questions resampled whole."""
    sums = np.bincount(questions, weights=values)
    sizes = np.bincount(questions)
    drawn = rng.integers(len(sizes), size=(num_resamples, len(sizes)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _numbered(question_ids: Sequence[str], traces: Traces, min_steps: int) -> IntArray:
    """Number of the question, from 0, of each trace that has so many labelled steps."""
    names = question_ids or list(map(str, range(len(traces))))
    chosen = [name for name, trace in zip(names, traces, strict=True) if len(labelled_steps(trace)) >= min_steps]
    numbers: IntArray = np.unique(chosen, return_inverse=True)[1].astype(np.int64)
    return numbers
