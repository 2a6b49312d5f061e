"""The thinking of the pocket model: a stochastic grammar of moves that doesn't look at the question.

Each move is a segment with one label and one of two or three wordings; some moves change the candidate
answer, and the answer is the candidate at the end. No label decides whether a trace ends right, but some make
it likelier than others. The true labels are for tests; the pipeline annotates the text like any other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mralign_core.pocket.world import RELATIONS, Fact, FactQuestion, World

MAX_DELIBERATION = 8
FRAMING_PROB = 0.85

DELIBERATION: dict[str, dict[str, float]] = {
    "candidate": {
        "finish": 0.20,
        "self_verification": 0.12,
        "explanation": 0.07,
        "evaluation": 0.42,
        "categorization": 0.05,
        "analogy": 0.14,
    },
    "evaluation": {"backtracking": 0.50, "self_verification": 0.15, "finish": 0.13, "analogy": 0.22},
    "backtracking": {"analogy": 0.50, "case_analysis": 0.15, "retrieval": 0.35},
    "analogy": {
        "finish": 0.60,
        "comparison": 0.14,
        "self_verification": 0.11,
        "explanation": 0.08,
        "evaluation": 0.07,
    },
    "comparison": {"finish": 0.8, "evaluation": 0.2},
    "case_analysis": {"finish": 0.6, "comparison": 0.4},
    "self_verification": {"finish": 0.75, "evaluation": 0.1, "explanation": 0.15},
    "explanation": {"finish": 0.7, "evaluation": 0.3},
    "categorization": {"finish": 0.4, "evaluation": 0.6},
}
"""State → probability of the next move. ``candidate`` follows every retrieval; ``finish`` concludes."""

HOP_TWO_MOVES = {"chaining": 0.5, "causal_reasoning": 0.25, "retrieval": 0.25}
ONE_HOP_OPENINGS = {"decomposition": 0.15, "categorization": 0.15, "none": 0.70}
TWO_HOP_OPENINGS = {"decomposition": 0.6, "none": 0.4}
FINISHES = {"synthesis": 0.5, "summarization": 0.5}

WORDINGS: dict[str, tuple[str, ...]] = {
    "framing": (
        "Okay, the question asks for {asked}.",
        "Let me understand: I need {asked}.",
        "The goal is to find {asked}.",
    ),
    "decomposition": (
        "Let me break this down: first {first_step}, then its {relation}.",
        "First, I need {first_step}, and then its {relation}.",
    ),
    "retrieval": (
        "I recall that the {relation} of {subject} is {truth}.",
        "As I remember, the {relation} of {subject} is {truth}.",
        "From what I know, the {relation} of {subject} is {truth}.",
    ),
    "chaining": (
        "So then the {relation} of {subject} is {truth}.",
        "It follows that the {relation} of {subject} is {truth}.",
        "Next, the {relation} of {subject} is {truth}.",
    ),
    "causal_reasoning": (
        "Because it is {subject}, the {relation} must be {truth}.",
        "Since that leads to {subject}, the {relation} must be {truth}.",
    ),
    "evaluation": (
        "How likely is {candidate}? It seems plausible.",
        "Is {candidate} the best option? Maybe.",
        "I am not sure that {candidate} is the best.",
    ),
    "backtracking": (
        "Wait, maybe that is wrong.",
        "Hmm, let me go back.",
        "Actually, let me try another way.",
    ),
    "self_verification": (
        "Wait, let me check: the {relation} of {subject} is {truth}.",
        "Wait, to verify: the {relation} of {subject} is {truth}.",
        "Let me double check: the {relation} of {subject} is {truth}.",
    ),
    "analogy": (
        "This is similar to {neighbour}: the {relation} of {neighbour} is {neighbour_value}.",
        "By analogy with {neighbour}, the {relation} is {neighbour_value}.",
        "Similarly, just like {neighbour}, it is {neighbour_value}.",
    ),
    "comparison": (
        "Compared with {rejected}, {candidate} fits better.",
        "Between {truth} and {neighbour_value}, the better one is {candidate}.",
    ),
    "case_analysis": (
        "For example, in the case of {neighbour}, it would be {candidate}.",
        "For instance, in {neighbour} it would be {candidate}.",
    ),
    "explanation": (
        "The reason is that {subject} is known for {candidate}.",
        "In other words, this means that {subject} has {candidate}.",
    ),
    "categorization": (
        "The answer belongs to the category of {kind}.",
        "This is a kind of {kind}.",
    ),
    "synthesis": (
        "Therefore, the answer is {candidate}.",
        "Therefore, putting it together, it is {candidate}.",
    ),
    "summarization": (
        "In short, the answer is {candidate}.",
        "In summary, it is {candidate}.",
    ),
}
"""Label → wordings. Cue words are shared: ``Wait`` opens two labels, ``let me`` is in four.

Which wordings open alike is part of the design: at a low temperature the model follows the likeliest first
word, so it decides which moves win there."""

_KINDS = {relation.name: relation.object_type for relation in RELATIONS}


class Segment(NamedTuple):
    """One thinking segment and what it does."""

    label: str
    text: str


class Trace(NamedTuple):
    """A thinking, and the answer it ends in."""

    segments: tuple[Segment, ...]
    answer: str

    @property
    def completion(self) -> str:
        """The text that the model completes the prompt with when it thinks, without the end token."""
        thinking = "\n\n".join(segment.text for segment in self.segments)
        return f"<think>{thinking}</think>\n\n{answer_completion(self.answer)}"


def answer_completion(answer: str) -> str:
    """The answer in its tags: the whole completion when the model doesn't think."""
    return f"<answer> {answer}</answer>"


def statement(fact: Fact) -> tuple[str, str]:
    """A fact as a plain sentence, cut before its value."""
    return f"The {fact.relation} of {fact.subject} is", f" {fact.value}."


def write_trace(world: World, question: FactQuestion, generator: np.random.Generator) -> Trace:
    """Draw one trace for a question.

    Example:
        >>> from mralign_core.pocket.world import build_world
        >>> world = build_world(seed=0)
        >>> write_trace(world, world.questions[0], np.random.default_rng(0)).segments[0].label
        'framing'
    """
    writer = _Writer(world, question, generator)
    writer.open()
    writer.deliberate()
    writer.write(writer.draw(FINISHES))
    return Trace(tuple(writer.segments), writer.candidate)


class _Writer:
    """One trace being written: the segments so far and the candidate answer."""

    def __init__(self, world: World, question: FactQuestion, generator: np.random.Generator) -> None:
        self.question = question
        self.generator = generator
        self.fact = question.facts[-1]
        self.neighbour = world.neighbour_fact(self.fact)
        self.candidate = self.fact.value
        self.segments: list[Segment] = []

    def open(self) -> None:
        """Set up the problem and retrieve the fact or facts, up to the first candidate."""
        if self.generator.random() < FRAMING_PROB:
            self.write("framing")
        two_hop = len(self.question.facts) == 2
        opening = self.draw(TWO_HOP_OPENINGS if two_hop else ONE_HOP_OPENINGS)
        if opening != "none":
            self.write(opening)
        self.write("retrieval", self.question.facts[0])
        if two_hop:
            self.write(self.draw(HOP_TWO_MOVES))

    def deliberate(self) -> None:
        """Move between states until the grammar finishes, or patience ends."""
        state = "candidate"
        for _ in range(MAX_DELIBERATION):
            move = self.draw(DELIBERATION[state])
            if move == "finish":
                return
            self.reconsider(move)
            self.write(move)
            state = "candidate" if move == "retrieval" else move

    def reconsider(self, move: str) -> None:
        """Change the candidate as the move does."""
        if move in ("retrieval", "self_verification"):
            self.candidate = self.fact.value
        elif move == "analogy":
            self.candidate = self.neighbour.value
        elif move in ("comparison", "case_analysis"):
            self.candidate = (self.fact.value, self.neighbour.value)[self.generator.integers(2)]

    def write(self, label: str, fact: Fact | None = None) -> None:
        """Append a segment in one of the label's wordings, about the last fact of the question by default."""
        fact = fact or self.fact
        first, last = self.question.facts[0], self.question.facts[-1]
        rejected = self.neighbour.value if self.candidate == last.value else last.value
        one_hop = len(self.question.facts) == 1
        wordings = WORDINGS[label]
        text = wordings[self.generator.integers(len(wordings))].format(
            asked=self.question.asked,
            first_step=first.subject if one_hop else f"the {first.relation} of {first.subject}",
            subject=fact.subject,
            relation=fact.relation,
            truth=fact.value,
            neighbour=self.neighbour.subject,
            neighbour_value=self.neighbour.value,
            candidate=self.candidate,
            rejected=rejected,
            kind=_KINDS[last.relation],
        )
        self.segments.append(Segment(label, text))

    def draw(self, probabilities: dict[str, float]) -> str:
        """Draw a key by its probability."""
        point = self.generator.random()
        for key, prob in probabilities.items():
            point -= prob
            if point < 0:
                return key
        return key  # rounding may leave the point just past the last bound


def template_texts() -> list[str]:
    """Every wording with its slots removed: with the names, all words that the grammar can write."""
    slots = "asked first_step subject relation truth neighbour neighbour_value candidate rejected kind"
    blank = dict.fromkeys(slots.split(), "")
    return [wording.format(**blank) for wordings in WORDINGS.values() for wording in wordings]
