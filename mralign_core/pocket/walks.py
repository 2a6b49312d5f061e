"""The moves of many traces that the grammar itself writes, with its own labels: the truth for what is estimated."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mralign_core.pocket.grammar import write_trace
from mralign_core.pocket.world import World


class Walk(NamedTuple):
    """The labels of a trace in order, and whether its answer is right."""

    labels: tuple[str, ...]
    is_right: bool


def grammar_walks(world: World, traces_per_question: int, *, seed: int) -> list[Walk]:
    """Traces of every question of a world, in whatever split.

    Args:
        world: what the traces are about.
        traces_per_question: how many of each.
        seed: decides them.

    Example:
        >>> from mralign_core.pocket.world import build_world
        >>> walks = grammar_walks(build_world(seed=0), 1, seed=0)
        >>> len(walks), round(sum(walk.is_right for walk in walks) / len(walks), 1)
        (904, 0.7)
    """
    generator = np.random.default_rng(seed)
    walks = []
    for question in world.questions * traces_per_question:
        trace = write_trace(world, question, generator)
        walks.append(Walk(tuple(segment.label for segment in trace.segments), trace.answer == question.answer))
    return walks
