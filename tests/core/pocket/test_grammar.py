from collections import Counter, defaultdict

import numpy as np
import pytest

from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.pocket.grammar import (
    DELIBERATION,
    FINISHES,
    HOP_TWO_MOVES,
    ONE_HOP_OPENINGS,
    TWO_HOP_OPENINGS,
    WORDINGS,
    write_trace,
)
from mralign_core.pocket.world import build_world

RIGHT_GIVEN_LABEL = {"analogy": 0.42, "backtracking": 0.55, "evaluation": 0.64, "self_verification": 0.93}


@pytest.fixture(scope="module")
def drawn():
    """Five traces for each question of four worlds, with their questions."""
    generator = np.random.default_rng(0)
    worlds = [build_world(seed) for seed in range(4)]
    return [
        (question, write_trace(world, question, generator))
        for world in worlds
        for question in world.questions
        for _ in range(5)
    ]


@pytest.mark.parametrize(
    "probabilities",
    [*DELIBERATION.values(), HOP_TWO_MOVES, ONE_HOP_OPENINGS, TWO_HOP_OPENINGS, FINISHES],
)
def test_probabilities_sum_to_one(probabilities):
    assert sum(probabilities.values()) == pytest.approx(1.0)


def test_labels_are_the_papers_with_two_or_three_wordings_each():
    assert set(WORDINGS) == set(PAPER_TAXONOMY.labels)
    assert all(len(set(wordings)) == len(wordings) in (2, 3) for wordings in WORDINGS.values())


def test_a_wording_belongs_to_one_label():
    counts = Counter(wording for wordings in WORDINGS.values() for wording in wordings)
    assert max(counts.values()) == 1


def test_about_a_quarter_of_traces_end_wrong(drawn):
    right = np.mean([trace.answer == question.answer for question, trace in drawn])
    assert right == pytest.approx(0.74, abs=0.02)


@pytest.mark.parametrize(("label", "expected"), RIGHT_GIVEN_LABEL.items())
def test_no_label_decides_but_labels_tell(drawn, label, expected):
    right = [
        trace.answer == question.answer
        for question, trace in drawn
        if label in {segment.label for segment in trace.segments}
    ]
    assert np.mean(right) == pytest.approx(expected, abs=0.04)


def test_the_grammar_does_not_look_at_the_question(drawn):
    right = defaultdict(list)
    for question, trace in drawn:
        right[question.stratum].append(trace.answer == question.answer)
    assert np.mean(right["one_hop"]) == pytest.approx(np.mean(right["two_hop"]), abs=0.025)


def test_every_trace_retrieves_the_gold_answer_and_concludes_with_its_own(drawn):
    for question, trace in drawn:
        assert any(question.answer in segment.text for segment in trace.segments)
        assert trace.segments[-1].label in FINISHES
        assert trace.answer in trace.segments[-1].text
        assert 2 <= len(trace.segments) <= 13


def test_moves_follow_the_table(drawn):
    after_backtracking = Counter(
        after.label
        for _, trace in drawn
        for before, after in zip(trace.segments, trace.segments[1:], strict=False)
        if before.label == "backtracking"
    )
    # Patience can end right after backtracking; that is no move of the table.
    moves = {label: after_backtracking[label] for label in DELIBERATION["backtracking"]}
    for label, prob in DELIBERATION["backtracking"].items():
        assert moves[label] / sum(moves.values()) == pytest.approx(prob, abs=0.03)


def test_completion_has_thinking_in_segments_and_a_tagged_answer(world):
    trace = write_trace(world, world.questions[0], np.random.default_rng(0))
    thinking, answer = trace.completion.removeprefix("<think>").split("</think>\n\n")
    assert thinking.split("\n\n") == [segment.text for segment in trace.segments]
    assert answer == f"<answer> {trace.answer}</answer>"


def test_a_seeded_generator_decides_the_trace(world):
    first, second = (write_trace(world, world.questions[0], np.random.default_rng(5)) for _ in range(2))
    assert first == second
