"""Agreement: against scikit-learn, against a transcription of its definition, and as properties."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from mralign_core.method.agreement import (
    AGREEMENT_RULES,
    agreement,
    agreement_intervals,
    label_counts,
    macro_sets,
    only_label,
    sets_agree,
)
from mralign_core.method.by_question import resample_questions

LABELS = ("ask", "tell", "doubt", "check")
SETS = st.frozensets(st.sampled_from(LABELS), max_size=2)
PAIRS = st.lists(st.tuples(SETS, SETS), min_size=1, max_size=40)
RULE = pytest.mark.parametrize("rule", AGREEMENT_RULES)


def resampled(number, num_resamples, rng):
    """Resamples of so many traces, each the only one of its question."""
    return resample_questions(np.zeros(number, dtype=int), num_resamples, rng)


def transcribed(pairs, rule):
    """Agreement by its definition: observed, and over all pairs of segments what chance would give."""
    observed = sum(sets_agree(a, b, rule) for a, b in pairs) / len(pairs)
    crossed = list(itertools.product([a for a, _ in pairs], [b for _, b in pairs]))
    expected = sum(sets_agree(a, b, rule) for a, b in crossed) / len(crossed)
    return observed, expected, (observed - expected) / (1 - expected) if expected < 1 else math.nan


@RULE
@given(pairs=PAIRS)
def test_equals_its_definition(pairs, rule):
    found = agreement([a for a, _ in pairs], [b for _, b in pairs], rule)
    assert found[1:] == pytest.approx(transcribed(pairs, rule), nan_ok=True)


@given(pairs=st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=60))
def test_is_cohens_kappa_for_single_labels(pairs):
    a, b = zip(*pairs, strict=True)
    found = [agreement([{x} for x in a], [{x} for x in b], rule).kappa for rule in AGREEMENT_RULES]
    with np.errstate(invalid="ignore"):
        known = cohen_kappa_score(a, b) if len({*a, *b}) > 1 else math.nan
    assert found == pytest.approx([known, known], nan_ok=True)


@RULE
@given(pairs=PAIRS)
def test_both_annotators_count_alike(pairs, rule):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    assert agreement(a, b, rule) == pytest.approx(agreement(b, a, rule), nan_ok=True)


@RULE
@given(pairs=PAIRS, names=st.permutations(LABELS), order=st.randoms(use_true_random=False))
def test_names_and_order_do_not_matter(pairs, names, order, rule):
    renamed = dict(zip(LABELS, names, strict=True))
    shuffled = [(frozenset(renamed[x] for x in a), frozenset(renamed[x] for x in b)) for a, b in pairs]
    order.shuffle(shuffled)
    one, other = (agreement([a for a, _ in p], [b for _, b in p], rule) for p in (pairs, shuffled))
    assert one == pytest.approx(other, nan_ok=True)


@RULE
@given(sets=st.lists(SETS, min_size=1, max_size=40))
def test_an_annotator_agrees_with_itself(sets, rule):
    found = agreement(sets, sets, rule)
    assert found.observed == 1
    assert found.kappa == 1 or (math.isnan(found.kappa) and found.expected == 1)


@given(pairs=PAIRS)
def test_entailment_is_the_weaker_notion(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    assert agreement(a, b, "entailment").observed >= agreement(a, b).observed


def test_silence_does_not_agree_with_everything():
    mute: list[set[str]] = [set()] * 3
    sure = [{"ask"}, {"tell"}, set()]
    assert agreement(mute, sure, "entailment").observed == pytest.approx(1 / 3)


@RULE
def test_one_category_leaves_no_room_beyond_chance(rule):
    found = agreement([{"ask"}] * 5, [{"ask"}] * 5, rule)
    assert (found.observed, found.expected) == (1, 1)
    assert math.isnan(found.kappa)


@RULE
def test_no_segments_define_nothing(rule):
    found = agreement([], [], rule)
    assert found.num_segments == 0
    assert all(map(math.isnan, found[1:]))
    intervals = agreement_intervals([], [], np.array([], dtype=int), resampled(0, 10, np.random.default_rng(0)))
    assert all(math.isnan(end) for interval in intervals for end in interval)


def test_different_numbers_of_segments_are_refused():
    with pytest.raises(ValueError, match=r"2 label sets, 1 of the other"):
        agreement([{"ask"}, {"ask"}], [{"ask"}])


@given(pairs=PAIRS)
def test_a_label_by_itself_is_a_two_by_two_table(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    for found in label_counts(a, b, LABELS):
        has_a, has_b = [found.label in x for x in a], [found.label in x for x in b]
        assert (found.num_a, found.num_b) == (sum(has_a), sum(has_b))
        assert found.num_both == sum(map(all, zip(has_a, has_b, strict=True)))
        alone = agreement(only_label(a, found.label), only_label(b, found.label))
        assert alone.observed == pytest.approx(np.mean(np.equal(has_a, has_b)))
        if len({*has_a, *has_b}) > 1:
            assert alone.kappa == pytest.approx(cohen_kappa_score(has_a, has_b))


def test_macro_strategies_can_only_bring_entailment_closer():
    macro = {"ask": "talk", "tell": "talk", "doubt": "think", "check": "think"}
    a, b = [{"ask", "doubt"}, {"ask"}], [{"ask"}, {"tell"}]
    assert agreement(a, b, "entailment").observed == 0.5
    assert agreement(macro_sets(a, macro), macro_sets(b, macro), "entailment").observed == 1
    with pytest.raises(KeyError):
        macro_sets([{"sing"}], macro)


def simulated(num_traces, rng):
    """Traces whose five segments are all alike; annotators agree on three traces in four, and by luck on others."""
    a, b, traces = [], [], []
    for trace in range(num_traces):
        one, other = rng.choice(LABELS, 2) if rng.random() < 0.25 else [rng.choice(LABELS)] * 2
        a += [{str(one)}] * 5
        b += [{str(other)}] * 5
        traces += [trace] * 5
    return a, b, np.array(traces)


def test_intervals_cover_and_respect_traces():
    """About 95 of 100 intervals hold the truth; resampling single segments would make them too narrow by √5."""
    truth, inside = 0.75 + 0.25 / 4, 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        a, b, traces = simulated(60, rng)
        low, high = agreement_intervals(a, b, traces, resampled(60, 300, rng)).observed
        inside += low <= truth <= high
    assert 87 <= inside <= 100
    draws = resampled(60, 500, np.random.default_rng(0))
    low, high = agreement_intervals(a, b, traces, draws).observed
    by_segment = np.arange(len(a))
    narrow = agreement_intervals(a, b, by_segment, resampled(len(a), 500, np.random.default_rng(0))).observed
    assert (high - low) / (narrow.high - narrow.low) == pytest.approx(math.sqrt(5), rel=0.25)


def test_intervals_repeat_with_the_seed_and_narrow_with_confidence():
    a, b, traces = simulated(40, np.random.default_rng(1))
    draws = [resampled(40, 400, np.random.default_rng(7)) for _ in range(2)]
    one, same = (agreement_intervals(a, b, traces, each) for each in draws)
    assert one == same
    half = agreement_intervals(a, b, traces, draws[0], confidence=0.5)
    assert one.kappa.low < half.kappa.low <= half.kappa.high < one.kappa.high


@RULE
def test_every_trace_once_is_the_estimate_itself(rule):
    a, b, traces = simulated(30, np.random.default_rng(2))
    intervals = agreement_intervals(a, b, traces, np.ones((1, 30)), rule=rule)
    found = agreement(a, b, rule)
    assert intervals.observed == pytest.approx((found.observed, found.observed))
    assert intervals.kappa == pytest.approx((found.kappa, found.kappa))
