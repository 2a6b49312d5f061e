"""What sampling a question set takes: task runs, draws, tokens, storage and hours, before anything is sampled."""

from __future__ import annotations

import math
from typing import NamedTuple

from mralign_core.config import GenerateConfig
from mralign_core.generation.sampling import Tally

THINKING_TOKENS, ANSWER_TOKENS = 700, 40
"""Tokens assumed of a draw with thinking (the middle of the paper's length filter) and without."""
SEQUENTIAL_ON_DRAWS = 1.25
"""Think-on draws assumed of a question that is sampled one draw at a time (benchmarks/sequential_draws.py)."""
STORED_BYTES_PER_TOKEN = 4.5
"""Of stored draws, text and token ids, compressed (docs/generation-at-scale.md)."""


class Rates(NamedTuple):
    """What a question takes, on average."""

    draws: float
    tokens: float

    @classmethod
    def assumed(cls, section: GenerateConfig) -> Rates:
        """Where no shard has been sampled that would say."""
        most = section.num_draws
        on_draws = min(SEQUENTIAL_ON_DRAWS, most) if section.draws == "sequential" else most
        return cls(most + on_draws, most * ANSWER_TOKENS + on_draws * THINKING_TOKENS)

    @classmethod
    def measured(cls, tally: Tally) -> Rates:
        """On the shards that have been sampled."""
        return cls(tally.draws / tally.questions, tally.tokens / tally.questions)


class Load(NamedTuple):
    """What a whole generate stage takes. ``hours`` pass on the clock, loading the model left out."""

    questions: int
    shards: int
    task_runs: int
    draws: float
    tokens: float
    gigabytes: float
    hours: float


def estimate_load(
    num_questions: int, section: GenerateConfig, rates: Rates, *, tokens_per_second: float, num_hosts: int
) -> Load:
    """What sampling takes on so many hosts.

    Args:
        num_questions: distinct training questions.
        section: shard size.
        rates: what a question takes.
        tokens_per_second: generated tokens of one host, all its rows together.
        num_hosts: hosts that share the shards, each with a whole number of them.

    Example:
        >>> load = estimate_load(90_000, GenerateConfig(), Rates(6, 2220), tokens_per_second=10_000, num_hosts=8)
        >>> load.shards, load.draws, round(load.hours, 2)
        (352, 540000, 0.69)
    """
    shards = math.ceil(num_questions / section.shard_size)
    of_one_host = min(math.ceil(shards / num_hosts) * section.shard_size, num_questions)
    return Load(
        questions=num_questions,
        shards=shards,
        task_runs=shards + 2,  # joining the shards, and selecting
        draws=num_questions * rates.draws,
        tokens=num_questions * rates.tokens,
        gigabytes=2 * num_questions * rates.tokens * STORED_BYTES_PER_TOKEN / 1e9,  # in their shards, and joined
        hours=of_one_host * rates.tokens / tokens_per_second / 3600,
    )
