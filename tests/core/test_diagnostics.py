"""What the estimate stage tells about itself."""

import doctest

import numpy as np
import pytest

from mralign_core import diagnostics
from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.diagnostics import Diagnostics, compare_estimators, diagnose, weight_sensitivity, weight_shift
from mralign_core.estimation import LabelledTrace, estimate_transitions, weigh_segments
from mralign_core.evaluation.diagnostic_findings import findings, sensitivity_table, tables
from mralign_core.method.taxonomy import Taxonomy

NAMES = ("ask", "look", "doubt", "tell")
LABELS = Taxonomy(NAMES, dict.fromkeys(NAMES, "talk"), dict.fromkeys(NAMES, "says"))
"""Four labels of no paper: nothing may assume the fifteen."""


def trace(number, polarity, stratum, rng, habits):
    """A trace whose next label is drawn by ``habits[(stratum, polarity)]``; every fifth step is vague, or empty."""
    state, steps = 0, []
    while state != 5 and len(steps) < 12:
        state = int(rng.choice(6, p=habits[state]))
        vague = tuple(sorted({state, 1 + int(rng.integers(4))}))
        if state != 5:
            steps.append(vague if rng.random() < 0.2 else (state,))
    steps.append(())
    return LabelledTrace(f"t{number}", polarity, steps, list(range(len(steps))), stratum)


def habit(rng):
    p = np.zeros((6, 6))
    p[:5, 1:] = rng.dirichlet(np.ones(5), 5)
    p[0, 1:] = [0.25, 0.25, 0.25, 0.25, 0]
    return p


def corpus(seed, *, by, number=120, strata=("hard", "easy")):
    """Traces whose moves depend on their stratum or on their polarity only; strata go with polarity, mostly."""
    rng = np.random.default_rng(seed)
    habits = {name: habit(rng) for name in (*strata, "positive", "negative")}
    traces = []
    for n in range(number):
        polarity = "positive" if n % 2 else "negative"
        stratum = strata[(n % 2 + (rng.random() < 0.15)) % len(strata)]
        traces.append(trace(n, polarity, stratum, rng, habits[stratum if by == "stratum" else polarity]))
    return traces


def diagnosed(traces, estimate=None, reward=None):
    estimate, reward = estimate or EstimateConfig(), reward or RewardConfig()
    matrices = estimate_transitions(traces, estimate, LABELS)
    single = [t._replace(steps=[step[:1] for step in t.steps]) for t in traces]
    return diagnose(traces, matrices, estimate, reward, np.random.default_rng(0), taxonomy=LABELS, single_label=single)


@pytest.fixture(scope="module")
def by_stratum():
    return diagnosed(corpus(0, by="stratum"))


def test_the_result_survives_json(by_stratum):
    assert Diagnostics.from_json(by_stratum.to_json()) == by_stratum
    assert not by_stratum.skipped


def test_support_is_counted(by_stratum):
    plus, minus, every = by_stratum.yields
    assert plus.transitions + minus.transitions == every.transitions
    assert (every.traces, every.unlabelled_steps, every.unlabelled_traces) == (120, 120, 0)
    assert 0.5 < every.share_in_entries <= 1 and every.states_left == 5


def test_the_undamped_objective_never_falls_and_ends_above_the_damped(by_stratum):
    for row in by_stratum.objectives:
        assert (np.diff(row.undamped) >= -1e-9).all()
        assert len(row.configured) == 6 and row.configured[0] == pytest.approx(row.undamped[0])
        assert row.undamped[-1] >= row.configured[-1]


def test_the_paper_is_its_own_yardstick(by_stratum):
    rows = {row.estimator: row for row in by_stratum.estimators}
    assert list(rows) == ["paper", "converged", "frequency", "single label"]
    assert set(rows["paper"].l1.values()) == {0.0} and rows["paper"].shift.mean_abs_log == 0
    assert 0 < rows["converged"].shift.mean_abs_log < rows["frequency"].shift.mean_abs_log


def test_strata_alone_explain_what_only_they_make(by_stratum):
    polarities = by_stratum.strata.polarities
    assert polarities.l1 > 2 * polarities.by_chance
    assert polarities.by_strata > 0.8 * polarities.l1
    assert any("of the distance beyond chance" in line for line in findings(by_stratum))


def test_strata_alone_do_not_explain_what_polarity_makes():
    polarities = diagnosed(corpus(0, by="polarity")).strata.polarities
    # Strata go with polarity in this corpus, so shuffling within them leaves some of the distance, not all.
    assert polarities.by_strata < 0.85 * polarities.l1


def test_no_difference_is_no_further_than_chance():
    traces = corpus(1, by="stratum", strata=("one",))
    alike = [t._replace(stratum="ab"[n % 4 > 1]) for n, t in enumerate(traces)]
    found = diagnosed(alike).strata
    assert found.polarities.l1 < 1.5 * found.polarities.by_chance
    assert found.strata[0].l1 < 1.5 * found.strata[0].by_chance


def test_conditioned_weights_are_those_of_the_reward_stage():
    traces, reward = corpus(2, by="stratum"), RewardConfig()
    found = diagnosed(traces).strata
    matrices = estimate_transitions(traces, EstimateConfig(), LABELS)
    weights = [
        weigh_segments(traces, matrices, reward.model_copy(update={"condition_on": choice}))["weight"].to_numpy(float)
        for choice in ("none", "stratum")
    ]
    labelled = np.array([bool(t.steps[step]) for t in traces for step in t.step_of_segment])
    assert found.conditioned == ("easy", "hard")
    assert found.conditioned_shift == weight_shift(weights[0][labelled], weights[1][labelled])


def test_the_configured_setting_has_no_shift_and_the_grid_is_whole():
    traces, estimate, reward = corpus(3, by="polarity"), EstimateConfig(prior=0.3), RewardConfig(clip_max=2.0)
    found = weight_sensitivity(traces, estimate, reward, np.random.default_rng(0), taxonomy=LABELS)
    assert len(found.grid) == 5 * 5 * 5
    for name, number in (("damping", 5), ("prior", 5), ("clip", 5)):
        rows = found.along(name)
        assert len(rows) == number
        assert sum(row.shift.mean_abs_log == 0 for row in rows) >= 1
    prior = {row.prior: row.shift.mean_abs_log for row in found.along("prior")}
    assert prior[0.3] == 0 < prior[0.1] < prior[0.01] and prior[1.0] < prior[10.0]
    assert found.along("clip")[-1].clip_max is None and found.along("clip")[-1].share_clipped == 0
    assert "0.3 (this run)" in sensitivity_table(found)["value"].tolist()


def test_a_tighter_clip_clips_more():
    found = weight_sensitivity(
        corpus(3, by="polarity"), EstimateConfig(), RewardConfig(), np.random.default_rng(0), taxonomy=LABELS
    )
    shares = [row.share_clipped for row in found.along("clip")]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0


@pytest.mark.parametrize("estimator", ["em", "em_converged", "frequency"])
def test_two_traces_give_a_result_that_says_too_few(estimator):
    traces = corpus(4, by="polarity", number=2, strata=("one",))
    found = diagnosed(traces, EstimateConfig(estimator=estimator))
    assert found.stationarity == found.order == {"positive": None, "negative": None}
    assert found.strata is None and "one stratum" in found.skipped["strata"]
    assert "too few" in found.skipped["stationarity.positive"]
    assert any("Not computed" in line for line in findings(found)) and tables(found)
    assert Diagnostics.from_json(found.to_json()) == found


def test_strata_without_both_polarities_keep_pooled_weights():
    traces = [t._replace(stratum=t.polarity) for t in corpus(5, by="polarity")]
    found = diagnosed(traces)
    assert found.strata.conditioned == () and found.strata.conditioned_shift is None
    assert "no stratum has traces of both polarities" in found.skipped["strata.conditioned_shift"]
    # Polarity and stratum are one: shuffling within strata changes nothing.
    assert found.strata.polarities.by_strata == pytest.approx(found.strata.polarities.l1)


def test_many_strata_are_put_together():
    traces = [t._replace(stratum=f"s{n % 9}") for n, t in enumerate(corpus(6, by="polarity"))]
    found = diagnosed(traces).strata
    assert len(found.traces) == diagnostics.MAX_STRATA + 1 and diagnostics.OTHER_STRATA in found.traces
    assert sum(sum(counts.values()) for counts in found.traces.values()) == 120


def test_large_inputs_are_sampled_with_a_seed_and_it_says_so(monkeypatch):
    monkeypatch.setattr(diagnostics, "MAX_TRACES", 40)
    traces = corpus(7, by="polarity")
    one, two = diagnosed(traces), diagnosed(traces)
    assert one == two
    assert one.used_traces == {"positive": 40, "negative": 40, "strata and weights": 40}


def test_without_single_labels_their_row_is_left_out():
    rows = compare_estimators(corpus(8, by="polarity"), RewardConfig(), LABELS)
    assert [row.estimator for row in rows] == ["paper", "converged", "frequency"]


def test_docstring_examples_hold():
    results = doctest.testmod(diagnostics)
    assert results.attempted and not results.failed


def test_a_shift_of_nothing_is_none():
    assert weight_shift(np.empty(0), np.empty(0)).segments == 0
