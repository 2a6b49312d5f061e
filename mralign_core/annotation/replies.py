"""What a reply of an annotator says, or why it can't be used.

A reply is used whole or not at all: JSON of exactly the asked form that covers exactly the asked segments.
Bare JSON, or one fenced block with nothing around it, is accepted. Everything else is a
:class:`ReplyProblem`, an outcome of its own and never a label.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mralign_core.method.consolidation import LabelVote
from mralign_core.method.taxonomy import Taxonomy

FENCED = re.compile(r"```(?:json)?[ \t]*\n(?P<body>(?:(?!```).)*)```", re.DOTALL)
FULL_CONFIDENCE = 10
Form = TypeVar("Form", bound=BaseModel)


class ReplyProblem(ValueError):
    """Why a reply can't be used: ``kind``, one of ``KINDS``, and a sentence that its author can act on."""

    KINDS = (
        "empty",
        "refused",
        "truncated",
        "not_json",
        "wrong_form",
        "unknown_label",
        "repeated_label",
        "too_many_labels",
        "index_out_of_range",
        "overlapping_steps",
        "missing_segment",
        "non_adjacent_merge",
        "wrong_steps",
    )

    def __init__(self, kind: str, detail: str) -> None:
        assert kind in self.KINDS, kind
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class ParsedReply(NamedTuple):
    """A reply that can be used.

    ``votes`` and ``steps`` have an entry for each segment that was asked for, in the order of the segments;
    ``steps`` numbers the annotator's steps from 0, and the segments of a step share its vote.
    """

    votes: list[LabelVote]
    steps: list[int]
    overall_confidence: float


Confidence = Annotated[float, Field(strict=True, ge=0, le=FULL_CONFIDENCE, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LabelRating(_Part):
    """A label and how sure the annotator is of it."""

    label: str
    confidence: Confidence


class Step(_Part):
    """One step of the thinking: the indices of its segments, and its labels."""

    thinking_step: list[Annotated[int, Field(strict=True)]] = Field(min_length=1)
    labels: list[LabelRating]


class Reply(_Part):
    """The JSON object an annotator replies with."""

    steps: list[Step]
    overall_confidence: Confidence


def reply_schema(taxonomy: Taxonomy) -> dict[str, Any]:
    """JSON schema of a reply, with the labels as an enumeration, for endpoints that can enforce one."""
    schema = Reply.model_json_schema()
    schema["$defs"]["LabelRating"]["properties"]["label"]["enum"] = list(taxonomy.labels)
    return schema


def parse_reply(
    text: str,
    finish_reason: str,
    *,
    asked: Sequence[Sequence[int]],
    may_merge: bool,
    max_labels: int,
    taxonomy: Taxonomy,
) -> ParsedReply:
    """Read a reply and check that it answers what was asked.

    Args:
        text: the reply as it came.
        finish_reason: why the endpoint stopped, such as ``stop`` or ``length``.
        asked: the steps that were asked for, each the increasing indices of its segments; an annotator is
            asked for one step a segment.
        may_merge: whether the reply may join neighbouring segments; if not, its steps must be the asked ones.
        max_labels: most labels of a step.
        taxonomy: the closed label set.

    Raises:
        ReplyProblem: the reply can't be used.

    >>> from mralign_core.method.taxonomy import PAPER_TAXONOMY
    >>> text = '{"steps": [{"thinking_step": [0, 1], "labels": [{"label": "framing", "confidence": 9}]}],'
    >>> parse_reply(text + '"overall_confidence": 8}', "stop", asked=[[0], [1]], may_merge=True, max_labels=2,
    ...             taxonomy=PAPER_TAXONOMY).steps
    [0, 0]
    """
    reply = read_json(text, finish_reason, Reply)
    steps = sorted(reply.steps, key=lambda step: step.thinking_step)
    _check_cover(steps, asked, may_merge)
    for step in steps:
        _check_labels(step, max_labels, taxonomy)
    votes = [LabelVote(*_split(step.labels)) for step in steps for _ in step.thinking_step]
    numbers = [number for number, step in enumerate(steps) for _ in step.thinking_step]
    return ParsedReply(votes, numbers, reply.overall_confidence)


def read_json(text: str, finish_reason: str, form: type[Form]) -> Form:
    """The JSON object of a reply, of the asked form.

    Args:
        text: the reply as it came.
        finish_reason: why the endpoint stopped.
        form: the object's model.

    Raises:
        ReplyProblem: the reply is not one whole JSON object of this form.
    """
    if finish_reason == "content_filter":
        raise ReplyProblem("refused", "the endpoint refused to answer")
    if finish_reason == "length":
        raise ReplyProblem("truncated", "it was cut off at the token limit; leave out everything but the JSON object")
    if not text.strip():
        raise ReplyProblem("empty", "it holds no text")
    fenced = FENCED.fullmatch(text.strip())
    try:
        values = json.loads(fenced["body"] if fenced else text)
    except (ValueError, RecursionError) as error:
        raise ReplyProblem("not_json", f"it is not one JSON object ({error})") from None
    try:
        return form.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        message = f"{where}: {first['msg']} (got {first['input']!r:.60}); {error.error_count()} problem(s) in all"
        raise ReplyProblem("wrong_form", message) from None


def _check_cover(steps: Sequence[Step], asked: Sequence[Sequence[int]], may_merge: bool) -> None:
    wanted = [index for step in asked for index in step]
    given = [index for step in steps for index in step.thinking_step]
    if foreign := sorted(set(given) - set(wanted)):
        raise ReplyProblem("index_out_of_range", f"thinking_step holds {foreign}; asked for were {wanted}")
    for step in steps:
        first = step.thinking_step[0]
        if step.thinking_step != list(range(first, first + len(step.thinking_step))):
            detail = f"thinking_step {step.thinking_step} must hold increasing neighbouring numbers"
            raise ReplyProblem("non_adjacent_merge", detail)
    if repeated := sorted({index for index in given if given.count(index) > 1}):
        raise ReplyProblem("overlapping_steps", f"segment(s) {repeated} are in more than one step")
    if missing := sorted(set(wanted) - set(given)):
        raise ReplyProblem("missing_segment", f"segment(s) {missing} are in no step")
    if not may_merge and [step.thinking_step for step in steps] != [list(step) for step in asked]:
        raise ReplyProblem("wrong_steps", f"the steps must be {[list(step) for step in asked]}")


def _check_labels(step: Step, max_labels: int, taxonomy: Taxonomy) -> None:
    names = [rating.label for rating in step.labels]
    if unknown := [name for name in names if name not in taxonomy.labels]:
        detail = f"step {step.thinking_step} has {unknown}; the labels are {', '.join(taxonomy.labels)}"
        raise ReplyProblem("unknown_label", detail)
    if len(set(names)) < len(names):
        raise ReplyProblem("repeated_label", f"step {step.thinking_step} names a label twice: {names}")
    if len(names) > max_labels:
        raise ReplyProblem("too_many_labels", f"step {step.thinking_step} has {len(names)}, at most {max_labels}")


def _split(ratings: Sequence[LabelRating]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    return tuple(rating.label for rating in ratings), tuple(rating.confidence for rating in ratings)
