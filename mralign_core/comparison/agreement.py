"""Every pair of annotation sets compared: agreement, κ, per label, and what P and w make of the differences.

Decisions:

* Agreement is over the segments that both sets rated. P and w are compared on the traces that both rated whole, so that
  their matrices rest on the same traces and no transition jumps over a segment that nobody rated.
* P⁺, P⁻ and P, and the weights of Eq. 10, are estimated anew from each set with the run's own settings (``estimate``,
  ``reward``). People give no confidences; theirs are all equal.
* Where one of two sets merges no segments into steps (a human sheet can't), both are estimated with one step a segment.
  Otherwise equal labels would give other matrices, for a merged step has no move within. Each row says which steps were
  taken (:data:`STEP_CHOICES`); rows with different steps are not comparable with each other.
* Questions are resampled, each with its traces, for every pair with the same random numbers, so that intervals don't
  depend on the other sets. Of fewer than ``MIN_QUESTIONS_FOR_INTERVAL`` shared questions there is no interval.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mralign_core.comparison.annotation_sets import AnnotationSet, Joined, check_labels, join
from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.errors import NoCandidatesError
from mralign_core.estimation.bootstrap import MIN_QUESTIONS_FOR_INTERVAL
from mralign_core.estimation.hidden_labels import from_label_sets
from mralign_core.estimation.matrices import TransitionMatrices, estimate_transitions
from mralign_core.estimation.traces import LabelledTrace, labelled_traces
from mralign_core.estimation.weights import weigh_segments
from mralign_core.method import FloatArray
from mralign_core.method.agreement import (
    AGREEMENT_RULES,
    AgreementRule,
    Labels,
    agreement,
    agreement_intervals,
    label_counts,
    macro_sets,
    only_label,
)
from mralign_core.method.by_question import resample_questions
from mralign_core.method.distances import matrix_distance, rank_correlation, weight_shift
from mralign_core.method.taxonomy import Taxonomy

LEVELS = ("label", "macro")
STEP_CHOICES = ("as merged", "one a segment")


class Comparison(NamedTuple):
    """What comparing annotation sets found.

    Args:
        sets: a row a set: ``name, segments, traces, unlabelled`` (share of segments without a label) and ``labels``
            (mean number a segment).
        pairs: a row a pair, level (:data:`LEVELS`) and rule (strict or entailment): agreement, p_e and κ with
            intervals (NaN for too few traces), and how many segments are in both sets and in only one.
        per_label: a row a pair and label: prevalence in both, agreement and κ with interval.
        matrices: a row a pair and matrix (plus, minus, all): steps, mean L1 (Eq. 13) and total variation.
        weights: a row a pair: steps, mean |Δ log w|, share crossing 1, rank correlation.
        skipped: a row a pair whose matrices could not be compared, with the reason.
    """

    sets: pd.DataFrame
    pairs: pd.DataFrame
    per_label: pd.DataFrame
    matrices: pd.DataFrame
    weights: pd.DataFrame
    skipped: pd.DataFrame


class _Pair(NamedTuple):
    """Two sets, what they share, and the resamples of its traces."""

    a: AnnotationSet
    b: AnnotationSet
    joined: Joined
    draws: FloatArray
    confidence: float

    @property
    def names(self) -> dict[str, str]:
        return {"a": self.a.name, "b": self.b.name}


def compare(
    candidates: pd.DataFrame,
    sets: Sequence[AnnotationSet],
    taxonomy: Taxonomy,
    *,
    estimate: EstimateConfig,
    reward: RewardConfig,
    num_resamples: int,
    confidence: float,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare every pair of annotation sets of the same candidates.

    Implements App. B.3–B.5 of arXiv 2510.24794.

    Args:
        candidates: rows of ``schemas.candidates``.
        sets: at least one; names must differ.
        taxonomy: the labels.
        estimate: how P is estimated from a set, whose labels are taken as they are: none are hidden.
        reward: how weights follow from P.
        num_resamples: bootstrap resamples of questions.
        confidence: coverage of the intervals.
        seed: of the resampling.
        on_progress: called with (done, total) after each pair.

    Raises:
        DataError: a set has labels of another label set.
    """
    check_labels(sets, taxonomy)
    effects = _Effects(candidates, taxonomy, estimate, reward)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in Comparison._fields}
    found["sets"] = [_describe(each) for each in sets]
    question_of = candidates.set_index("trace_id")["question_id"]
    couples = list(itertools.combinations(sets, 2))
    for done, (a, b) in enumerate(couples, start=1):
        joined = join(a, b)
        draws = _draws(joined, question_of, num_resamples, seed)
        pair = _Pair(a, b, joined, draws, confidence)
        found["pairs"] += _pair_rows(pair, taxonomy)
        found["per_label"] += _label_rows(pair, taxonomy)
        for name, rows in effects.of(pair).items():
            found[name] += rows
        if on_progress:
            on_progress(done, len(couples))
    return Comparison(**{name: pd.DataFrame(rows) for name, rows in found.items()})


def _draws(joined: Joined, question_of: pd.Series, num_resamples: int, seed: int) -> FloatArray:
    """How often each shared trace is in each resample of their questions, (R, T); none of too few questions."""
    questions, names = pd.factorize(question_of.reindex(joined.segments["trace_id"].unique()))
    number = num_resamples if len(names) >= MIN_QUESTIONS_FOR_INTERVAL else 0
    alike = np.zeros(len(names), dtype=np.int64)
    return resample_questions(alike, number, np.random.default_rng(seed))[:, questions].astype(np.float64)


def _describe(each: AnnotationSet) -> dict[str, Any]:
    sizes = each.rows["labels"].map(len).to_numpy(float)
    return {
        "name": each.name,
        "segments": len(sizes),
        "traces": int(each.rows["trace_id"].nunique()),
        "unlabelled": float((sizes == 0).mean()) if len(sizes) else float("nan"),
        "labels": float(sizes.mean()) if len(sizes) else float("nan"),
    }


def _pair_rows(pair: _Pair, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    joined = pair.joined
    by_level = {
        "label": (joined.a, joined.b),
        "macro": tuple(macro_sets(side, taxonomy.macro_strategies) for side in (joined.a, joined.b)),
    }
    size = {
        "segments": len(joined.a),
        "traces": joined.num_traces,
        "only_a": joined.num_only_a,
        "only_b": joined.num_only_b,
    }
    return [
        {**pair.names, "level": level, "rule": rule, **size, **_scores(pair, a, b, rule)}
        for level, (a, b) in by_level.items()
        for rule in AGREEMENT_RULES
    ]


def _label_rows(pair: _Pair, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    a, b = pair.joined.a, pair.joined.b
    size = max(len(a), 1)
    return [
        {
            **pair.names,
            "label": found.label,
            "macro_strategy": taxonomy.macro_of(found.label),
            "segments": len(a),
            "num_a": found.num_a,
            "num_b": found.num_b,
            "num_both": found.num_both,
            "prevalence_a": found.num_a / size,
            "prevalence_b": found.num_b / size,
            **_scores(pair, only_label(a, found.label), only_label(b, found.label), "strict"),
        }
        for found in label_counts(a, b, taxonomy.labels)
    ]


def _scores(pair: _Pair, a: Sequence[Labels], b: Sequence[Labels], rule: AgreementRule) -> dict[str, float]:
    scores = agreement(a, b, rule)
    intervals = agreement_intervals(a, b, pair.joined.traces, pair.draws, rule=rule, confidence=pair.confidence)
    return {
        "agreement": scores.observed,
        "agreement_low": intervals.observed.low,
        "agreement_high": intervals.observed.high,
        "by_chance": scores.expected,
        "kappa": scores.kappa,
        "kappa_low": intervals.kappa.low,
        "kappa_high": intervals.kappa.high,
    }


class _Estimated(NamedTuple):
    """The matrices that a set gives on some traces, and the weights of their segments."""

    matrices: TransitionMatrices
    weights: FloatArray


class _Effects:
    """What exchanging the annotator does to P and to w. Each set is estimated once for the same traces."""

    def __init__(
        self, candidates: pd.DataFrame, taxonomy: Taxonomy, estimate: EstimateConfig, reward: RewardConfig
    ) -> None:
        self.candidates = candidates
        self.taxonomy = taxonomy
        # No intervals are shown here.
        self.estimate = from_label_sets(estimate).model_copy(update={"num_resamples": 0})
        self.reward = reward
        self.num_segments = {row.trace_id: len(row.segments) for row in candidates.itertuples(index=False)}
        self.known: dict[tuple[str, str, frozenset[str]], _Estimated] = {}

    def of(self, pair: _Pair) -> Mapping[str, list[dict[str, Any]]]:
        """Rows for the tables ``matrices`` and ``weights``, or for ``skipped``."""
        rated = pair.joined.segments.groupby("trace_id").size()
        whole = frozenset(str(trace) for trace, size in rated.items() if size == self.num_segments[str(trace)])
        if not whole:
            return {"skipped": [{**pair.names, "reason": "no trace has every segment rated in both sets"}]}
        steps = STEP_CHOICES[0] if pair.a.merges and pair.b.merges else STEP_CHOICES[1]
        try:
            a, b = (self.estimated(each, whole, steps) for each in (pair.a, pair.b))
        except NoCandidatesError as error:
            return {"skipped": [{**pair.names, "reason": f"on the {len(whole)} traces rated whole in both: {error}"}]}
        shift = asdict(weight_shift(a.weights, b.weights))
        shift["rank_correlation"] = rank_correlation(np.log(a.weights), np.log(b.weights))
        basis = {**pair.names, "traces": len(whole), "steps": steps}
        return {
            "matrices": [
                {**basis, "matrix": name, **_distance(a.matrices, b.matrices, name)} for name in a.matrices.estimates
            ],
            "weights": [{**basis, **shift}],
        }

    def estimated(self, each: AnnotationSet, traces: frozenset[str], steps: str) -> _Estimated:
        """P⁺, P⁻, P and the weights from one set, on these traces, with its own steps or one a segment."""
        key = (each.name, steps, traces)
        if key not in self.known:
            labelled = self._labelled(each if steps == STEP_CHOICES[0] else each.unmerged(), traces)
            matrices = estimate_transitions(labelled, self.estimate, self.taxonomy)
            weights = weigh_segments(labelled, matrices, self.reward, confidence=self.estimate.confidence)["weight"]
            weights = weights.to_numpy(np.float64)
            self.known[key] = _Estimated(matrices, weights)
        return self.known[key]

    def _labelled(self, each: AnnotationSet, traces: frozenset[str]) -> list[LabelledTrace]:
        rows = each.rows[each.rows["trace_id"].isin(traces)]
        choice = self.estimate.labels_per_segment
        return labelled_traces(self.candidates, rows, labels_per_segment=choice, taxonomy=self.taxonomy)


def _distance(a: TransitionMatrices, b: TransitionMatrices, name: str) -> dict[str, float]:
    one, other = a.estimates[name], b.estimates[name]
    distance = matrix_distance(one.p, other.p, one.counts, other.counts)
    return {
        "mean_l1": distance.mean_l1,
        "total_variation": distance.total_variation,
        "mean_entry": distance.mean_l1 / len(one.p),
        "rows": distance.num_rows,
        "rows_of_one": distance.num_rows_of_one,
    }
