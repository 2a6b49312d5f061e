"""What the annotators and the adjudicator are told: versioned texts, and the messages made from them.

A changed text is a new file with the next version number, never an edit: replies are kept under the text
that drew them. The static part (instructions, labels, reply format) comes first and is the same for every
trace, so that providers' prompt caches hit. A trace is hostile text: it may hold instructions, JSON, fences
or our own markers. It travels as one JSON object whose ``<`` and ``>`` are escaped, so that nothing inside
it can close the markers around it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import accumulate
from typing import Any, NamedTuple

from mralign_core.llm.offline import Message
from mralign_core.llm.tidying import as_utf8
from mralign_core.method.consolidation import LabelVote
from mralign_core.method.taxonomy import Taxonomy

ANNOTATE = "annotate.v1"
ANNOTATE_EACH = "annotate_each.v1"
"""No merging. Its form is no reply as it stands: small models copy an example whole, labels and all."""
ANNOTATE_SOME = "annotate_some.v1"
"""Some of the segments, each by itself; the rest is shown so that they can be understood."""
ADJUDICATE = "adjudicate.v1"
ANNOTATE_EXCERPTS, ADJUDICATE_EXCERPTS = "annotate_excerpts.v1", "adjudicate_excerpts.v1"
"""Some segments of one or more traces, of which only what is near those segments is shown."""
WITHOUT_GOLD = {
    ANNOTATE: "annotate_without_gold.v1",
    ANNOTATE_EACH: "annotate_each_without_gold.v1",
    ANNOTATE_SOME: "annotate_some_without_gold.v1",
    ADJUDICATE: "adjudicate_without_gold.v1",
    ANNOTATE_EXCERPTS: "annotate_excerpts_without_gold.v1",
    ADJUDICATE_EXCERPTS: "adjudicate_excerpts_without_gold.v1",
}
"""The same where the gold answers are hidden."""
REPAIR = "repair.v1"
MAX_SHOWN = 4000
"""Most characters of a reply that could not be used that a repair prompt sends back."""
OPENING, CLOSING = "<data>\n", "\n</data>"


class ShownTrace(NamedTuple):
    """What is shown of a trace: the text of each thinking segment, the question, and its gold answers or None."""

    question: str
    gold_answers: Sequence[str] | None
    segments: Sequence[str]


class DisputedStep(NamedTuple):
    """A step (its segment indices) that the two annotators leave to the adjudicator, and their votes."""

    segments: tuple[int, ...]
    vote_a: LabelVote
    vote_b: LabelVote


class Excerpt(NamedTuple):
    """What is asked about one trace that is not shown whole.

    Args:
        trace: the whole of it.
        asked: indices of the segments to label or to decide, increasing.
        context: how many segments are shown on either side of each.
        votes: where an adjudicator decides, the two annotators' votes on each asked segment.
    """

    trace: ShownTrace
    asked: Sequence[int]
    context: int
    votes: Sequence[tuple[LabelVote, LabelVote]] = ()

    @property
    def shown(self) -> list[int]:
        """Indices of the segments that are shown.

        >>> Excerpt(ShownTrace("Who?", None, ["a", "b", "c", "d", "e"]), [0, 4], context=1).shown
        [0, 1, 3, 4]
        """
        near = {place for each in self.asked for place in range(each - self.context, each + self.context + 1)}
        return [place for place in range(len(self.trace.segments)) if place in near]


def annotate_messages(
    trace: ShownTrace, *, max_labels: int, taxonomy: Taxonomy, may_merge: bool = True
) -> list[Message]:
    """Messages that ask an annotator for the labels of every segment of a trace, which it may merge into steps."""
    name = ANNOTATE if may_merge else ANNOTATE_EACH
    return [_system(name, trace, max_labels, taxonomy), data_message(_payload(trace))]


def annotate_some_messages(
    trace: ShownTrace, asked: Sequence[int], *, max_labels: int, taxonomy: Taxonomy
) -> list[Message]:
    """Messages that ask an annotator for the labels of some segments of a trace, which is shown whole."""
    payload = _payload(trace) | {"asked": list(asked)}
    return [_system(ANNOTATE_SOME, trace, max_labels, taxonomy), data_message(payload)]


def adjudicate_messages(
    trace: ShownTrace, disputed: Sequence[DisputedStep], *, max_labels: int, taxonomy: Taxonomy
) -> list[Message]:
    """Messages that ask the adjudicator for the labels of the disputed steps of a trace."""
    payload = _payload(trace) | {"disputed": _votes_of(disputed)}
    return [_system(ADJUDICATE, trace, max_labels, taxonomy), data_message(payload)]


def excerpts_messages(excerpts: Sequence[Excerpt], *, max_labels: int, taxonomy: Taxonomy) -> list[Message]:
    """Messages that ask for the labels of some segments of one or more traces, or for a decision on them."""
    is_disputed = bool(excerpts[0].votes)
    numbers = numbers_of(excerpts)
    traces = [
        _about(each.trace)
        | {"segments": [{"index": first + place, "text": each.trace.segments[place]} for place in each.shown]}
        for each, first in zip(excerpts, _first_numbers(excerpts), strict=True)
    ]
    votes = [pair for each in excerpts for pair in each.votes]
    asked = (
        {"disputed": _votes_of([DisputedStep((n,), *pair) for n, pair in zip(numbers, votes, strict=True)])}
        if is_disputed
        else {"asked": numbers}
    )
    name = ADJUDICATE_EXCERPTS if is_disputed else ANNOTATE_EXCERPTS
    return [_system(name, excerpts[0].trace, max_labels, taxonomy), data_message({"traces": traces, **asked})]


def numbers_of(excerpts: Sequence[Excerpt]) -> list[int]:
    """The numbers that the asked segments have in a request: those of a trace follow on those of the one before."""
    firsts = _first_numbers(excerpts)
    return [first + place for each, first in zip(excerpts, firsts, strict=True) for place in each.asked]


def _first_numbers(excerpts: Sequence[Excerpt]) -> list[int]:
    return list(accumulate((len(each.trace.segments) for each in excerpts[:-1]), initial=0))


def _votes_of(disputed: Sequence[DisputedStep]) -> list[dict[str, Any]]:
    return [
        {
            "thinking_step": list(step.segments),
            "annotator_a": ratings(step.vote_a),
            "annotator_b": ratings(step.vote_b),
        }
        for step in disputed
    ]


def repair_messages(messages: Sequence[Message], reply: str, problem: str) -> list[Message]:
    """The conversation so far, the reply that could not be used, and why; an empty reply is left out.

    Of a long reply its beginning and its end are sent back: that is enough to correct it, and costs no more than that.
    """
    shown: list[Message] = [{"role": "assistant", "content": shortened(reply)}] if reply.strip() else []
    return [*messages, *shown, {"role": "user", "content": read_text(REPAIR).format(problem=problem)}]


def shortened(reply: str) -> str:
    """A reply, or the beginning and the end of one that is longer than ``MAX_SHOWN`` characters."""
    if len(reply) > MAX_SHOWN:
        left_out = len(reply) - MAX_SHOWN
        half = MAX_SHOWN // 2
        reply = f"{reply[:half]}\n[… {left_out:,} characters left out …]\n{reply[-half:]}"
    return as_utf8(reply)


def read_payload(messages: Sequence[Message]) -> dict[str, Any]:
    """The JSON object of a request, as the annotator is shown it."""
    content = messages[1]["content"]
    payload: dict[str, Any] = json.loads(content[content.index(OPENING) + len(OPENING) : content.rindex(CLOSING)])
    return payload


@cache
def read_text(name: str, package: str = __name__) -> str:
    """The text of a prompt file of a package, such as ``annotate.v1``."""
    return files(package).joinpath(f"{name}.md").read_text(encoding="utf-8")


def _system(name: str, trace: ShownTrace, max_labels: int, taxonomy: Taxonomy) -> Message:
    name = WITHOUT_GOLD[name] if trace.gold_answers is None else name
    labels = "\n".join(f"- `{label}`: {taxonomy.definitions[label]}" for label in taxonomy.labels)
    text = read_text(name).format(labels=labels, example_label=taxonomy.labels[0], max_labels=max_labels)
    return {"role": "system", "content": text}


def data_message(payload: dict[str, Any]) -> Message:
    """The user's message that carries a JSON object, which nothing inside it can leave."""
    text = json.dumps(payload, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")
    # Of a lone surrogate (half a character, cut by a tokenizer) this makes a JSON escape.
    return {"role": "user", "content": f"{OPENING}{as_utf8(text)}{CLOSING}"}


def _payload(trace: ShownTrace) -> dict[str, Any]:
    segments = [{"index": index, "text": text} for index, text in enumerate(trace.segments)]
    return _about(trace) | {"segments": segments}


def _about(trace: ShownTrace) -> dict[str, Any]:
    gold = {} if trace.gold_answers is None else {"gold_answers": list(trace.gold_answers)}
    return {"question": trace.question, **gold}


def ratings(vote: LabelVote) -> list[dict[str, Any]]:
    """A vote as prompts and replies have it."""
    return [
        {"label": label, "confidence": confidence}
        for label, confidence in zip(vote.labels, vote.confidences, strict=True)
    ]
