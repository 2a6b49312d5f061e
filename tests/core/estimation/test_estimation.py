"""From annotation tables to matrices and weights."""

import numpy as np
import pandas as pd
import pytest

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.errors import ArtifactError, DataError, NoCandidatesError
from mralign_core.estimation import estimators
from mralign_core.estimation.estimators import make_matrix_estimator
from mralign_core.estimation.matrices import TransitionMatrices, estimate_transitions
from mralign_core.estimation.traces import LabelledTrace, labelled_traces
from mralign_core.estimation.weights import weigh_segments
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.method.transitions import cross_tabulate, e_step, fit_em, m_step, transition_mask
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from tests.oracles import count_set_pairs

FREQUENCY = EstimateConfig(estimator="frequency")


def states(*labels):
    return tuple(PAPER_TAXONOMY.state(label) for label in labels)


def annotated(trace_id, *segments):
    """Rows of one trace: a step and its labels for each segment."""
    return [
        {
            "trace_id": trace_id,
            "segment": number,
            "step": step,
            "labels": list(labels),
            "confidences": [5.0, 9.0][: len(labels)],
        }
        for number, (step, labels) in enumerate(segments)
    ]


@pytest.fixture
def traces():
    good = LabelledTrace("good", "positive", [states("framing"), states("retrieval"), states("synthesis")], [0, 1, 2])
    bad = LabelledTrace("bad", "negative", [states("framing"), states("analogy"), states("synthesis")], [0, 1, 2])
    return [good, good._replace(trace_id="good2"), bad]


def test_traces_join_their_labels_in_order_and_merge_steps():
    candidates = pd.DataFrame({"trace_id": ["b", "none", "a"], "polarity": ["negative", "positive", "positive"]})
    rows = annotated("a", (0, ["framing"]), (1, ["analogy", "retrieval"]), (1, ["analogy", "retrieval"]), (3, []))
    annotations = pd.DataFrame([*rows[::-1], *annotated("b", (0, ["synthesis"]))])
    b, a = labelled_traces(candidates, annotations, taxonomy=PAPER_TAXONOMY)
    assert (b.trace_id, b.polarity, b.steps) == ("b", "negative", [states("synthesis")])
    assert a.steps == [states("framing"), states("analogy", "retrieval"), ()]
    assert a.step_of_segment == [0, 1, 1, 2]
    one = labelled_traces(candidates, annotations, labels_per_segment="one", taxonomy=PAPER_TAXONOMY)[1]
    assert one.steps == [states("framing"), states("retrieval"), ()]


def test_a_step_keeps_the_label_that_is_surest_in_its_first_segment():
    rows = annotated("a", (0, ["analogy", "retrieval"]), (0, ["retrieval", "analogy"]), (0, ["analogy", "retrieval"]))
    rows[0]["confidences"], rows[1]["confidences"], rows[2]["confidences"] = [8.0, 6.0], [9.0, 5.0], [1.0, 7.0]
    candidates = pd.DataFrame({"trace_id": ["a"], "polarity": ["negative"]})
    (trace,) = labelled_traces(candidates, pd.DataFrame(rows), labels_per_segment="one", taxonomy=PAPER_TAXONOMY)
    assert trace.steps == [states("analogy")] and trace.step_of_segment == [0, 0, 0]


@pytest.mark.parametrize("labels_per_segment", ["two", "one"])
def test_a_step_with_different_labels_is_refused(labels_per_segment):
    rows = annotated("a", (0, ["framing"]), (1, ["analogy", "retrieval"]), (1, ["retrieval"]))
    candidates = pd.DataFrame({"trace_id": ["a"], "polarity": ["negative"]})
    with pytest.raises(DataError, match="trace 'a', segment 2: labels differ"):
        labelled_traces(candidates, pd.DataFrame(rows), labels_per_segment=labels_per_segment, taxonomy=PAPER_TAXONOMY)


def test_matrices_are_estimated_from_the_traces_of_their_polarity(traces):
    matrices = estimate_transitions(traces, FREQUENCY, PAPER_TAXONOMY)
    framing, retrieval, analogy = states("framing", "retrieval", "analogy")
    p = {name: estimate.p for name, estimate in matrices.estimates.items()}
    assert p["plus"][framing, retrieval] > p["all"][framing, retrieval] > p["minus"][framing, retrieval]
    assert p["minus"][framing, analogy] > p["all"][framing, analogy] > p["plus"][framing, analogy]
    counts = {name: estimate.counts for name, estimate in matrices.estimates.items()}
    np.testing.assert_allclose(counts["plus"] + counts["minus"], counts["all"])


@pytest.mark.parametrize("estimator", ["em", "em_converged", "frequency"])
def test_rows_are_distributions_with_every_estimator(traces, estimator):
    matrices = estimate_transitions(traces, EstimateConfig(estimator=estimator), PAPER_TAXONOMY)
    for estimate in matrices.estimates.values():
        sums = estimate.p.sum(axis=1)
        np.testing.assert_allclose(sums[sums > 0], 1)


@pytest.mark.parametrize(("polarity", "sign"), [("positive", "P⁻"), ("negative", "P⁺")])
def test_labels_all_of_one_polarity_are_refused(traces, polarity, sign):
    own = [trace for trace in traces if trace.polarity == polarity]
    with pytest.raises(NoCandidatesError, match=rf"{sign} can't be estimated: none of the {len(own)} annotated"):
        estimate_transitions(own, FREQUENCY, PAPER_TAXONOMY)


def test_no_annotated_trace_at_all_points_at_the_annotators():
    with pytest.raises(NoCandidatesError, match=r"no trace was annotated.*annotate\.annotator_a"):
        estimate_transitions([], FREQUENCY, PAPER_TAXONOMY)


def test_matrices_survive_saving(traces, tmp_path):
    matrices = estimate_transitions(traces, EstimateConfig(), PAPER_TAXONOMY)
    matrices.save(tmp_path / "transitions.npz")
    back = TransitionMatrices.load(tmp_path / "transitions.npz")
    assert back.state_names == matrices.state_names
    for name, estimate in matrices.estimates.items():
        for field, value in estimate._asdict().items():
            np.testing.assert_array_equal(getattr(back.estimates[name], field), value)


@pytest.mark.parametrize("damage", ["empty", "prose", "cut", "other arrays"])
def test_a_file_without_matrices_is_refused(traces, tmp_path, damage):
    path = tmp_path / "transitions.npz"
    estimate_transitions(traces, FREQUENCY, PAPER_TAXONOMY).save(path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "prose": b"not an archive"}.get(damage, whole[: len(whole) // 2]))
    if damage == "other arrays":
        np.savez(path, x=1)
    with pytest.raises(ArtifactError, match="run stage estimate again"):
        TransitionMatrices.load(path)


def test_weights_are_ratios_of_the_transitions_into_each_segment(traces):
    matrices = estimate_transitions(traces, FREQUENCY, PAPER_TAXONOMY)
    frame = SEGMENT_WEIGHTS.require(weigh_segments(traces, matrices, RewardConfig(), confidence=0.95).astype(object))
    p = {name: estimate.p for name, estimate in matrices.estimates.items()}
    framing, retrieval, analogy = states("framing", "retrieval", "analogy")
    row = frame.set_index(["trace_id", "segment"])
    expected = p["plus"][framing, retrieval] / p["all"][framing, retrieval]
    assert row.loc[("good", 1), "ratio"] == pytest.approx(expected)
    expected = p["minus"][framing, analogy] / p["all"][framing, analogy]
    assert row.loc[("bad", 1), "ratio"] == pytest.approx(expected)


def test_the_opposite_reference_contrasts_the_classes_and_the_clip_holds(traces):
    matrices = estimate_transitions(traces, FREQUENCY, PAPER_TAXONOMY)
    frame = weigh_segments(traces, matrices, RewardConfig(reference="opposite", clip_max=1.5), confidence=0.95)
    assert frame["weight"].between(np.exp(-1), 1.5).all()
    clipped = frame[frame["clipped"]]
    assert len(clipped) and (clipped["weight"] != clipped["ratio"]).all()
    all_of = weigh_segments(traces, matrices, RewardConfig(clip_max=1.5), confidence=0.95)
    assert (frame["ratio"].max(), frame["ratio"].min()) > (all_of["ratio"].max(), 0)


def test_segments_of_one_step_share_its_weight(traces):
    merged = traces[0]._replace(step_of_segment=[0, 1, 1, 2])
    matrices = estimate_transitions(traces, FREQUENCY, PAPER_TAXONOMY)
    plain, shared = (
        weigh_segments([trace], matrices, RewardConfig(), confidence=0.95)["weight"].tolist()
        for trace in (traces[0], merged)
    )
    assert shared == [plain[0], plain[1], plain[1], plain[2]]


def test_converged_em_stands_still_and_is_the_highest(traces):
    pairs = count_set_pairs([[(1, 2), (3,), (2, 3)], [(2,), (1, 3)], [(1, 2), (1, 3)]], 5)
    converged, paper, frequency = (
        make_matrix_estimator(EstimateConfig(estimator=name), 5)(pairs) for name in ("em_converged", "em", "frequency")
    )
    again = m_step(e_step(converged.p, cross_tabulate(pairs)), 0.1, transition_mask(5))
    assert np.abs(again - converged.p).max() < 1e-6
    assert (paper.num_iterations, frequency.num_iterations) == (5, 0)
    assert converged.num_iterations > 5
    assert converged.log_posterior[-1] > paper.log_posterior[-1] > frequency.log_posterior[-1]
    assert (np.diff(converged.log_posterior) >= -1e-12).all()


def test_the_paper_estimator_takes_the_config_values():
    pairs = count_set_pairs([[(1, 2), (3,)], [(2,), (1, 3)]], 5)
    section = EstimateConfig(num_iterations=3, damping=0.5, prior=0.3, tolerance=0)
    expected = fit_em(pairs, 5, num_iterations=3, damping=0.5, prior=0.3, tolerance=0)
    assert (make_matrix_estimator(section, 5)(pairs).p == expected.p).all()


def test_em_that_does_not_converge_is_said(traces, caplog, monkeypatch):
    section = EstimateConfig(estimator="em_converged")
    estimate_transitions(traces, section, PAPER_TAXONOMY)
    assert "did not converge" not in caplog.text
    monkeypatch.setattr(estimators, "MOST_ITERATIONS", 2)
    two_labels = [trace._replace(steps=[(1, 2), (2, 3), (1, 3)]) for trace in traces]
    estimate_transitions(two_labels, section, PAPER_TAXONOMY)
    assert "the EM of plus did not converge in 2 iterations" in caplog.text


def test_more_than_two_labels_are_refused(traces):
    with pytest.raises(DataError, match="trace 'good', step 1 has more than 2 labels"):
        estimate_transitions([traces[0]._replace(steps=[(1,), (1, 2, 3), (4,)])], FREQUENCY, PAPER_TAXONOMY)
