"""Weights of segments, with support, intervals, shrinkage and strata."""

import doctest

import numpy as np
import pandas as pd
import pytest

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.errors import ConfigError
from mralign_core.estimation import estimators, weights
from mralign_core.estimation.bootstrap import MIN_SUPPORT
from mralign_core.estimation.matrices import CLASSES, TransitionMatrices, estimate_transitions
from mralign_core.estimation.reading import read_trace_batches
from mralign_core.estimation.traces import LabelledTrace, batch_of_traces, labelled_traces
from mralign_core.estimation.weights import Weigher, weigh_segments
from mralign_core.method.segment_weights import clip_ratios, shrink_ratios
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.storage.tables import TableWriter, read_table
from tests.annotated_files import random_rows, taxonomy_of, write_files
from tests.oracles import trace_ratios

TAXONOMY = taxonomy_of(6)
STRATA = ("one-hop", "two-hop")
SECTION = EstimateConfig(num_resamples=20)


@pytest.fixture(scope="module")
def rows():
    return random_rows(np.random.default_rng(0), 150, TAXONOMY, STRATA)


@pytest.fixture(scope="module")
def traces(rows):
    return labelled_traces(*map(pd.DataFrame, rows), taxonomy=TAXONOMY)


@pytest.fixture(scope="module")
def matrices(traces):
    return estimate_transitions(traces, SECTION, TAXONOMY, rng=np.random.default_rng(0))


def plain_rows(traces, matrices, section, confidence=0.95):
    """The rewards of every trace, computed trace by trace and draw by draw."""
    frames = []
    for trace in traces:
        own, opposite = ("plus", "minus") if trace.polarity == "positive" else ("minus", "plus")
        other = "all" if section.reference == "all" else opposite
        estimates, draws = matrices.estimates, matrices.draws
        if section.condition_on == "stratum" and trace.stratum in matrices.strata:
            estimates, draws = matrices.strata[trace.stratum], matrices.strata_draws[trace.stratum]
        support, source, has_interval = np.zeros(len(trace.steps)), (0,), np.ones(len(trace.steps), dtype=bool)
        for place, target in enumerate(trace.steps):
            if target:
                support[place] = estimates[own].counts[np.ix_(source, target)].sum()
                below = estimates[other].counts[np.ix_(source, target)].sum()
                has_interval[place] = min(support[place], below) >= MIN_SUPPORT
                source = target

        def clipped(ratios, support=support):
            shrunk = shrink_ratios(ratios, support, section.support_shrinkage)
            return clip_ratios(shrunk, section.clip_min, section.clip_max), shrunk

        ratio = trace_ratios(trace.steps, estimates[own].p, estimates[other].p)
        weight, shrunk = clipped(ratio)
        pairs = zip(draws[own].astype(float), draws[other].astype(float), strict=True)
        drawn = [clipped(trace_ratios(trace.steps, p, q))[0] for p, q in pairs]
        tail = (1 - confidence) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
        columns = {"weight": weight, "ratio": ratio, "clipped": weight != shrunk, "support": support}
        bounds = {"weight_low": low, "weight_high": high}
        columns |= {name: np.where(has_interval, bound, np.nan) for name, bound in bounds.items()}
        of_segment = {name: values[trace.step_of_segment] for name, values in columns.items()}
        frames.append(
            pd.DataFrame({"trace_id": trace.trace_id, "segment": range(len(trace.step_of_segment)), **of_segment})
        )
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize(
    "section",
    [
        RewardConfig(),
        RewardConfig(reference="opposite", clip_max=1.5),
        RewardConfig(support_shrinkage=4.0),
        RewardConfig(condition_on="stratum", reference="opposite"),
    ],
    ids=lambda section: " ".join(section.model_dump(exclude_defaults=True)),
)
def test_weights_equal_those_of_each_trace_and_draw_alone(traces, matrices, section):
    found = weigh_segments(traces, matrices, section, confidence=0.9)
    expected = plain_rows(traces, matrices, section, confidence=0.9)
    assert list(found) == list(SEGMENT_WEIGHTS.columns)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert found["weight"].between(section.clip_min, section.clip_max).all()


@pytest.mark.parametrize("batch_rows", [5, 100_000])
def test_files_give_the_weights_of_the_plain_path_in_rows_that_keep_the_contract(
    rows, traces, matrices, tmp_path, batch_rows
):
    files = write_files(tmp_path, *rows)
    weigher = Weigher(matrices, RewardConfig(), confidence=0.95)
    with TableWriter(tmp_path / "weights.parquet", SEGMENT_WEIGHTS) as table:
        for batch in read_trace_batches(*files, taxonomy=TAXONOMY, batch_rows=batch_rows):
            table.write(weigher.weigh(batch))
    found = read_table(tmp_path / "weights.parquet")
    pd.testing.assert_frame_equal(
        found, weigh_segments(traces, matrices, RewardConfig(), confidence=0.95), check_dtype=False
    )
    assert weigher.counts == {
        "segments": len(found),
        "clipped": int(found["clipped"].sum()),
        "without label": sum(not trace.steps[step] for trace in traces for step in trace.step_of_segment),
    }


def test_support_worked_by_hand():
    def trace(name, polarity, *steps):
        return LabelledTrace(name, polarity, list(steps), list(range(len(steps))))

    traces = [trace("a", "positive", (1,), (), (2,)), trace("b", "positive", (1, 2)), trace("c", "negative", (3,))]
    matrices = estimate_transitions(traces, EstimateConfig(estimator="frequency", num_resamples=0), TAXONOMY)
    frame = weigh_segments(traces, matrices, RewardConfig(), confidence=0.95).set_index(["trace_id", "segment"])
    # <start> → 1 has a whole count from a and half a one from b; 1 → 2 has one from a; nothing leads to a gap
    assert frame["support"].tolist() == [1.5, 0, 1, 2, 1]
    assert frame.loc[("a", 1), ["weight", "ratio", "clipped"]].tolist() == [1, 1, False]
    assert frame[["weight_low", "weight_high"]].isna().all(axis=None), "no bootstrap, no interval"


def test_shrinkage_ends_at_one(traces, matrices):
    assert (
        weigh_segments(traces, matrices, RewardConfig(support_shrinkage=1e9), confidence=0.95)["weight"] - 1
    ).abs().max() < 1e-5
    paper, shrunk = (
        weigh_segments(traces, matrices, RewardConfig(support_shrinkage=tau), confidence=0.95) for tau in (0, 3)
    )
    assert paper["ratio"].equals(shrunk["ratio"])
    assert (np.log(shrunk["weight"]).abs() <= np.log(paper["weight"]).abs() + 1e-12).all()
    assert (shrunk["weight_high"] - shrunk["weight_low"]).mean() < (paper["weight_high"] - paper["weight_low"]).mean()


def test_a_stratum_without_both_polarities_falls_back_and_is_counted(traces, matrices, tmp_path):
    lone = [trace._replace(stratum="lone", trace_id=f"lone{n}") for n, trace in enumerate(traces[:9])]
    lone = [trace._replace(polarity="positive") for trace in lone]
    everything = [*traces, *lone]
    matrices = estimate_transitions(everything, EstimateConfig(num_resamples=0), TAXONOMY)
    assert list(matrices.strata) == sorted(STRATA)
    for stratum, estimates in matrices.strata.items():
        own = [trace for trace in traces if trace.stratum == stratum]
        alone = estimate_transitions(own, EstimateConfig(num_resamples=0), TAXONOMY)
        assert not alone.strata, "one stratum is the whole"
        for name in CLASSES:
            np.testing.assert_allclose(estimates[name].p, alone.estimates[name].p)
    pooled, conditioned = (
        weigh_segments(everything, matrices, RewardConfig(condition_on=choice), confidence=0.95).set_index("trace_id")[
            "ratio"
        ]
        for choice in ("none", "stratum")
    )
    is_lone = pooled.index.str.startswith("lone")
    assert (pooled[is_lone] == conditioned[is_lone]).all()
    assert (pooled[~is_lone] != conditioned[~is_lone]).mean() > 0.5


@pytest.mark.parametrize("num_negative", [0, 9, 10])
def test_a_stratum_with_few_traces_of_a_polarity_falls_back_and_is_counted(traces, num_negative):
    labelled = [trace for trace in traces if any(trace.steps)]
    small = [
        trace._replace(trace_id=f"small{n}", stratum="small", polarity="negative" if n < num_negative else "positive")
        for n, trace in enumerate(labelled[:40])
    ]
    matrices = estimate_transitions([*traces, *small], EstimateConfig(num_resamples=0), TAXONOMY)
    assert ("small" in matrices.strata) == (num_negative == 10)
    weigher = Weigher(matrices, RewardConfig(condition_on="stratum"), confidence=0.95)
    weigher.weigh(batch_of_traces([*traces, *small]))
    assert weigher.counts["traces weighed by pooled matrices"] == (0 if num_negative == 10 else len(small))


def test_the_traces_that_fell_back_are_counted(rows, matrices, tmp_path):
    candidates, annotations = rows
    changed = [row | {"stratum": "new"} if n < 10 else row for n, row in enumerate(candidates)]
    weigher = Weigher(matrices, RewardConfig(condition_on="stratum"), confidence=0.95)
    files = write_files(tmp_path, changed, annotations)
    for batch in read_trace_batches(*files, taxonomy=TAXONOMY, batch_rows=20):
        weigher.weigh(batch)
    with_rows = {row["trace_id"] for row in annotations}
    expected = sum(row["trace_id"] in with_rows for row in changed[:10])
    assert 0 < expected == weigher.counts["traces weighed by pooled matrices"]


def test_conditioning_on_nothing_is_refused(matrices):
    with pytest.raises(ConfigError, match=r"reward\.condition_on is 'stratum', but no stratum has matrices"):
        Weigher(matrices._replace(strata={}, strata_draws={}), RewardConfig(condition_on="stratum"), confidence=0.95)


def test_strata_and_draws_survive_saving(matrices, tmp_path):
    matrices.save(tmp_path / "transitions.npz")
    back = TransitionMatrices.load(tmp_path / "transitions.npz")
    assert list(back.strata) == list(matrices.strata) == sorted(STRATA)
    pairs = [(matrices.strata[name], back.strata[name]) for name in STRATA]
    for one, other in [(matrices.estimates, back.estimates), *pairs]:
        for name in CLASSES:
            for field, value in one[name]._asdict().items():
                np.testing.assert_array_equal(getattr(other[name], field), value)
    drawn = [(matrices.strata_draws[name], back.strata_draws[name]) for name in STRATA]
    for draws, same in [(matrices.draws, back.draws), *drawn]:
        for name in CLASSES:
            assert draws[name].dtype == same[name].dtype == np.float32
            np.testing.assert_array_equal(draws[name], same[name])


@pytest.mark.parametrize("module", [estimators, weights])
def test_docstring_examples_hold(module):
    results = doctest.testmod(module)
    assert results.attempted and not results.failed
