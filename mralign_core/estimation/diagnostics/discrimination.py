"""Do the labels tell right from wrong on questions not seen? The question that comes before all others.

Every trace is scored by Σ log(P⁺/P⁻) over its transitions, <start> and <stop> included, with P⁺ and P⁻ estimated from
traces of *other* questions: :data:`NUM_FOLDS` folds of whole questions. The AUC of these scores is the share of pairs
of a right and a wrong trace that the labels put in order. Near ½, the weights are noise, whatever their size, and no
training can gain by them.

What is told beside it:

* within strata, where a trace is compared with traces of its own stratum only (the matrices stay those of all), so that
  telling kinds of question apart does not pass for telling right from wrong;
* a percentile interval, questions resampled with their scores as they are. It is of these folds' matrices: that other
  questions would have given other matrices is not in it;
* chance: the same with polarities permuted between questions (within strata, between those of one stratum), matrices
  and all, which has no bias where the AUC of a cross-validation has one. The p-value is the share of permutations with
  an AUC at least as large, the observed one among them.

The verdict is *too few* with fewer than ``MIN_QUESTIONS_FOR_INTERVAL`` questions of either polarity; else *shown* where
the interval lies above ½ and the p-value is at most :data:`SIGNIFICANCE`; else *not shown*. By chance it is "shown" in
at most one of twenty corpora.

Shapes: N traces, U distinct pairs of label sets, R polarities (the observed ones, then permuted ones), K states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.config import EstimateConfig
from mralign_core.estimation.bootstrap import MIN_QUESTIONS_FOR_INTERVAL
from mralign_core.estimation.corpus import count_corpus
from mralign_core.estimation.diagnostics.result import Result
from mralign_core.estimation.estimators import FROM_LABELS, estimate_tables
from mralign_core.estimation.traces import LabelledTrace, batch_of_traces
from mralign_core.method import FloatArray, IntArray
from mralign_core.method.by_question import (
    permute_between_questions,
    question_folds,
    question_kinds,
    resample_questions,
)
from mralign_core.method.discrimination import area_under_curve, questions_to_show
from mralign_core.method.set_pairs import SetPairCounts
from mralign_core.method.transitions import set_transition_probs

if TYPE_CHECKING:
    from scipy import sparse

NUM_FOLDS = 5
NUM_PERMUTATIONS = 199
NUM_RESAMPLES = 1000
SIGNIFICANCE = 0.05
"""Largest p-value of an AUC that is called shown; its interval covers one less this."""
POWER = 0.8
"""Probability of showing an AUC of the observed size, which the number of questions to show it is for."""


class HeldOutAuc(Result):
    """How well held-out scores tell right from wrong; None is what so few questions do not tell."""

    traces: int
    """Traces that are compared with any other."""
    positive_questions: int
    """Questions with a positive trace among them."""
    negative_questions: int
    auc: float
    low: float | None
    high: float | None
    by_chance: float | None
    """Mean AUC with permuted polarities."""
    p_value: float | None
    questions_to_show: int | None
    """Questions at which an AUC of this size would be told from ½ with :data:`POWER`; none where it is not above ½."""
    verdict: Literal["shown", "not shown", "too few"]


class Discrimination(Result):
    """The held-out AUC under one estimator."""

    estimator: str
    overall: HeldOutAuc | None
    within: HeldOutAuc | None
    strata: tuple[str, ...]
    """The strata with traces of both polarities, which ``within`` is of."""


def discriminate(
    traces: Sequence[LabelledTrace],
    num_states: int,
    estimate: EstimateConfig,
    rng: np.random.Generator,
    skipped: dict[str, str],
) -> tuple[Discrimination, ...]:
    """The held-out AUC under each estimator that the config knows, the configured one first, on the same folds.

    Args:
        traces: labelled ones.
        num_states: K.
        estimate: the configured estimator; the others have its settings.
        rng: seeded generator of folds, resamples and permutations.
        skipped: gets the reason for what can't be computed.
    """
    held_out = _HeldOut.of(traces, num_states, rng)
    both = held_out.strata_of_both()
    names = np.unique([trace.stratum for trace in traces]).tolist()
    has_overall = 0 < held_out.is_positive.sum() < len(traces)
    if not has_overall:
        skipped["discrimination"] = "the sample has labelled traces of one polarity only"
    elif len(names) < 2:
        skipped["discrimination.within"] = "all traces are of one stratum: within it is all there is"
    elif not len(both):
        skipped["discrimination.within"] = "no stratum has labelled traces of both polarities"
    has_within = has_overall and len(names) > 1 and len(both) > 0
    everywhere = np.zeros(len(traces), dtype=np.int64)
    parts = [_Part.of(held_out, everywhere, rng)] if has_overall else []
    parts += [_Part.of(held_out, held_out.strata, rng)] if has_within else []
    found = []
    for estimator in dict.fromkeys((estimate.estimator, *FROM_LABELS)):
        section = estimate.model_copy(update={"estimator": estimator})
        observed = held_out.scores(held_out.is_positive[None], section)[0] if parts else None
        rows = [part.measure(held_out, observed, section) for part in parts if observed is not None]
        overall, within = (*rows, None, None)[:2]
        compared = tuple(names[stratum] for stratum in both) if within else ()
        found.append(Discrimination(estimator=estimator, overall=overall, within=within, strata=compared))
    return tuple(found)


class _HeldOut(NamedTuple):
    """Traces as transitions, with the fold each is held out in; questions and strata are numbers from 0."""

    pairs: SetPairCounts
    by_trace: sparse.csr_array
    is_positive: NDArray[np.bool_]
    questions: IntArray
    strata: IntArray
    folds: IntArray

    @classmethod
    def of(cls, traces: Sequence[LabelledTrace], num_states: int, rng: np.random.Generator) -> _HeldOut:
        from scipy import sparse

        corpus = count_corpus([batch_of_traces(traces)], num_states, keep_traces=True)
        questions = question_numbers(traces)
        return cls(
            corpus.pairs(),
            sparse.csr_array(corpus.pairs_by_trace()),
            np.array([trace.polarity == "positive" for trace in traces], dtype=np.bool_),
            questions,
            np.unique([trace.stratum for trace in traces], return_inverse=True)[1].astype(np.int64),
            question_folds(questions, NUM_FOLDS, rng),
        )

    def strata_of_both(self) -> IntArray:
        """The strata that have traces of both polarities."""
        both: IntArray = np.intersect1d(self.strata[self.is_positive], self.strata[~self.is_positive])
        return both

    def scores(self, polarities: NDArray[np.bool_], section: EstimateConfig) -> FloatArray:
        """Σ log(P⁺/P⁻) over each trace's transitions, P⁺ and P⁻ from the other folds and the polarities given, (R, N).

        Args:
            polarities: (R, N) which traces count as positive.
            section: the estimator.
        """
        scores = np.empty(polarities.shape)
        for fold in range(NUM_FOLDS):
            held = np.flatnonzero(self.folds == fold)
            rest = np.flatnonzero(self.folds != fold)
            others = self.by_trace[rest]
            plus = (others.T @ polarities[:, rest].T.astype(np.int64)).T
            minus = others.sum(axis=0) - plus
            found = estimate_tables(section, self.pairs, plus, minus, ("plus", "minus")).values()
            logs = [np.log(set_transition_probs(one.p, self.pairs.sources, self.pairs.targets)) for one in found]
            scores[:, held] = (self.by_trace[held] @ (logs[0] - logs[1]).T).T
        return scores


class _Part(NamedTuple):
    """What an AUC is over: traces of one stratum are compared with each other; with the chance that goes with it."""

    strata: IntArray
    compared: NDArray[np.bool_]
    times: NDArray[np.int32]
    permuted: NDArray[np.bool_]

    @classmethod
    def of(cls, held_out: _HeldOut, strata: IntArray, rng: np.random.Generator) -> _Part:
        is_positive, questions = held_out.is_positive, held_out.questions
        both = np.intersect1d(strata[is_positive], strata[~is_positive])
        stratum_of_question = np.zeros(int(questions.max()) + 1, dtype=np.int64)
        stratum_of_question[questions] = strata
        kinds = question_kinds(questions, is_positive) + 4 * stratum_of_question
        permuted = [permute_between_questions(is_positive, questions, strata, rng) for _ in range(NUM_PERMUTATIONS)]
        return cls(
            strata,
            np.isin(strata, both),
            resample_questions(kinds, NUM_RESAMPLES, rng)[:, questions],
            np.array(permuted),
        )

    def measure(self, held_out: _HeldOut, scores: FloatArray, section: EstimateConfig) -> HeldOutAuc:
        """The AUC of the observed scores, its interval, and how large it is by chance."""
        is_positive = held_out.is_positive
        auc = float(area_under_curve(scores, is_positive, self.strata)[0])
        positive, negative = (
            len(np.unique(held_out.questions[self.compared & (is_positive == sign)])) for sign in (True, False)
        )
        size = {"traces": int(self.compared.sum()), "positive_questions": positive, "negative_questions": negative}
        if min(positive, negative) < MIN_QUESTIONS_FOR_INTERVAL:
            unknown = dict.fromkeys(("low", "high", "by_chance", "p_value", "questions_to_show"))
            return HeldOutAuc(**size, auc=auc, **unknown, verdict="too few")
        drawn = area_under_curve(scores, is_positive, self.strata, self.times)
        low, high = (float(bound) for bound in np.quantile(drawn, [SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2]))
        rows = zip(held_out.scores(self.permuted, section), self.permuted, strict=True)
        by_chance = np.array([area_under_curve(row, polarity, self.strata)[0] for row, polarity in rows])
        p_value = float((1 + np.sum(by_chance >= auc)) / (1 + NUM_PERMUTATIONS))
        num_questions = len(np.unique(held_out.questions[self.compared]))
        needed = questions_to_show(
            auc, num_questions, float(by_chance.std()), float(drawn.std()), significance=SIGNIFICANCE, power=POWER
        )
        return HeldOutAuc(
            **size,
            auc=auc,
            low=low,
            high=high,
            by_chance=float(by_chance.mean()),
            p_value=p_value,
            questions_to_show=needed,
            verdict="shown" if low > 0.5 and p_value <= SIGNIFICANCE else "not shown",
        )


def question_numbers(traces: Sequence[LabelledTrace]) -> IntArray:
    """Number of each trace's question within its stratum, (N,), from 0."""
    names = [f"{trace.stratum}\0{trace.question_id or trace.trace_id}" for trace in traces]
    numbers: IntArray = np.unique(names, return_inverse=True)[1].astype(np.int64)
    return numbers
