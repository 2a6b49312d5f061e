"""What a move of the pocket grammar is worth: the truth that estimates of it can be compared with."""

from __future__ import annotations

from collections import defaultdict

from mralign_core.pocket.grammar import (
    DELIBERATION,
    FRAMING_PROB,
    HOP_TWO_MOVES,
    MAX_DELIBERATION,
    ONE_HOP_OPENINGS,
    TWO_HOP_OPENINGS,
)
from mralign_core.pocket.world import World

RIGHT_AFTER = {"retrieval": 1.0, "self_verification": 1.0, "analogy": 0.0, "comparison": 0.5, "case_analysis": 0.5}
"""Move → probability that the candidate is right after it, where the neighbour's value is wrong; others keep it."""


def grammar_values(world: World) -> dict[str, float]:
    """h(label) = Pr(a trace of the grammar ends right | it makes such a move), by label, exactly.

    The grammar does not look at the question, so where a neighbour's value is right all traces end right, and elsewhere
    h follows from the moves alone. Labels are the grammar's own; a move that it makes before it has a candidate, or
    at the end, tells nothing.

    Args:
        world: for the share of two-hop questions, and of those whose neighbour has the right value.

    Example:
        >>> from mralign_core.pocket.world import build_world
        >>> values = grammar_values(build_world(seed=0))
        >>> values["analogy"] < values["evaluation"] < values["self_verification"]
        True
    """
    questions = world.questions
    two_hop = sum(len(question.facts) == 2 for question in questions) / len(questions)
    harmless = sum(world.neighbour_fact(question.facts[-1]).value == question.answer for question in questions) / len(
        questions
    )
    visits: dict[str, float] = defaultdict(float)
    right: dict[str, float] = defaultdict(float)
    base = _right_at_end("candidate", 1.0, MAX_DELIBERATION)
    for label, number in _opening_visits(two_hop).items():
        visits[label] += number
        right[label] += number * base
    reached = {("candidate", 1.0): 1.0}  # (state, probability that the candidate is right) → visits
    for moves_left in reversed(range(MAX_DELIBERATION)):
        after: dict[tuple[str, float], float] = defaultdict(float)
        for (state, is_right), number in reached.items():
            for move, prob in DELIBERATION[state].items():
                if move == "finish":
                    continue
                now_right, state_after = RIGHT_AFTER.get(move, is_right), _state_after(move)
                visits[move] += number * prob
                right[move] += number * prob * _right_at_end(state_after, now_right, moves_left)
                after[state_after, now_right] += number * prob
        reached = after
    return {label: harmless + (1 - harmless) * right[label] / visits[label] for label in visits}


def _opening_visits(two_hop: float) -> dict[str, float]:
    """Moves a trace makes before it deliberates, and the conclusion, in the mean."""
    openings: dict[str, float] = defaultdict(float, framing=FRAMING_PROB, retrieval=1.0)
    for share, moves in ((1 - two_hop, ONE_HOP_OPENINGS), (two_hop, TWO_HOP_OPENINGS), (two_hop, HOP_TWO_MOVES)):
        for move, prob in moves.items():
            if move != "none":
                openings[move] += share * prob
    return openings


def _right_at_end(state: str, is_right: float, moves_left: int) -> float:
    """Pr(the candidate is right at the end), from a state in which it is right with this probability."""
    if not moves_left:
        return is_right
    return sum(
        prob
        * (
            is_right
            if move == "finish"
            else _right_at_end(_state_after(move), RIGHT_AFTER.get(move, is_right), moves_left - 1)
        )
        for move, prob in DELIBERATION[state].items()
    )


def _state_after(move: str) -> str:
    return "candidate" if move == "retrieval" else move
