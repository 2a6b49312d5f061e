"""How far two annotators agree, beyond chance (App. B.3, B.4).

Decisions where the paper is silent:

* An unlabelled segment (the empty set) entails nothing: under entailment it agrees with another unlabelled segment
  only. By the letter every set contains the empty one, and an annotator who labels nothing would agree with all.
* Chance agreement is that of two annotators who draw whole label sets independently, each from its own frequencies:
  p_e = Σ over agreeing pairs of sets (s, t) of p_A(s) p_B(t). With one label a segment this is Cohen's κ.
* κ is NaN where p_e = 1 (both always give the same single set): there is no room beyond chance.
* Intervals resample whole traces, because segments of one trace are not independent.

Shapes: N segments, T traces, R resamples, U and V distinct label sets of the two annotators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.method import FloatArray

Labels = AbstractSet[str]
AgreementRule = Literal["strict", "entailment"]

AGREEMENT_RULES: tuple[AgreementRule, ...] = ("strict", "entailment")


class Agreement(NamedTuple):
    """Agreement of two annotators on the same segments; NaN where it is not defined.

    Args:
        num_segments: N.
        observed: share of segments on which they agree.
        expected: p_e, the share on which chance alone would make them agree.
        kappa: Cohen's κ, (observed − expected) / (1 − expected).
    """

    num_segments: int
    observed: float
    expected: float
    kappa: float


class Interval(NamedTuple):
    """Ends of an interval; NaN where no resample defines the statistic."""

    low: float
    high: float


class AgreementIntervals(NamedTuple):
    """Percentile-bootstrap intervals of an :class:`Agreement`."""

    observed: Interval
    kappa: Interval


class LabelCounts(NamedTuple):
    """How often two annotators gave one label.

    Args:
        label: the label.
        num_a: segments to which a gave it.
        num_b: segments to which b gave it.
        num_both: segments to which both gave it.
    """

    label: str
    num_a: int
    num_b: int
    num_both: int


def sets_agree(a: Labels, b: Labels, rule: AgreementRule = "strict") -> bool:
    """Whether two label sets agree: equal (strict), or one contains the other (entailment).

    Implements the two notions of App. B.3 of arXiv 2510.24794; the empty set agrees with itself only.

    >>> sets_agree({"retrieval"}, {"retrieval", "analogy"}), sets_agree({"retrieval"}, set(), "entailment")
    (False, False)
    >>> sets_agree({"retrieval"}, {"retrieval", "analogy"}, "entailment")
    True
    """
    if a == b:
        return True
    return rule == "entailment" and bool(a) and bool(b) and (a <= b or b <= a)


def agreement(a: Sequence[Labels], b: Sequence[Labels], rule: AgreementRule = "strict") -> Agreement:
    """Observed agreement of two annotators, chance agreement, and Cohen's κ.

    Implements App. B.3 of arXiv 2510.24794 (Table 10).

    Args:
        a: (N,) label sets of one annotator.
        b: (N,) label sets of the other, of the same segments in the same order.
        rule: when two sets agree.

    Raises:
        ValueError: they saw different numbers of segments.

    Worked by hand: the sets are equal in 2 of 4 segments. Chance: {r} and {r} meet with 2/4 · 2/4, {b} and {b} with
    1/4 · 1/4, so p_e = 5/16 and κ = (8/16 − 5/16) / (11/16) = 3/11. Under entailment the third segment agrees too, and
    {r, s} may also meet {r} (1/4 · 2/4) or {s} (1/4 · 1/4): p_e = 8/16, κ = (12/16 − 8/16) / (8/16) = 1/2.

    >>> a = [{"r"}, {"r"}, {"r", "s"}, {"b"}]
    >>> b = [{"r"}, {"s"}, {"r"}, {"b"}]
    >>> [round(value, 4) for value in agreement(a, b)]
    [4, 0.5, 0.3125, 0.2727]
    >>> agreement(a, b, "entailment")
    Agreement(num_segments=4, observed=0.75, expected=0.5, kappa=0.5)
    """
    tally = _tally(a, b, np.zeros(len(a), dtype=np.intp), rule)
    observed, expected, kappa = (float(values[0]) for values in _scores(tally, np.ones((1, len(tally.num_segments)))))
    return Agreement(len(a), observed, expected, kappa)


def label_counts(a: Sequence[Labels], b: Sequence[Labels], labels: Sequence[str]) -> list[LabelCounts]:
    """How often each label was given, by either annotator and by both.

    Args:
        a: (N,) label sets of one annotator.
        b: (N,) label sets of the other.
        labels: the labels to look at.

    >>> (found,) = label_counts([{"r"}, {"r", "s"}, set()], [{"r"}, {"s"}, set()], ["r"])
    >>> found.num_a, found.num_b, found.num_both
    (2, 1, 1)
    """
    given = {label: ([label in one for one in a], [label in one for one in b]) for label in labels}
    return [
        LabelCounts(label, sum(has_a), sum(has_b), sum(map(all, zip(has_a, has_b, strict=True))))
        for label, (has_a, has_b) in given.items()
    ]


def only_label(sets: Sequence[Labels], label: str) -> list[Labels]:
    """The sets without all labels but one.

    >>> only_label([{"r", "s"}, {"s"}], "r") == [{"r"}, set()]
    True
    """
    given, not_given = frozenset({label}), frozenset[str]()
    return [given if label in labels else not_given for labels in sets]


def macro_sets(sets: Sequence[Labels], macro_strategies: Mapping[str, str]) -> list[Labels]:
    """The macro-strategies of each label set.

    Raises:
        KeyError: a label has no macro-strategy.

    >>> macro_sets([{"ask", "tell"}, set()], {"ask": "talk", "tell": "talk"})
    [frozenset({'talk'}), frozenset()]
    """
    return [frozenset(macro_strategies[label] for label in labels) for labels in sets]


def agreement_intervals(
    a: Sequence[Labels],
    b: Sequence[Labels],
    traces: NDArray[np.intp],
    draws: FloatArray,
    *,
    rule: AgreementRule = "strict",
    confidence: float = 0.95,
) -> AgreementIntervals:
    """Percentile-bootstrap intervals of agreement and κ over resamples of traces.

    Args:
        a: (N,) label sets of one annotator.
        b: (N,) label sets of the other.
        traces: (N,) index, 0 … T − 1, of the trace each segment is in.
        draws: (R, T) how often each trace is in each resample, such as its question's times in
            :func:`~mralign_core.method.by_question.resample_questions`; the same draws serve several statistics.
        rule: when two sets agree.
        confidence: coverage, in (0, 1).

    Returns:
        Intervals over the resamples in which the statistic is defined.

    >>> draws = np.array([[1.0, 1], [2, 0], [0, 2]] * 60)
    >>> agreement_intervals([{"r"}, {"s"}], [{"r"}, {"r"}], np.array([0, 1]), draws).observed
    Interval(low=0.0, high=1.0)
    """
    observed, _, kappa = _scores(_tally(a, b, traces, rule, num_traces=draws.shape[1]), draws)
    return AgreementIntervals(_percentiles(observed, confidence), _percentiles(kappa, confidence))


class _Tally(NamedTuple):
    """All that agreement depends on, by trace: segments (T,), agreeing ones (T,), sets given (T, U) and (T, V)."""

    num_segments: FloatArray
    num_agreeing: FloatArray
    given_a: FloatArray
    given_b: FloatArray
    agree: FloatArray


def _tally(
    a: Sequence[Labels], b: Sequence[Labels], traces: NDArray[np.intp], rule: AgreementRule, num_traces: int = 1
) -> _Tally:
    if not len(a) == len(b) == len(traces):
        raise ValueError(f"{len(a)} label sets, {len(b)} of the other annotator, {len(traces)} trace indices; "
                         "both must be of the same segments")  # fmt: skip
    distinct_a, codes_a = _codes(a)
    distinct_b, codes_b = _codes(b)
    agree_UV = np.array([[sets_agree(s, t, rule) for t in distinct_b] for s in distinct_a], dtype=np.float64)
    agree_UV = agree_UV.reshape(len(distinct_a), len(distinct_b))
    given_a, given_b = np.zeros((num_traces, len(distinct_a))), np.zeros((num_traces, len(distinct_b)))
    np.add.at(given_a, (traces, codes_a), 1)
    np.add.at(given_b, (traces, codes_b), 1)
    num_agreeing = np.zeros(num_traces)
    np.add.at(num_agreeing, traces, agree_UV[codes_a, codes_b])
    return _Tally(given_a.sum(axis=1), num_agreeing, given_a, given_b, agree_UV)


def _codes(sets: Sequence[Labels]) -> tuple[list[Labels], NDArray[np.intp]]:
    """The distinct sets, and which of them each segment has."""
    places: dict[frozenset[str], int] = {}
    codes = [places.setdefault(frozenset(labels), len(places)) for labels in sets]
    return list(places), np.array(codes, dtype=np.intp)


def _scores(tally: _Tally, draws_RT: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Observed agreement, p_e and κ of each resample, (R,); in whole numbers, so that p_e = 1 is met exactly."""
    size = draws_RT @ tally.num_segments
    agreeing = draws_RT @ tally.num_agreeing
    by_chance = (((draws_RT @ tally.given_a) @ tally.agree) * (draws_RT @ tally.given_b)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        kappa = (size * agreeing - by_chance) / (size * size - by_chance)
        return agreeing / size, by_chance / (size * size), kappa


def _percentiles(values: FloatArray, confidence: float) -> Interval:
    defined = values[np.isfinite(values)]
    if not len(defined):
        return Interval(float("nan"), float("nan"))
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(float(low), float(high))
