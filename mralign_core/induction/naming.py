"""Names, definitions and macro-strategies for clusters, and the label set they make (App. B.1).

Decisions where the paper is silent:

* The namer sees all clusters at once, so that names differ and macro-strategies are few.
* Clusters that get the same name are joined into one label.
* When the namer's reply can't be used, twice, every cluster is named after its most frequent label, and that
  is recorded as a failure.
* Labels come by macro-strategy, those with more instances first: that is their canonical order.
* A label's cues, for the offline annotators, are its cluster's own phrases. They find anything only where those
  phrases stand in the traces, as the offline labeller's do; a language model's seldom do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mralign_core.config import AskAgain, EndpointConfig
from mralign_core.errors import DataError
from mralign_core.induction.asking import Answer, ask
from mralign_core.induction.prompts import MAX_DEFINITION, MAX_LABEL_NAME, name_messages
from mralign_core.induction.replies import Named, NameReply, parse_names
from mralign_core.label_sets import MAX_LABELS_OF_SET, RESERVED_NAMES, LabelSet
from mralign_core.llm import background
from mralign_core.llm.client import Client
from mralign_core.method.taxonomy import Taxonomy

UNNAMED_MACRO = "unnamed"
MAX_STRENGTH = 9.0
ONE_WORD_STRENGTH = 6.0
"""Of a cue of one word; each further word adds 1, because longer phrases are rarer by chance."""

Phrases = Mapping[str, int]
"""Phrase → how often it was given, most frequent first."""


class InducedLabel(NamedTuple):
    """A label of the new set, the clusters that were joined in it, and their phrases."""

    name: str
    definition: str
    macro_strategy: str
    clusters: tuple[int, ...]
    phrases: dict[str, int]

    @property
    def num_instances(self) -> int:
        """How often its phrases were given."""
        return sum(self.phrases.values())


def name_clusters(
    clusters: Sequence[Phrases], endpoint: EndpointConfig, client: Client, ask_again: AskAgain = "auto"
) -> Answer[list[Named]]:
    """Ask the namer about all clusters; without a usable reply ``parsed`` is None and says why."""
    from mralign_core.llm import endpoint as api  # takes seconds: see its docstring

    params: dict[str, Any] = api.request_params(endpoint, NameReply.model_json_schema())

    def parse(text: str, finish_reason: str) -> list[Named]:
        return parse_names(text, finish_reason, len(clusters))

    async def name(_: Callable[[int], None]) -> Answer[list[Named]]:
        return await ask(client, endpoint, name_messages(clusters), params, parse, ask_again)

    return background.run(name)


def named_by_phrase(number: int, phrases: Phrases) -> Named:
    """A cluster named after its most frequent phrase.

    >>> named_by_phrase(3, {"check claim": 9, "check the claim": 2}).name
    'check_claim'
    """
    shown = ", ".join(f'"{phrase}"' for phrase in phrases)
    definition = f"makes the move of {shown}"
    return Named(name_of_phrase(number, next(iter(phrases))), definition[:MAX_DEFINITION], UNNAMED_MACRO)


def name_of_phrase(number: int, phrase: str) -> str:
    """A phrase as the name of a label; one that makes no such name is named by the cluster's number.

    >>> name_of_phrase(3, "restate goal"), name_of_phrase(3, "unlabelled")
    ('restate_goal', 'move_3')
    """
    slug = re.sub(r"[^a-z0-9]+", "_", phrase).strip("_")[:MAX_LABEL_NAME].rstrip("_")
    return slug if slug[:1].isalpha() and slug not in RESERVED_NAMES else f"move_{number}"


def join_labels(clusters: Sequence[Phrases], names: Sequence[Named]) -> list[InducedLabel]:
    """Labels in canonical order, clusters of one name joined; the first of them gives definition and macro-strategy."""
    labels: dict[str, InducedLabel] = {}
    for number, (phrases, named) in enumerate(zip(clusters, names, strict=True)):
        before = labels.get(named.name, InducedLabel(*named, (), {}))
        joined = sorted({**before.phrases, **phrases}.items(), key=lambda item: (-item[1], item[0]))
        labels[named.name] = before._replace(clusters=(*before.clusters, number), phrases=dict(joined))
    macros: dict[str, int] = {}
    for label in labels.values():
        macros[label.macro_strategy] = macros.get(label.macro_strategy, 0) + label.num_instances
    return sorted(
        labels.values(),
        key=lambda label: (-macros[label.macro_strategy], label.macro_strategy, -label.num_instances, label.name),
    )


def make_label_set(labels: Sequence[InducedLabel]) -> LabelSet:
    """The label set of induced labels, with cues for the offline annotators.

    Raises:
        DataError: there is no label, or there are more than a label set may have.
    """
    if not 1 <= len(labels) <= MAX_LABELS_OF_SET:
        remedy = "lower induce.min_samples or induce.min_frequency" if not labels else "raise induce.min_samples"
        raise DataError(f"{len(labels)} labels were induced, a label set has 1 to {MAX_LABELS_OF_SET}: {remedy}")
    taxonomy = Taxonomy(
        labels=tuple(label.name for label in labels),
        macro_strategies={label.name: label.macro_strategy for label in labels},
        definitions={label.name: label.definition for label in labels},
    )
    return LabelSet(taxonomy, {label.name: cues_of(label.phrases) for label in labels})


def cues_of(phrases: Phrases) -> dict[str, float]:
    r"""Patterns that find the phrases in lower-case text, whatever stands between their words, and their strength.

    >>> cues_of({"let me check": 4})
    {'\\blet\\W+me\\W+check\\b': 8.0}
    """
    return {
        r"\b" + r"\W+".join(map(re.escape, words)) + r"\b": min(MAX_STRENGTH, ONE_WORD_STRENGTH + len(words) - 1)
        for words in map(str.split, phrases)
    }
