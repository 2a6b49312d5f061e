"""Weights without the own question are those of matrices that never saw it, estimated one by one."""

import numpy as np
import pytest

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.estimation.alterations import make_weigher
from mralign_core.estimation.diagnostics.own_question import own_question_pull
from mralign_core.estimation.diagnostics.survey import survey_traces
from mralign_core.estimation.matrices import MIN_STRATUM_TRACES, estimate_transitions
from mralign_core.estimation.traces import batch_of_traces
from mralign_core.estimation.weights import weigh_segments
from mralign_core.method.distances import unexplained_share
from tests.core.estimation.test_bootstrap import TAXONOMY, random_traces

EM = EstimateConfig(num_resamples=0)


@pytest.fixture(scope="module")
def traces():
    """Questions of up to four traces, in one stratum each, some with both polarities, some traces without a label."""
    made = random_traces(np.random.default_rng(0), 150)
    numbers = [n * 2 // 5 for n in range(150)]
    return [trace._replace(question_id=f"q{n}", stratum="ab"[n % 2]) for trace, n in zip(made, numbers, strict=True)]


def left_out(traces, section, estimate=EM, batch_size=40):
    def read():
        return (batch_of_traces(traces[start : start + batch_size]) for start in range(0, len(traces), batch_size))

    matrices = estimate_transitions(traces, estimate, TAXONOMY)
    section = section.model_copy(update={"leave_own_question_out": True})
    weigher = make_weigher(read, matrices, estimate, section, seed=0, taxonomy=TAXONOMY, weighed=read)
    return [{name: np.asarray(column) for name, column in weigher.weigh(batch).items()} for batch in read()]


@pytest.mark.parametrize(
    ("section", "estimate"),
    [
        (RewardConfig(), EM),
        (RewardConfig(), EstimateConfig(num_resamples=0, estimator="frequency")),
        (RewardConfig(reference="opposite", clip_min=0.2, clip_max=5.0), EM),
        (RewardConfig(support_shrinkage=4.0), EM),
        (RewardConfig(condition_on="stratum"), EM),
    ],
)
def test_they_are_those_of_matrices_that_never_saw_the_question(traces, section, estimate):
    found = {
        name: np.concatenate([part[name] for part in left_out(traces, section, estimate)])
        for name in ("weight", "support")
    }
    start = 0
    for number, trace in enumerate(traces):
        size = len(trace.step_of_segment)
        if number % 7 == 0:
            others = [other for other in traces if other.question_id != trace.question_id]
            matrices = estimate_transitions(others, estimate, TAXONOMY, min_stratum_traces=MIN_STRATUM_TRACES - 4)
            alone = weigh_segments([trace], matrices, section, confidence=0.9)
            for name, values in found.items():
                np.testing.assert_allclose(values[start : start + size], alone[name].to_numpy(float), atol=1e-8)
        start += size
    assert start == len(found["weight"])


def test_batches_of_any_size_give_the_same_and_there_is_no_interval(traces):
    whole, parts = left_out(traces, RewardConfig(), batch_size=1000), left_out(traces, RewardConfig(), batch_size=7)
    np.testing.assert_array_equal(whole[0]["weight"], np.concatenate([part["weight"] for part in parts]))
    assert all(value is None or np.isnan(value) for value in whole[0]["weight_low"].tolist())


def test_polarities_are_those_that_the_matrices_were_estimated_with(traces):
    permuted = left_out(traces, RewardConfig(), EstimateConfig(num_resamples=0, permute_polarity=True))
    assert (permuted[0]["weight"] != left_out(traces, RewardConfig())[0]["weight"]).any()


def test_the_own_share_falls_as_there_are_more_questions():
    shares = []
    for number in (40, 400):
        made = random_traces(np.random.default_rng(1), number)
        survey = survey_traces([batch_of_traces(made)], TAXONOMY.num_states, np.random.default_rng(0))
        found = own_question_pull(survey, EM, RewardConfig(), taxonomy=TAXONOMY)
        section = RewardConfig()
        matrices = estimate_transitions(survey.some, EM, TAXONOMY)
        weights = weigh_segments(survey.some, matrices, section, confidence=0.9)["weight"].to_numpy(float)
        without = np.concatenate([part["weight"] for part in left_out(survey.some, section)])
        labelled = np.array([bool(t.steps[step]) for t in survey.some for step in t.step_of_segment])
        expected = unexplained_share(np.log(weights[labelled]), np.log(without[labelled]))
        assert found.own_share == pytest.approx(expected) and found.shift.num_segments == labelled.sum()
        assert found.own_share is not None
        shares.append(found.own_share)
    assert 1 > shares[0] > 2 * shares[1] > 0


def test_moves_of_the_only_question_of_a_polarity_tell_nothing(traces):
    lone = [trace._replace(polarity="positive" if trace.question_id == "q0" else "negative") for trace in traces]
    assert {trace.polarity for trace in lone} == {"positive", "negative"}
    found = left_out(lone, RewardConfig())[0]
    is_lone = np.isin(np.asarray(found["trace_id"]), [trace.trace_id for trace in lone if trace.question_id == "q0"])
    weights = np.asarray(found["weight"], dtype=float)
    assert (weights[is_lone] == 1).all() and (weights[~is_lone] != 1).any()


@pytest.mark.parametrize("name", ["a question before all", "q17.5", "zz"])
def test_a_question_that_took_no_part_is_weighed_by_the_matrices_of_all(traces, name):
    def read():
        return [batch_of_traces(traces)]

    matrices = estimate_transitions(traces, EM, TAXONOMY)
    section = RewardConfig(leave_own_question_out=True)
    weigher = make_weigher(read, matrices, EM, section, seed=0, taxonomy=TAXONOMY, weighed=read)
    others = [trace._replace(question_id=name) for trace in traces[:20]]
    found = np.asarray(weigher.weigh(batch_of_traces(others))["weight"])
    expected = weigh_segments(others, matrices, RewardConfig(), confidence=0.9)["weight"].to_numpy(float)
    np.testing.assert_allclose(found, expected, atol=1e-12)
