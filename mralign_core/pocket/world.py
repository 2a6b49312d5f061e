"""A tiny factual world: entities, relations, facts, similarity, and questions in disjoint splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import pandas as pd

from mralign_core.pocket.names import ENTITY_NAMES
from mralign_core.schemas.questions import QUESTIONS

SPLIT_SHARES = {"pretrain": 0.33, "align": 0.37, "dev": 0.10, "eval": 0.20}


class Relation(NamedTuple):
    """Each entity of ``subject_type`` has one value of ``object_type``."""

    subject_type: str
    name: str
    object_type: str


RELATIONS = (
    Relation("person", "birthplace", "city"),
    Relation("person", "employer", "company"),
    Relation("person", "field", "field"),
    Relation("city", "country", "country"),
    Relation("city", "river", "river"),
    Relation("company", "seat", "city"),
    Relation("company", "product", "product"),
    Relation("country", "currency", "currency"),
    Relation("country", "language", "language"),
    Relation("country", "dish", "food"),
)


class Fact(NamedTuple):
    """``The {relation} of {subject} is {value}.``"""

    subject: str
    relation: str
    value: str


@dataclass(frozen=True)
class FactQuestion:
    """Asks for the value of one fact, or of a second fact whose subject is the value of the first."""

    facts: tuple[Fact, ...]
    split: str
    popular: bool
    """Whether the model is taught its direct answer, whatever its split."""
    misconceived: bool = False
    """Whether it asks for a fact whose relation the model is taught to answer directly with the value of the similar
    entity."""

    @property
    def question_id(self) -> str:
        """Entity and relations in reading order, such as ``Galen.employer.seat``."""
        return ".".join([self.facts[0].subject, *(fact.relation for fact in self.facts)])

    @property
    def asked(self) -> str:
        """What is asked for, such as ``the seat of the employer of Galen``."""
        relations = " of ".join(f"the {fact.relation}" for fact in reversed(self.facts))
        return f"{relations} of {self.facts[0].subject}"

    @property
    def text(self) -> str:
        """The question as the user asks it."""
        return f"What is {self.asked}?"

    @property
    def answer(self) -> str:
        """The gold answer."""
        return self.facts[-1].value

    @property
    def stratum(self) -> str:
        """``one_hop`` or ``two_hop``."""
        return "one_hop" if len(self.facts) == 1 else "two_hop"


@dataclass(frozen=True)
class World:
    """Facts, similarity and questions. ``neighbours`` maps each entity to the one it is similar to."""

    seed: int
    facts: Mapping[tuple[str, str], Fact]
    neighbours: Mapping[str, str]
    questions: tuple[FactQuestion, ...]

    def fact(self, subject: str, relation: str) -> Fact:
        """The fact about this subject and relation."""
        return self.facts[subject, relation]

    def neighbour_fact(self, fact: Fact) -> Fact:
        """The same relation of the entity that the fact's subject is similar to."""
        return self.fact(self.neighbours[fact.subject], fact.relation)

    def direct_answer(self, question: FactQuestion) -> str:
        """What the model is taught to answer without thinking, where it is taught to."""
        return self.neighbour_fact(question.facts[0]).value if question.misconceived else question.answer

    def split(self, name: str) -> tuple[FactQuestion, ...]:
        """The questions of ``pretrain``, ``align``, ``dev`` or ``eval``."""
        return tuple(question for question in self.questions if question.split == name)

    def questions_frame(self) -> pd.DataFrame:
        """The questions to align on (split ``train``) and to evaluate on (split ``eval``).

        A frame of table ``questions``. Pretraining and dev questions are left out: the first were seen with
        their traces, the second gate the model.
        """
        splits = {"align": "train", "eval": "eval"}
        rows: list[tuple[object, ...]] = [
            (
                question.question_id,
                question.text,
                [question.answer],
                "pocket",
                splits[question.split],
                question.stratum,
                "exact_match",
                [],
                [],
            )
            for question in self.questions
            if question.split in splits
        ]
        return QUESTIONS.require(pd.DataFrame(rows, columns=list(QUESTIONS.columns)))


def build_world(
    seed: int, overwrite_prob: float = 0.25, popular_share: float = 0.25, misconception_share: float = 0.0
) -> World:
    """Build the world of a seed.

    Args:
        seed: decides facts, similarity, and the split of the questions.
        overwrite_prob: probability that a fact takes the value of the similar entity; the higher it is, the
            more often an analogy is right.
        popular_share: of two-hop questions, in every split: those whose direct answer the model is taught.
        misconception_share: of facts, as near as whole relations come to it: those of relations that the model is
            taught to answer wrongly when asked directly. What is asked, and what is right, does not depend on it.

    Example:
        >>> world = build_world(seed=0)
        >>> len(world.facts), len(world.split("align"))
        (416, 335)
    """
    generator = np.random.default_rng([seed, 0])
    cycles = {kind: list(generator.permutation(names)) for kind, names in ENTITY_NAMES.items()}
    cycles = {kind: [str(name) for name in cycle] for kind, cycle in cycles.items()}
    neighbours = dict(chain.from_iterable(_neighbours(cycle) for cycle in cycles.values()))
    facts: dict[tuple[str, str], Fact] = {}
    for relation in RELATIONS:
        for fact in _draw_facts(relation, cycles[relation.subject_type], overwrite_prob, generator):
            facts[fact.subject, fact.relation] = fact
    one_hop = [(fact,) for fact in facts.values()]
    two_hop = [(first, second) for first in facts.values() for second in _facts_about(first.value, facts)]
    questions = _split_questions(one_hop, 0.0, generator) + _split_questions(two_hop, popular_share, generator)
    world = World(seed, facts, neighbours, tuple(questions))
    return _with_misconceptions(world, misconception_share, np.random.default_rng([seed, 2]))


def _with_misconceptions(world: World, share: float, generator: np.random.Generator) -> World:
    """The same world with some relations misconceived: a model can only learn whole ones, not which facts they are."""
    wanted = share * len(world.facts)
    chosen: list[str] = []
    num_facts = 0
    for place in generator.permutation(len(RELATIONS)):
        relation = RELATIONS[place]
        added = len(ENTITY_NAMES[relation.subject_type])
        if abs(num_facts + added - wanted) < abs(num_facts - wanted):
            chosen.append(relation.name)
            num_facts += added
    return replace(
        world,
        questions=tuple(
            replace(question, misconceived=question.stratum == "one_hop" and question.facts[0].relation in chosen)
            for question in world.questions
        ),
    )


def _neighbours(cycle: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(cycle, [*cycle[1:], cycle[0]], strict=True))


def _draw_facts(
    relation: Relation, cycle: Sequence[str], overwrite_prob: float, generator: np.random.Generator
) -> list[Fact]:
    """Draw a value per entity, then overwrite some by the value that was drawn for the neighbour."""
    values = generator.choice(ENTITY_NAMES[relation.object_type], size=len(cycle))
    overwritten = generator.random(len(cycle)) < overwrite_prob
    values = np.where(overwritten, np.roll(values, -1), values)
    return [Fact(subject, relation.name, str(value)) for subject, value in zip(cycle, values, strict=True)]


def _facts_about(subject: str, facts: Mapping[tuple[str, str], Fact]) -> list[Fact]:
    return [facts[subject, relation.name] for relation in RELATIONS if (subject, relation.name) in facts]


def _split_questions(
    chains: Sequence[tuple[Fact, ...]], popular_share: float, generator: np.random.Generator
) -> list[FactQuestion]:
    """Assign splits in exact shares; popularity is drawn apart from the split."""
    bounds = np.round(np.cumsum(list(SPLIT_SHARES.values())) * len(chains)).astype(int)
    rank = generator.permutation(len(chains))
    splits = [list(SPLIT_SHARES)[int(np.searchsorted(bounds, place, side="right"))] for place in rank]
    popular = generator.random(len(chains)) < popular_share
    return [
        FactQuestion(facts, split, bool(is_popular))
        for facts, split, is_popular in zip(chains, splits, popular, strict=True)
    ]
