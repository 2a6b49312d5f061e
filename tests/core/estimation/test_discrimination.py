"""What is planted is shown, what is not is not, and no fold knows the question that it scores."""

from itertools import pairwise, product

import numpy as np
import pytest

from mralign_core.config import EstimateConfig
from mralign_core.estimation.corpus import CLASSES, POLARITY_OF
from mralign_core.estimation.diagnostics import discrimination
from mralign_core.estimation.diagnostics.discrimination import discriminate, question_numbers
from mralign_core.estimation.estimators import FROM_LABELS, estimate_tables, make_estimator
from mralign_core.estimation.traces import LabelledTrace
from mralign_core.method.by_question import question_folds
from mralign_core.method.discrimination import area_under_curve
from mralign_core.method.transitions import fit_em
from tests.core.estimation.test_bootstrap import random_traces
from tests.oracles import count_set_pairs

K = 5


def corpus(rng, number=40, *, effect=0.0, by_stratum=0.0, likeness=8.0, strata=("",), traces_each=3):
    """Traces of questions with habits of their own; ``effect`` parts the polarities, ``by_stratum`` the strata.

    Of two strata, four in five positive questions are of the first, and four in five negative ones of the second.
    """
    base = np.array([[0, 0.4, 0.3, 0.3, 0], *[[0, 0.25, 0.25, 0.25, 0.25]] * 3])
    traces = []
    for question in range(number):
        positive = question % 2 == 0
        stratum = strata[((question // 2 % 5 == 0) == positive) % len(strata)]
        lean = effect * (1 if positive else -1) + by_stratum * (1 if stratum == strata[0] else -1)
        tilted = base * np.exp(np.array([0, lean, 0, -lean, 0]))
        own = np.array([np.concatenate([[0], rng.dirichlet(1e-9 + likeness * row[1:] / row.sum())]) for row in tilted])
        for draw in range(traces_each):
            steps: list[tuple[int, ...]] = []
            state = 1 + int(rng.integers(3))
            while state != K - 1 and len(steps) < 12:
                steps.append((state,))
                state = int(rng.choice(K, p=own[state]))
            polarity = "positive" if positive else "negative"
            ids = list(range(len(steps)))
            traces.append(LabelledTrace(f"{question}-{draw}", polarity, steps, ids, stratum, f"q{question}"))
    return traces


def found_in(traces, seed=0, estimate=None, skipped=None):
    rng = np.random.default_rng(seed)
    return discriminate(traces, K, estimate or EstimateConfig(), rng, {} if skipped is None else skipped)


def test_every_estimator_is_measured_the_configured_one_first():
    found = found_in(corpus(np.random.default_rng(0), effect=0.8), estimate=EstimateConfig(estimator="frequency"))
    assert found[0].estimator == "frequency" and sorted(each.estimator for each in found) == sorted(FROM_LABELS)
    for each in found:
        assert each.overall.verdict == "shown" and each.overall.p_value == 1 / 200
        assert each.overall.low <= each.overall.auc <= each.overall.high
        assert 0.4 < each.overall.by_chance < 0.6
        assert each.overall.questions_to_show < 40


@pytest.mark.parametrize("estimator", FROM_LABELS)
def test_scores_are_those_of_matrices_from_other_questions_one_by_one(estimator):
    traces = [trace for trace in random_traces(np.random.default_rng(1), 40) if any(trace.steps)]
    section = EstimateConfig(estimator=estimator)
    held_out = discrimination._HeldOut.of(traces, K, np.random.default_rng(2))
    scores = held_out.scores(held_out.is_positive[None], section)[0]
    fit, folds = make_estimator(section, K), question_folds(question_numbers(traces), 5, np.random.default_rng(2))
    for place in range(0, len(traces), 3):
        others = [trace for trace, fold in zip(traces, folds, strict=True) if fold != folds[place]]
        assert traces[place].question_id not in {t.question_id for t in others if t.stratum == traces[place].stratum}
        steps = {name: [t.steps for t in others if POLARITY_OF.get(name) in (None, t.polarity)] for name in CLASSES}
        p = {name: one.p for name, one in fit({name: count_set_pairs(steps[name], K) for name in steps}).items()}
        sets = [(0,), *(step for step in traces[place].steps if step), (K - 1,)]
        moves = pairwise(sets)
        logs = [np.log(p["plus"][np.ix_(a, b)].sum() / p["minus"][np.ix_(a, b)].sum()) for a, b in moves]
        assert scores[place] == pytest.approx(sum(logs), abs=1e-5)


def measured(traces, seed):
    """The AUC over all traces under the paper's estimator."""
    held_out = discrimination._HeldOut.of(traces, K, np.random.default_rng(seed))
    part = discrimination._Part.of(held_out, np.zeros(len(traces), dtype=int), np.random.default_rng(seed))
    return part.measure(held_out, held_out.scores(held_out.is_positive[None], EstimateConfig())[0], EstimateConfig())


def test_labels_that_tell_nothing_are_seldom_said_to(monkeypatch):
    monkeypatch.setattr(discrimination, "NUM_PERMUTATIONS", 59)
    rng = np.random.default_rng(3)
    shown = [measured(corpus(rng, 30, traces_each=2), seed).verdict == "shown" for seed in range(60)]
    assert sum(shown) <= 8, "at most 3 are expected, and more than 8 in one of a hundred such tests"


def test_the_p_value_is_even_where_questions_make_traces_alike_and_would_not_be_over_traces(monkeypatch):
    monkeypatch.setattr(discrimination, "NUM_PERMUTATIONS", 59)
    rng, small = np.random.default_rng(4), {"question": 0, "trace": 0}
    for seed in range(24):
        traces = corpus(rng, 30, traces_each=4, likeness=2.0)
        small["question"] += measured(traces, seed).p_value <= 0.1
        small["trace"] += measured([trace._replace(question_id="") for trace in traces], seed).p_value <= 0.1
    assert small["question"] <= 6, "2 or 3 are expected, and more than 6 in one of a hundred such tests"
    assert small["trace"] >= 9, "folds that part a question know what they score"


def test_what_only_strata_make_is_not_shown_within_them():
    skipped: dict[str, str] = {}
    only = found_in(corpus(np.random.default_rng(5), 160, by_stratum=0.9, strata=("a", "b")), skipped=skipped)[0]
    assert only.overall.verdict == "shown" and only.within.verdict == "not shown" and only.strata == ("a", "b")
    assert only.within.auc < only.overall.auc and not skipped
    both = found_in(corpus(np.random.default_rng(5), 160, by_stratum=0.9, effect=0.6, strata=("a", "b")))[0]
    assert both.within.verdict == "shown"


def moves_of(traces):
    """Transitions of each trace of single labels, (N, K, K)."""
    counts = np.zeros((len(traces), K, K))
    for own, trace in zip(counts, traces, strict=True):
        np.add.at(own, tuple(zip(*pairwise([0, *(state for (state,) in trace.steps), K - 1]), strict=True)), 1)
    return counts


def test_intervals_cover_the_auc_that_these_matrices_have_on_other_questions(monkeypatch):
    monkeypatch.setattr(discrimination, "NUM_PERMUTATIONS", 2)
    rng, settings, covered = np.random.default_rng(6), {"effect": 0.3, "likeness": 3.0}, []
    others = corpus(rng, 1500, **settings)
    moves, is_positive = moves_of(others), np.array([trace.polarity == "positive" for trace in others])
    for seed in range(40):
        traces = corpus(rng, 120, **settings)
        found, held_out = measured(traces, seed), discrimination._HeldOut.of(traces, K, np.random.default_rng(seed))
        areas = []
        for fold in range(discrimination.NUM_FOLDS):
            rest = held_out.folds != fold
            tables = [held_out.by_trace[rest & (held_out.is_positive == sign)].sum(axis=0) for sign in (True, False)]
            fitted = estimate_tables(EstimateConfig(), held_out.pairs, *(table[None] for table in tables))
            p_plus, p_minus = (fitted[name].p[0] for name in ("plus", "minus"))
            with np.errstate(divide="ignore", invalid="ignore"):
                log_ratio = np.nan_to_num(np.log(p_plus / p_minus))
            scores = np.einsum("nab,ab->n", moves, log_ratio)
            areas.append(area_under_curve(scores, is_positive, np.zeros(len(others), dtype=int))[0])
        covered.append(found.low <= np.mean(areas) <= found.high)
    assert 0.85 <= np.mean(covered) <= 1.0, "nominal is 0.95"


def test_too_few_questions_are_said_to_be_too_few_whatever_the_number_of_traces():
    skipped: dict[str, str] = {}
    found = found_in(corpus(np.random.default_rng(7), 18, effect=1.5, traces_each=30), skipped=skipped)[0].overall
    assert found.verdict == "too few" and found.traces == 540 and found.negative_questions == 9
    assert found.low is found.p_value is found.questions_to_show is None
    assert "one stratum" in skipped["discrimination.within"]


def test_traces_of_one_polarity_tell_nothing_and_it_is_said():
    skipped: dict[str, str] = {}
    one = [trace._replace(polarity="positive") for trace in corpus(np.random.default_rng(8), 12)]
    assert found_in(one, skipped=skipped)[0].overall is None and "one polarity" in skipped["discrimination"]


def test_strata_without_both_polarities_leave_nothing_to_compare_within():
    skipped: dict[str, str] = {}
    apart = [trace._replace(stratum=trace.polarity) for trace in corpus(np.random.default_rng(9), 40)]
    found = found_in(apart, skipped=skipped)[0]
    assert found.within is None and found.overall and "both polarities" in skipped["discrimination.within"]


@pytest.mark.parametrize("section", [EstimateConfig(), EstimateConfig(damping=1.0, num_iterations=40, prior=0.5)])
def test_tables_side_by_side_are_those_of_em_one_by_one(section):
    traces = [trace.steps for trace in random_traces(np.random.default_rng(10), 60)]
    pairs, rng = count_set_pairs(traces, K), np.random.default_rng(11)
    tables = rng.integers(4, size=(7, len(pairs.multiplicities)))
    tables[0] = 0
    found = estimate_tables(section, pairs, tables, tables[::-1])
    of_class = {"plus": tables, "minus": tables[::-1], "all": tables + tables[::-1]}
    for name, place in product(of_class, range(len(tables))):
        p, counts, table = found[name].p[place], found[name].counts[place], of_class[name][place]
        settings = section.model_dump(include={"num_iterations", "damping", "prior", "tolerance"})
        alone = fit_em(pairs._replace(multiplicities=table), K, **settings)
        np.testing.assert_allclose(p, alone.p, atol=1e-10)
        np.testing.assert_allclose(counts, alone.counts, atol=1e-10)
