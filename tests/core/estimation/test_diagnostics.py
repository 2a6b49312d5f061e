"""What the estimate stage tells about itself."""

import numpy as np
import pytest

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.estimation.diagnostics import Diagnostics, diagnose, survey
from mralign_core.estimation.diagnostics.sensitivity import weight_sensitivity
from mralign_core.estimation.diagnostics.strata import MAX_STRATA, OTHER_STRATA, compare_strata
from mralign_core.estimation.diagnostics.survey import survey_traces
from mralign_core.estimation.matrices import MIN_STRATUM_TRACES, estimate_transitions
from mralign_core.estimation.traces import LabelledTrace, batch_of_traces
from mralign_core.estimation.weights import weigh_segments
from mralign_core.method.distances import weight_shift
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.reporting.diagnostic_findings import findings, sensitivity_table, tables

NAMES = ("ask", "look", "doubt", "tell")
LABELS = Taxonomy(NAMES, dict.fromkeys(NAMES, "talk"), dict.fromkeys(NAMES, "says"))
"""Four labels of no paper: nothing may assume the fifteen."""


def trace(number, polarity, stratum, rng, habits):
    """A trace whose next label is drawn by ``habits[(stratum, polarity)]``; every fifth step is vague, or empty."""
    state = 0
    steps: list[tuple[int, ...]] = []
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
    """Traces whose moves depend on their stratum or on their polarity only; strata go with polarity in four of five."""
    rng = np.random.default_rng(seed)
    habits = {name: habit(rng) for name in (*strata, "positive", "negative")}
    traces = []
    for n in range(number):
        polarity = "positive" if n % 2 else "negative"
        stratum = strata[(n % 2 + (n % 10 in (4, 5))) % len(strata)]
        traces.append(trace(n, polarity, stratum, rng, habits[stratum if by == "stratum" else polarity]))
    return traces


def surveyed(traces, seed=0):
    """In batches of seven, as from a file."""
    batches = [batch_of_traces(traces[start : start + 7]) for start in range(0, len(traces), 7)]
    return survey_traces(batches, LABELS.num_states, np.random.default_rng(seed))


def diagnosed(traces, estimate=None, reward=None):
    estimate, reward = estimate or EstimateConfig(), reward or RewardConfig()
    matrices = estimate_transitions(traces, estimate, LABELS)
    single = [t._replace(steps=[step[:1] for step in t.steps]) for t in traces]
    surveys = {"two": surveyed(traces), "one": surveyed(single)}
    return diagnose(surveys, matrices, estimate, reward, np.random.default_rng(0), taxonomy=LABELS)


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
    assert list(rows) == ["paper", "converged", "frequency", "value", "single label"]
    assert set(rows["paper"].l1.values()) == {0.0} and rows["paper"].shift.mean_abs_log_ratio == 0
    assert 0 < rows["converged"].shift.mean_abs_log_ratio < rows["frequency"].shift.mean_abs_log_ratio


def said(found):
    return " ".join(findings(found))


def test_what_only_strata_make_is_gone_within_them(by_stratum):
    strata = by_stratum.strata
    assert strata.polarities.beyond_chance
    assert not strata.within.beyond_chance and strata.within.l1 < 1.5 * strata.within.by_chance
    assert strata.compared == ("easy", "hard")
    assert "farther than chance gives (polarities shuffled between questions" in said(by_stratum)
    assert "Within strata (easy: 48 positive, 12 negative traces; hard: 12 positive, 48 negative traces)" in said(
        by_stratum
    )
    assert "so they can't be told apart within strata" in said(by_stratum)
    first, second, third, *_ = findings(by_stratum)
    assert first.startswith("Do the labels tell right from wrong on questions not seen? Shown: held-out AUC")
    assert second.startswith("Not shown within strata (easy, hard): held-out AUC") and "tell kinds of question" in third


def test_what_polarity_makes_is_there_within_strata_too():
    # Strata go with polarity in this corpus.
    found = diagnosed(corpus(0, by="polarity"))
    assert found.strata.within.beyond_chance
    assert "so they differ within strata too" in said(found)


def test_no_difference_is_said_to_be_chance():
    traces = corpus(1, by="stratum", strata=("one",))
    alike = [t._replace(stratum="ab"[n % 4 > 1]) for n, t in enumerate(traces)]
    found = diagnosed(alike)
    for distance in (found.strata.polarities, found.strata.within, *found.strata.strata):
        assert not distance.beyond_chance and distance.by_chance < distance.chance_high
    assert "no farther than chance" in said(found)


def test_chance_exceeds_the_quantile_as_seldom_as_it_should():
    rng = np.random.default_rng(0)
    beyond = []
    for seed in range(20):
        traces = corpus(seed, by="stratum", strata=("a", "b"), number=60)
        # Polarities dealt at random within each stratum.
        shuffled = [t._replace(polarity=("positive", "negative")[int(rng.integers(2))]) for t in traces]
        matrices = estimate_transitions(shuffled, EstimateConfig(), LABELS)
        found = compare_strata(surveyed(shuffled).some, matrices, EstimateConfig(), RewardConfig(), rng, {})
        assert found and found.within
        beyond.append(found.within.beyond_chance)
    assert sum(beyond) <= 4


def test_a_stratum_of_few_traces_is_compared_with_nothing():
    few = MIN_STRATUM_TRACES - 1
    traces = [t._replace(stratum="rare") if n < few else t for n, t in enumerate(corpus(0, by="stratum"))]
    found = diagnosed(traces)
    assert sum(found.strata.traces["rare"].values()) == few and "rare" not in found.strata.compared
    assert not any("rare" in distance.between for distance in found.strata.strata)
    assert found.strata.moves and not any("rare" in move.p for move in found.strata.moves)
    assert f"fewer than {few + 1} traces" in found.skipped["strata.rare"]


def test_conditioned_weights_are_those_of_the_reward_stage():
    traces, reward = corpus(2, by="stratum"), RewardConfig()
    found = diagnosed(traces).strata
    matrices = estimate_transitions(traces, EstimateConfig(), LABELS)
    weights = [
        weigh_segments(traces, matrices, reward.model_copy(update={"condition_on": choice}), confidence=0.95)[
            "weight"
        ].to_numpy(float)
        for choice in ("none", "stratum")
    ]
    labelled = np.array([bool(t.steps[step]) for t in traces for step in t.step_of_segment])
    assert found.conditioned == ("easy", "hard")
    assert found.conditioned_shift == weight_shift(weights[0][labelled], weights[1][labelled])


def test_the_configured_setting_has_no_shift_and_the_grid_is_whole():
    traces, estimate, reward = corpus(3, by="polarity"), EstimateConfig(prior=0.3), RewardConfig(clip_max=2.0)
    found = weight_sensitivity(surveyed(traces), estimate, reward, taxonomy=LABELS)
    assert len(found.grid) == 5 * 5 * 5
    for name, number in (("damping", 5), ("prior", 5), ("clip", 5)):
        rows = found.along(name)
        assert len(rows) == number
        assert sum(row.shift.mean_abs_log_ratio == 0 for row in rows) >= 1
    prior = {row.prior: row.shift.mean_abs_log_ratio for row in found.along("prior")}
    assert prior[0.3] == 0 < prior[0.1] < prior[0.01] and prior[1.0] < prior[10.0]
    assert found.along("clip")[-1].clip_max is None and found.along("clip")[-1].share_clipped == 0
    assert "0.3 (this run)" in sensitivity_table(found)["value"].tolist()


def test_a_tighter_clip_clips_more():
    found = weight_sensitivity(surveyed(corpus(3, by="polarity")), EstimateConfig(), RewardConfig(), taxonomy=LABELS)
    shares = [row.share_clipped for row in found.along("clip")]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0


@pytest.mark.parametrize("estimator", ["em", "em_converged", "frequency"])
def test_two_traces_give_a_result_that_says_too_few(estimator):
    traces = corpus(4, by="polarity", number=2, strata=("one",))
    found = diagnosed(traces, EstimateConfig(estimator=estimator))
    assert found.stationarity == found.order == {"positive": None, "negative": None}
    assert "one stratum" in found.skipped["strata"] and found.discrimination[0].overall.verdict == "too few"
    assert found.strata.polarities is None and "fewer than 10 labelled traces" in found.skipped["polarities"]
    assert "too few" in found.skipped["stationarity.positive"]
    assert any("Not computed" in line for line in findings(found)) and tables(found)
    assert Diagnostics.from_json(found.to_json()) == found


def test_each_part_is_computed_whose_own_traces_are_there():
    one_stratum = diagnosed(corpus(4, by="polarity", strata=("one",)))
    assert one_stratum.strata.polarities.beyond_chance and one_stratum.strata.polarities.p_value == 0.01
    assert one_stratum.strata.within is None and one_stratum.strata.strata == ()
    assert list(one_stratum.skipped) == ["discrimination.within", "strata"]
    assert "P⁺ and P⁻ are" in said(one_stratum) and "Shown: held-out AUC" in findings(one_stratum)[0]
    # Nine positive traces: nothing about polarities, all about strata.
    few = [t._replace(polarity="positive" if n < 9 else "negative") for n, t in enumerate(corpus(4, by="stratum"))]
    of_strata = diagnosed(few)
    assert of_strata.strata.polarities is None and "fewer than 10" in of_strata.skipped["polarities"]
    assert of_strata.strata.strata[0].beyond_chance and of_strata.strata.moves
    assert "Too few questions to say: 9 positive and 111 negative questions" in findings(of_strata)[0]


def test_shuffles_keep_the_traces_of_a_question_together():
    # Four copies of each trace as if drawn from one question: no more is known, and the distance is beyond no chance.
    traces = [t._replace(question_id=t.trace_id) for t in corpus(1, by="stratum", strata=("one",), number=40)]
    copies = [t._replace(trace_id=f"{t.trace_id}-{n}") for t in traces for n in range(4)]
    alone = [t._replace(question_id=t.trace_id) for t in copies]
    by_question, by_trace = (diagnosed(each).strata.polarities for each in (copies, alone))
    assert by_question.l1 == by_trace.l1 and by_question.by_chance > 1.3 * by_trace.by_chance
    assert by_trace.beyond_chance and not by_question.beyond_chance


def test_strata_without_both_polarities_keep_pooled_weights():
    traces = [t._replace(stratum=t.polarity) for t in corpus(5, by="polarity")]
    found = diagnosed(traces)
    assert found.strata.conditioned == () and found.strata.conditioned_shift is None
    assert "traces of both polarities" in found.skipped["strata.conditioned_shift"]
    # Polarity and stratum are one: nothing can be compared within strata.
    assert found.strata.within is None and "traces of both polarities" in found.skipped["strata.within"]
    assert "Within strata" not in said(found)


def test_many_strata_are_put_together_but_not_compared_as_one():
    traces = [t._replace(stratum=f"s{n % 9}") for n, t in enumerate(corpus(6, by="polarity", number=270))]
    found = diagnosed(traces).strata
    assert len(found.traces) == MAX_STRATA + 1 and OTHER_STRATA in found.traces
    assert sum(sum(counts.values()) for counts in found.traces.values()) == 270
    assert found.compared and OTHER_STRATA not in found.compared


def test_large_inputs_are_sampled_with_a_seed_and_it_says_so(monkeypatch):
    traces = corpus(7, by="polarity")
    whole = diagnosed(traces)
    monkeypatch.setattr(survey, "MAX_TRACES", 40)
    one, two = diagnosed(traces), diagnosed(traces)
    assert one == two
    assert one.used_traces == {"positive": 40, "negative": 40, "strata and weights": 40}
    assert "40 of 60 (positive), 40 of 60 (negative), 40 of 120 (strata and weights)" in said(one)
    assert "random sample" not in said(whole)
    # Matrices and what is said of them are of all traces.
    assert one.yields == whole.yields and one.objectives == whole.objectives
    assert [row.l1 for row in one.estimators] == [row.l1 for row in whole.estimators]


def test_samples_are_random_whatever_the_order_of_traces(monkeypatch):
    monkeypatch.setattr(survey, "MAX_TRACES", 40)
    # Every other trace is positive, and one in ten is: no period, no class that is left out.
    traces = corpus(7, by="polarity", number=400)
    rare = [t._replace(polarity="positive" if n % 10 == 0 else "negative") for n, t in enumerate(traces)]
    places = {t.trace_id: n for n, t in enumerate(rare)}
    found = surveyed(rare)
    assert {name: len(group) for name, group in found.tested.items()} == {"positive": 40, "negative": 40}
    assert len(found.some) == 40 and sum(t.polarity == "positive" for t in found.some) < 12
    drawn = [places[t.trace_id] for t in found.tested["negative"]]
    assert drawn == sorted(set(drawn)) and len({place % 10 for place in drawn}) > 6
    assert surveyed(rare, seed=1).some != found.some
    # Traces of one label are the same traces.
    single = surveyed([t._replace(steps=[step[:1] for step in t.steps]) for t in rare])
    assert [t.trace_id for t in single.some] == [t.trace_id for t in found.some]


def test_the_yardstick_has_two_labels_in_a_run_with_one():
    traces = corpus(8, by="polarity")
    single = [t._replace(steps=[step[:1] for step in t.steps]) for t in traces]
    estimate = EstimateConfig(labels_per_segment="one")
    surveys = {"two": surveyed(traces), "one": surveyed(single)}
    matrices = estimate_transitions(single, estimate, LABELS)
    found = diagnose(surveys, matrices, estimate, RewardConfig(), np.random.default_rng(0), taxonomy=LABELS)
    assert found.estimators == diagnosed(traces).estimators
    assert {row.estimator: row.shift.mean_abs_log_ratio > 0 for row in found.estimators}["single label"]
    # The rest is of the labels that the run uses.
    for row in found.objectives:
        assert row.configured == tuple(matrices.estimates[row.matrix].log_posterior.tolist())
        assert row.configured[0] == pytest.approx(row.undamped[0])
    order = found.order["positive"]
    assert order and order.num_sets == 4


def test_memory_is_claimed_of_traces_that_have_it_only():
    rng = np.random.default_rng(9)
    plain = corpus(9, by="polarity", number=200)

    def remembering(trace):
        steps = [(int(state),) for state in rng.integers(1, 5, size=2)]
        while rng.random() > 0.08:
            steps.append(steps[-2] if rng.random() < 0.8 else (int(rng.integers(1, 5)),))
        return trace._replace(steps=steps, step_of_segment=list(range(len(steps))))

    mixed = [remembering(t) if t.polarity == "positive" else t for t in plain]
    text = said(diagnosed(mixed))
    assert "Positive traces: a second-order chain of label sets predicts held-out moves better" in text
    assert "Negative traces: no memory beyond the present label set can be shown" in text
