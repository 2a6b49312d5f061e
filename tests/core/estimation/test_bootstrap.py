"""The bootstrap draws what it says, the same at any block size, and its intervals cover."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.estimation import bootstrap
from mralign_core.estimation.bootstrap import draw_transitions
from mralign_core.estimation.corpus import CLASSES, POLARITY_OF, count_corpus
from mralign_core.estimation.estimators import make_estimator
from mralign_core.estimation.matrices import estimate_transitions
from mralign_core.estimation.traces import LabelledTrace, batch_of_traces
from mralign_core.estimation.weights import weigh_segments
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.method.transitions import fit_em
from tests.oracles import count_set_pairs

LABELS = ("ask", "tell", "check")
TAXONOMY = Taxonomy(LABELS, dict.fromkeys(LABELS, "talk"), dict.fromkeys(LABELS, "does something"))
K = TAXONOMY.num_states


def random_traces(rng, number, strata=("a", "b")):
    traces = []
    for place in range(number):
        sizes = rng.choice(3, size=rng.integers(1, 6), p=[0.2, 0.5, 0.3])
        steps = [tuple(int(n) for n in rng.choice(np.arange(1, 4), size=size, replace=False)) for size in sizes]
        polarity = "positive" if rng.random() < 0.6 else "negative"
        kind = (str(rng.choice(strata)), f"q{int(rng.integers(2 * number))}")  # some questions have both polarities
        traces.append(LabelledTrace(f"t{place}", polarity, steps, list(range(len(steps))), *kind))
    return traces


def counted(traces, **options):
    return count_corpus([batch_of_traces(traces[:9]), batch_of_traces(traces[9:])], K, keep_traces=True, **options)


def selections_of(corpus):
    return {stratum: corpus.selections(stratum) for stratum in (None, "a", "b")}


def test_draws_equal_estimates_from_questions_drawn_one_by_one():
    traces = random_traces(np.random.default_rng(0), 40)
    corpus = counted(traces)
    fit = make_estimator(EstimateConfig(), K)
    draws = draw_transitions(corpus, selections_of(corpus), fit, 7, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    by_question: dict[Any, Any] = {}
    for trace, number in zip((t for t in traces if any(t.steps)), corpus.traces.questions, strict=True):
        by_question.setdefault(number, []).append(trace)
    in_order = [by_question[number] for number in sorted(by_question)]
    assert all(len({trace.question_id for trace in own}) == 1 for own in in_order)
    for resample in range(7):
        drawn = []
        for polarities in ({"negative"}, {"positive"}, {"negative", "positive"}):
            members = [own for own in in_order if {trace.polarity for trace in own} == polarities]
            drawn += [trace for place in rng.integers(len(members), size=len(members)) for trace in members[place]]
        assert len({trace.question_id for trace in drawn}) < len(in_order)
        for stratum, name in product(draws, CLASSES):
            polarity = POLARITY_OF.get(name)
            own = [t.steps for t in drawn if polarity in (None, t.polarity) and stratum in (None, t.stratum)]
            found = draws[stratum][name][resample]
            np.testing.assert_allclose(found, fit_em(count_set_pairs(own, K), K).p, atol=1e-6)


@pytest.mark.parametrize("cells", [1, 100, 1 << 24])
def test_the_block_size_changes_no_draw(monkeypatch, cells):
    corpus = counted(random_traces(np.random.default_rng(1), 30))
    arguments = (corpus, selections_of(corpus), make_estimator(EstimateConfig(), K), 11)
    whole = draw_transitions(*arguments, np.random.default_rng(2))
    monkeypatch.setattr(bootstrap, "BLOCK_CELLS", cells)
    for key, draws in draw_transitions(*arguments, np.random.default_rng(2)).items():
        for name in CLASSES:
            np.testing.assert_array_equal(draws[name], whole[key][name])


def test_progress_is_reported_and_the_traces_must_be_there():
    traces, seen = random_traces(np.random.default_rng(1), 30), []
    corpus = counted(traces)
    fit = make_estimator(EstimateConfig(), K)
    draw_transitions(corpus, {}, fit, 3, np.random.default_rng(0), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    without = count_corpus([batch_of_traces(traces)], K)
    with pytest.raises(ValueError, match="keep_traces=True"):
        draw_transitions(without, {}, fit, 3, np.random.default_rng(0))


def test_the_seed_decides_and_none_means_no_bootstrap():
    traces = random_traces(np.random.default_rng(3), 40)
    section = EstimateConfig(num_resamples=5)
    one, again, other = (
        estimate_transitions(traces, section, TAXONOMY, rng=np.random.default_rng(seed)).draws for seed in (1, 1, 2)
    )
    assert set(one) == {"plus", "minus", "all"} and one["all"].shape == (5, K, K) and one["all"].dtype == np.float32
    assert (one["plus"] == again["plus"]).all() and (one["plus"] != other["plus"]).any()
    for matrices in (
        estimate_transitions(traces, section, TAXONOMY, min_stratum_traces=1),
        estimate_transitions(
            traces, EstimateConfig(num_resamples=0), TAXONOMY, rng=np.random.default_rng(1), min_stratum_traces=1
        ),
    ):
        assert not matrices.draws and not matrices.strata_draws and matrices.strata


def of_polarities(num_positive, num_negative, stratum="a"):
    polarities = ["positive"] * num_positive + ["negative"] * num_negative
    return [LabelledTrace(f"{stratum}{n}", p, [(1 + n % 3,), (2,)], [0, 1], stratum) for n, p in enumerate(polarities)]


@pytest.mark.parametrize("few", [1, 9])
def test_few_traces_of_a_polarity_give_no_draws_and_it_is_said(few, caplog):
    section, rng = EstimateConfig(num_resamples=3), np.random.default_rng(0)
    assert estimate_transitions(of_polarities(10, 10), section, TAXONOMY, rng=rng).draws and not caplog.text
    matrices = estimate_transitions(of_polarities(few, 40), section, TAXONOMY, rng=rng)
    assert not matrices.draws
    assert f"one polarity has labelled traces of {few} questions, and fewer than 10 say nothing" in caplog.text
    segment_weights = weigh_segments(of_polarities(few, 40), matrices, RewardConfig(), confidence=0.95)
    assert segment_weights[["weight_low", "weight_high"]].isna().all(axis=None)


def test_a_stratum_of_few_traces_has_no_draws_of_its_own():
    traces = [*of_polarities(20, 20, "a"), *of_polarities(12, 3, "b")]
    section, rng = EstimateConfig(num_resamples=3), np.random.default_rng(0)
    matrices = estimate_transitions(traces, section, TAXONOMY, rng=rng, min_stratum_traces=3)
    assert list(matrices.strata) == ["a", "b"] and list(matrices.strata_draws) == ["a"] and matrices.draws
    segment_weights = weigh_segments(traces, matrices, RewardConfig(condition_on="stratum"), confidence=0.95)
    of_few = segment_weights["trace_id"].str.startswith("b")
    assert segment_weights["weight_low"][of_few].isna().all() and segment_weights["weight_low"][~of_few].notna().any()


def simulate(p, number, rng):
    """Chains of single labels, as traces of one class."""
    traces = []
    for place in range(number):
        steps: list[tuple[int, ...]] = []
        state = int(rng.choice(K, p=p[0]))
        while state != K - 1:
            steps.append((state,))
            state = int(rng.choice(K, p=p[state]))
        traces.append(LabelledTrace(f"t{place}", "positive", steps, list(range(len(steps)))))
    return traces


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    leaving = [[0, 0.5, 0.3, 0.2, 0], [0, 0.2, 0.3, 0.2, 0.3], [0, 0.4, 0.2, 0.2, 0.2], [0, 0.1, 0.4, 0.3, 0.2]]
    p = np.array([*leaving, [0, 0, 0, 0, 1]])
    section, tested = EstimateConfig(estimator="em_converged", prior=0.01), p[:-1, 1:][p[:-1, 1:] > 0]
    rng, covered = np.random.default_rng(0), []
    for _ in range(40):
        corpus = count_corpus([batch_of_traces(simulate(p, 120, rng))], K, keep_traces=True)
        selections = {"": {"plus": corpus.selection("positive")}}
        draws = draw_transitions(corpus, selections, make_estimator(section, K), 120, rng)[""]["plus"]
        low, high = np.quantile(draws[:, :-1, 1:][:, p[:-1, 1:] > 0], [0.05, 0.95], axis=0)
        covered.append((low <= tested) & (tested <= high))
    assert 0.86 < np.mean(covered) < 0.94, "nominal is 0.9"


def of_questions(p, number, rng, *, traces_each=4, likeness=6.0):
    """Traces of questions that each have habits of their own, around p."""
    traces = []
    for question in range(number):
        own = p.copy()
        for row in own[:-1]:
            row[row > 0] = rng.dirichlet(likeness * row[row > 0])
        for trace in simulate(own, traces_each, rng):
            own_ids = {"trace_id": f"{question}-{trace.trace_id}", "question_id": str(question)}
            traces.append(trace._replace(**own_ids))
    return traces


def test_of_traces_that_a_question_makes_alike_intervals_over_questions_cover_and_those_over_traces_do_not():
    leaving = [[0, 0.5, 0.3, 0.2, 0], [0, 0.2, 0.3, 0.2, 0.3], [0, 0.4, 0.2, 0.1, 0.3], [0, 0.1, 0.4, 0.3, 0.2]]
    p = np.array([*leaving, [0, 0, 0, 0, 1]])
    fit, rng = make_estimator(EstimateConfig(estimator="frequency", prior=0.01), K), np.random.default_rng(0)
    many = count_corpus([batch_of_traces(of_questions(p, 4000, rng))], K)
    truth = fit({"plus": many.pairs("positive")})["plus"].p
    covered: dict[str, list[bool]] = {"question": [], "trace": []}
    for _ in range(40):
        traces = of_questions(p, 80, rng)
        for unit in covered:
            drawn = traces if unit == "question" else [trace._replace(question_id="") for trace in traces]
            corpus = count_corpus([batch_of_traces(drawn)], K, keep_traces=True)
            selections = {"": {"plus": corpus.selection("positive")}}
            draws = draw_transitions(corpus, selections, fit, 150, rng)[""]["plus"]
            low, high = np.quantile(draws, [0.025, 0.975], axis=0)
            covered[unit].append(((low <= truth) & (truth <= high))[p > 0][:-1])
    assert 0.9 < np.mean(covered["question"]) < 0.97, "nominal is 0.95"
    assert np.mean(covered["trace"]) < np.mean(covered["question"]) - 0.05


def test_a_weight_without_support_on_either_side_has_no_interval():
    rare = [LabelledTrace("rare", "positive", [(3,), (3,)], [0, 1])]
    traces = [*of_polarities(20, 20), *rare]
    matrices = estimate_transitions(traces, EstimateConfig(num_resamples=5), TAXONOMY, rng=np.random.default_rng(0))
    for reference in ("all", "opposite"):
        frame = weigh_segments(traces, matrices, RewardConfig(reference=reference), confidence=0.95)
        assert (frame["weight_low"].isna() == frame["weight_high"].isna()).all()
        assert (frame["support"][frame["weight_low"].notna()] >= bootstrap.MIN_SUPPORT).all()
        last = frame[frame["trace_id"] == "rare"]
        assert last["weight_low"].isna().tolist() == [False, True]
