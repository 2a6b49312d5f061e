"""The draws of questions in both thinking modes, scored, and no more of them than the config asks for (§3.1.1).

Departure from the paper, as the default: ``generate.draws: sequential`` makes a draw only where it can still matter
(:func:`~mralign_core.method.selection.next_draw`). The selected traces are the same; the draws that are made are not a
fair sample of all, because think-on draws are made only of questions whose think-off draws agree, and the more of them
the longer they disagree with these. Statistics over all draws need ``exhaustive``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.config import GenerateConfig
from mralign_core.generation import Decoding, Sample, Sampler, SampleRequest
from mralign_core.generation.scoring import score_sample
from mralign_core.generation.select_traces import DrawRow, is_right
from mralign_core.method.benchmarks import gold_of
from mralign_core.method.matching import MatchRules
from mralign_core.method.selection import judge_question, next_draw
from mralign_core.schemas.generations import GENERATIONS

DRAWING_ORDER = ("off", "on")


class Tally(NamedTuple):
    """How far sampling is: questions that are decided, or left at a draw that failed, and what came of them."""

    questions: int = 0
    positive: int = 0
    negative: int = 0
    draws: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, counts: Mapping[str, Any]) -> Tally:
        """The tally among the counts of an artifact's manifest."""
        return cls(**{name: counts.get(name, 0) for name in cls._fields})

    def __add__(self, other: object) -> Tally:
        """Field by field."""
        return Tally(*(a + b for a, b in zip(self, other, strict=True))) if isinstance(other, Tally) else NotImplemented


def sample_questions(
    sampler: Sampler,
    questions: pd.DataFrame,
    section: GenerateConfig,
    *,
    seed: int,
    rules: MatchRules,
    on_progress: Callable[[Tally], None] | None = None,
) -> pd.DataFrame:
    """Draw answers to questions with and without thinking, and score them.

    Args:
        sampler: what samples.
        questions: distinct questions, rows of :data:`~mralign_core.schemas.questions.QUESTIONS`.
        section: decoding, draws per mode, whether all are made, which match counts as right.
        seed: seed of the run.
        rules: how answers are compared.
        on_progress: called after every draw.

    Returns:
        Rows of :data:`~mralign_core.schemas.generations.GENERATIONS`, those of a question side by side, without
        thinking first.
    """
    asked = {str(row["question_id"]): _Asked(row, section) for row in questions.to_dict("records")}
    tally = Tally()

    def follow_up(request: SampleRequest, sample: Sample) -> SampleRequest | None:
        nonlocal tally
        question = asked[request.question_id]
        row = score_sample(request, sample, gold_of(question.row), sampler.family, rules)
        tally += question.add(row)
        return question.next_request()

    first = [request for question in asked.values() for request in question.first_requests()]
    for _ in sampler.draw(first, Decoding.of(section, seed), follow_up):
        if on_progress:
            on_progress(tally)
    rows = [row for question in asked.values() for row in question.rows()]
    return GENERATIONS.frame(rows)


def tally_draws(draws: Iterable[DrawRow], section: GenerateConfig) -> Tally:
    """How far sampling came, from its draws.

    Args:
        draws: rows of :data:`~mralign_core.schemas.generations.GENERATIONS`, those of a question side by side.
        section: draws a mode, whether all are made, which match counts as right.
    """
    tally = Tally()
    for question_id, rows in groupby(draws, key=itemgetter("question_id")):
        question = _Asked({"question_id": question_id, "question": ""}, section)
        tally = sum((question.add(row) for row in rows), tally)
    return tally


@dataclass
class _Asked:
    """A question, and its draws so far."""

    row: DrawRow
    section: GenerateConfig
    draws: dict[tuple[str, int], DrawRow] = field(default_factory=dict)

    def first_requests(self) -> list[SampleRequest]:
        if self.section.draws == "sequential":
            return [self._request("off", 0)]
        return [self._request(mode, draw) for mode in DRAWING_ORDER for draw in range(self.section.num_draws)]

    def next_request(self) -> SampleRequest | None:
        """The draw that those made lead to; none where all are asked for from the start."""
        if self.section.draws == "exhaustive":
            return None
        following = next_draw(*self._right(), self.section.num_draws)
        return self._request(*following) if following else None

    def add(self, draw: DrawRow) -> Tally:
        """Take a draw in; returns what it adds to the tally."""
        self.draws[draw["thinking_mode"], draw["draw"]] = draw
        made = Tally(draws=1, tokens=len(draw["completion_ids"]))
        is_exhaustive = self.section.draws == "exhaustive"
        if len(self.draws) < 2 * self.section.num_draws if is_exhaustive else self.next_request() is not None:
            return made
        polarity = judge_question(*self._right(), self.section.num_draws).polarity
        return made + Tally(questions=1, positive=int(polarity == "positive"), negative=int(polarity == "negative"))

    def rows(self) -> list[DrawRow]:
        """The draws made, without thinking first, in the order of their numbers."""
        return [self.draws[key] for mode in DRAWING_ORDER for key in sorted(self.draws) if key[0] == mode]

    def _right(self) -> tuple[list[bool | None], list[bool | None]]:
        """Whether the answers are right, draw by draw, without thinking and with it; None for a draw that failed."""
        off, on = ([row for row in self.rows() if row["thinking_mode"] == mode] for mode in DRAWING_ORDER)
        return [is_right(row, self.section) for row in off], [is_right(row, self.section) for row in on]

    def _request(self, mode: str, draw: int) -> SampleRequest:
        return SampleRequest(self.row["question_id"], self.row["question"], mode, draw)
