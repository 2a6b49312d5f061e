"""Δ against its permutation null: it finds what was changed, and finds nothing where nothing was."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from mralign_core.annotation.cue import HABITS, score_cues
from mralign_core.estimation.bootstrap import MIN_SUPPORT
from mralign_core.estimation.thinking_change import has_support, thinking_change, traces_by_move, two_models
from mralign_core.method.taxonomy import PAPER_TAXONOMY, Taxonomy
from mralign_core.pocket import grammar
from mralign_core.pocket.grammar import write_trace
from mralign_core.pocket.world import build_world
from mralign_core.reporting.delta_graph import strongest_edges
from mralign_core.schemas.annotations import ANNOTATIONS

TINY = Taxonomy(tuple("abc"), dict.fromkeys("abc", "think"), dict.fromkeys("abc", "thinks"))
LEVEL = 0.05


def tables(paths):
    """Traces and annotations from (variant, question) → label sets of the steps."""
    traces, rows = [], []
    for number, (variant, question, path) in enumerate(paths):
        trace_id = f"{variant}/{question}/{number}"
        traces.append({"trace_id": trace_id, "variant": variant, "question_id": question})
        for place, labels in enumerate(path):
            row = {"trace_id": trace_id, "segment": place, "step": place, "labels": sorted(labels)}
            rows.append({**dict.fromkeys(ANNOTATIONS.columns), **row})
    return pd.DataFrame(traces), pd.DataFrame(rows)


def change_of(paths, taxonomy=TINY, *, seed=0, num_permutations=199):
    traces, annotations = tables(paths)
    models = two_models(traces, annotations, "kto", "on", taxonomy)
    rng = np.random.default_rng(seed)
    return thinking_change(models, taxonomy.num_states, rng=rng, num_permutations=num_permutations)


def test_steps_are_those_of_both_models_in_order():
    traces, annotations = tables([("on", "q0", ["a", "ab"]), ("sft", "q0", ["c"]), ("kto", "q1", ["b"])])
    annotations = annotations.iloc[::-1]  # in whatever order
    models = two_models(traces, annotations, "kto", "on", TINY)
    assert models.labels.tolist() == [[1, 0], [1, 2], [2, 0]]
    assert models.trace_of_step.tolist() == [0, 0, 1]
    assert models.questions.tolist() == [0, 1] and models.is_first.tolist() == [False, True]


def test_traces_that_make_a_move_are_counted_once_each_and_by_model():
    rng = np.random.default_rng(0)
    steps = [["", "a", "b", "ab", "c"][each] for each in rng.integers(0, 5, 240)]
    paths = [(("on", "kto")[number % 2], f"q{number // 2}", steps[6 * number :][:6]) for number in range(40)]
    traces, annotations = tables(paths)
    models = two_models(traces, annotations, "kto", "on", TINY)
    for making, variant in zip(traces_by_move(models, TINY.num_states), ("kto", "on"), strict=True):
        expected = np.zeros((5, 5), int)
        for own in ([step for step in path if step] for name, _, path in paths if name == variant):
            sets = [[0], *([TINY.state(label) for label in step] for step in own), [4]]
            for a, b in {(a, b) for left, entered in pairwise(sets) for a in left for b in entered}:
                expected[a, b] += 1
        assert making.tolist() == expected.tolist() and expected.max() > 10


def test_the_p_value_of_one_question_a_side_can_be_counted_by_hand():
    # Ten questions; before always a → b, after always a → c: each exchange moves one question. The observed difference
    # is reached only where all or none are exchanged, 2 of 1,024; of 199 permutations, 0.4 are expected to reach it.
    paths = [(variant, f"q{n}", ["a", end]) for n in range(10) for variant, end in (("on", "b"), ("kto", "c"))]
    change = change_of(paths)
    assert change.num_questions == 10 and change.num_traces == (10, 10)
    assert change.p_values[1, 2] == change.p_values[1, 3] <= 3 / 200
    assert change.first.p[1, 3] > 0.7 > 0.2 > change.first.p[1, 2]
    above, below = strongest_edges(change.first, change.second, is_shown=change.is_shown(LEVEL))
    assert {(edge.source, edge.target) for edge in above} >= {(1, 3)}
    assert {(edge.source, edge.target) for edge in below} >= {(1, 2)}


def test_the_same_thinking_before_and_after_shows_nothing():
    paths = [(variant, f"q{n}", ["a", "abc"[n % 3]]) for n in range(30) for variant in ("on", "kto")]
    change = change_of(paths)
    assert change.num_edges > 3 and (change.p_values == 1).all()


def test_an_edge_without_support_is_not_looked_at():
    counts = np.zeros((5, 5))
    counts[1, 2], counts[1, 3], counts[2, 1] = 2 * MIN_SUPPORT, MIN_SUPPORT - 1, 2 * MIN_SUPPORT - 1
    assert np.argwhere(has_support(counts)).tolist() == [[1, 2]]
    assert change_of([("on", "q", ["a"]), ("kto", "q", ["b"])]).num_edges == 0


def random_paths(rng, p_by_variant, num_questions=30, num_draws=2):
    """Label chains whose questions differ: each has a habit of its own, which both models share."""
    paths = []
    for question in range(num_questions):
        habit = rng.dirichlet([2.0, 2.0, 2.0])
        for variant, p in p_by_variant.items():
            for _ in range(num_draws):
                steps = rng.choice(3, size=5, p=(habit + p) / 2)
                paths.append((variant, f"q{question}", ["abc"[step] for step in steps]))
    return paths


def test_two_samples_of_one_model_show_an_edge_in_no_more_than_one_seed_of_twenty():
    same = {"on": np.full(3, 1 / 3), "kto": np.full(3, 1 / 3)}
    shown = [
        change_of(random_paths(np.random.default_rng(seed), same), seed=seed, num_permutations=99).is_shown(LEVEL).any()
        for seed in range(60)
    ]
    # 60 seeds at 5 %: more than 8 have a chance of 0.3 %.
    assert sum(shown) <= 8


def test_a_real_change_is_shown_nearly_always():
    changed = {"on": np.full(3, 1 / 3), "kto": np.array([0.7, 0.2, 0.1])}
    shown = [
        change_of(random_paths(np.random.default_rng(seed), changed, 120), seed=seed, num_permutations=99)
        .is_shown(LEVEL)
        .any()
        for seed in range(5)
    ]
    assert all(shown)


@pytest.fixture(scope="module")
def grammars():
    """Traces of the pocket grammar as it is and with another habit after an evaluation: by its own labels, and cues."""
    world, before = build_world(seed=0), grammar.DELIBERATION
    habits = {
        "on": before,
        "kto": {**before, "evaluation": {"backtracking": 0.1, "self_verification": 0.6, "finish": 0.2, "analogy": 0.1}},
    }
    true, cued = [], []
    with pytest.MonkeyPatch.context() as patched:
        for number, (variant, deliberation) in enumerate(habits.items()):
            patched.setattr(grammar, "DELIBERATION", deliberation)
            rng = np.random.default_rng(number)
            for place, question in enumerate(world.questions[:200]):
                trace = write_trace(world, question, rng)
                name = f"q{place}"
                true.append((variant, name, [[segment.label] for segment in trace.segments]))
                cued.append((variant, name, [strongest(segment.text) for segment in trace.segments]))
    return true, cued


def strongest(text):
    """The label that the cue annotators give without noise."""
    scores = score_cues(text, HABITS["a"])
    return [max(scores, key=lambda label: scores[label])] if scores else []


def test_in_the_pocket_world_the_edges_are_those_of_the_grammars_own_labels(grammars):
    states = PAPER_TAXONOMY.state
    by_true, by_cue = (change_of(paths, PAPER_TAXONOMY) for paths in grammars)
    found = []
    for change in (by_true, by_cue):
        above, below = strongest_edges(change.first, change.second, is_shown=change.is_shown(LEVEL))
        found.append(([(e.source, e.target) for e in above], [(e.source, e.target) for e in below]))
    (more, fewer), (cued_more, cued_fewer) = found
    # What was changed, and nothing of what was not: all that differs leaves an evaluation.
    assert more[0] == (states("evaluation"), states("self_verification"))
    assert fewer[0] == (states("evaluation"), states("backtracking"))
    assert {source for source, _ in [*more, *fewer]} == {states("evaluation")}
    assert cued_more[0] == more[0] and cued_fewer[0] == fewer[0]
    assert set(cued_more) & set(fewer) == set() == set(cued_fewer) & set(more)
