"""The labels a segment can carry, and the states of the transition matrices (§3.1.2, App. B)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from mralign_core.errors import ConfigError, DataError

START_NAME = "<start>"
STOP_NAME = "<stop>"

MAX_LABELS = 2
"""Most labels of a segment, and of a step, which has those of its segments."""


@dataclass(frozen=True)
class Taxonomy:
    """A closed, ordered label set; a label's place in it is its state index, counted from 1.

    The states of a transition matrix are ``<start>`` (0), the labels (1 … num_labels), ``<stop>`` (the last).

    Args:
        labels: distinct label names in canonical order, which also breaks ties.
        macro_strategies: label → the macro-strategy it belongs to.
        definitions: label → what a segment with this label does, as annotators are told.

    Raises:
        ConfigError: a label is missing, repeated, reserved, or without macro-strategy or definition.

    >>> tiny = Taxonomy(("ask", "tell"), {"ask": "talk", "tell": "talk"}, {"ask": "asks", "tell": "tells"})
    >>> tiny.num_labels, tiny.num_states, tiny.state("tell"), tiny.stop
    (2, 4, 2, 3)
    """

    labels: tuple[str, ...]
    macro_strategies: Mapping[str, str] = field(hash=False)
    definitions: Mapping[str, str] = field(hash=False)

    START: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not self.labels:
            raise ConfigError("taxonomy.labels is empty; it must name at least one label")
        if len(set(self.labels)) != len(self.labels) or {START_NAME, STOP_NAME} & set(self.labels):
            raise ConfigError(
                f"taxonomy.labels is {list(self.labels)}; labels must be distinct, and not {START_NAME} or {STOP_NAME}"
            )
        for name, table in (("macro_strategies", self.macro_strategies), ("definitions", self.definitions)):
            if set(table) != set(self.labels):
                odd = sorted(set(table) ^ set(self.labels))
                raise ConfigError(f"taxonomy.{name} must have exactly the labels as keys; check {', '.join(odd)}")

    @property
    def num_labels(self) -> int:
        """Number of labels."""
        return len(self.labels)

    @property
    def num_states(self) -> int:
        """Number of states K: the labels, ``<start>`` and ``<stop>``."""
        return len(self.labels) + 2

    @property
    def stop(self) -> int:
        """State index of ``<stop>``."""
        return self.num_states - 1

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states, in the order of their indices."""
        return (START_NAME, *self.labels, STOP_NAME)

    def state(self, label: str) -> int:
        """State index of a label, 1 … num_labels.

        Raises:
            DataError: the label is not in the taxonomy.
        """
        try:
            return self.labels.index(label) + 1
        except ValueError:
            raise DataError(f"label {label!r} is not in the taxonomy; it has {', '.join(self.labels)}") from None

    def macro_of(self, label: str) -> str:
        """Macro-strategy that a label belongs to.

        Raises:
            DataError: the label is not in the taxonomy.
        """
        return self.macro_strategies[self.labels[self.state(label) - 1]]


_PAPER_LABELS = {
    "meta-cognitive regulation": {
        "framing": "sets up the problem: what is asked, the goals and the constraints",
        "backtracking": "returns to an earlier choice to try another branch",
        "self_verification": "checks an intermediate claim for consistency and fact",
        "evaluation": "scores candidate answers or approaches and picks among them",
    },
    "problem-solving operations": {
        "decomposition": "splits the problem into sub-problems",
        "chaining": "links inferences step by step, each on the one before",
    },
    "knowledge operations": {
        "causal_reasoning": "tests cause and effect, counterfactuals or mechanisms",
        "retrieval": "brings in knowledge or evidence",
        "analogy": "maps a known case onto this one",
        "synthesis": "merges several pieces into one conclusion",
        "comparison": "contrasts options on criteria",
        "categorization": "assigns things to classes",
        "case_analysis": "argues from precedents, examples or counterexamples",
    },
    "explanatory & communication": {
        "explanation": "lays out reasons for the reader",
        "summarization": "compresses what was said to its salient points",
    },
}

PAPER_TAXONOMY = Taxonomy(
    labels=tuple(label for group in _PAPER_LABELS.values() for label in group),
    macro_strategies={label: macro for macro, group in _PAPER_LABELS.items() for label in group},
    definitions={label: text for group in _PAPER_LABELS.values() for label, text in group.items()},
)
"""The paper's 15 labels in canonical order, with 4 macro-strategies; definitions reworded from App. B.6."""
