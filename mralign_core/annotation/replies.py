"""What a reply of an annotator says, or why it can't be used.

A reply is used whole or not at all: it must cover exactly the asked segments with labels of the closed set. Its framing
and its spelling are read as a person would (:mod:`mralign_core.llm.json_reply`, and here):

* Labels match whatever their case, blanks, hyphens and underscores. They may be a list, one text, objects, pairs, or a
  mapping from label to confidence.
* A confidence may be a text such as "8", "8/10" or "80%". A label that is named without one has that of its step, or
  else the one that the annotator gave the whole; where there is none, the reply can't be used.
* Segments may be a number, a text or a range. Where exactly the segments 1 to n are given, in this order, for n ≥ 2
  segments that are numbered from 0, the annotator counted from 1.
* A step that is given twice, alike, is one.

Everything else is a :class:`ReplyProblem`, an outcome of its own and never a label.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mralign_core.llm.json_reply import MAX_RANGE, ReplyProblem, Shape, count_from_zero, plain, read_indices, read_reply
from mralign_core.method.consolidation import LabelVote
from mralign_core.method.taxonomy import Taxonomy

__all__ = ["ParsedReply", "ReplyProblem", "parse_reply", "read_form", "reply_schema", "reply_schema_of"]

FULL_CONFIDENCE = 10
STEP_NAMES = "thinking_step thinking_steps segment_indices indices segment_index index segments segment step id number"
SHAPE = Shape(
    "steps",
    (
        tuple(STEP_NAMES.split()),
        ("labels", "label"),
        ("confidence", "confidences", "score", "scores"),
    ),
    (("overall_confidence", "overall", "confidence"),),
)
LABEL_FIELDS = (("label", "name", "move"), ("confidence", "score", "rating", "value"))
RATED = re.compile(r"(?P<label>[^\d:=(]*[^\d:=(\s])\s*(?:[:=]\s*|\(\s*)(?P<confidence>\d[\d.,]*\s*(?:/\s*10|%)?)\s*\)?")
CONFIDENCE_NUMBER = re.compile(r"(?P<number>\d{1,9}(?:[.,]\d{1,9})?)\s*(?P<scale>%|(?:/|out of|of)\s*10(?:\.0)?)?")
NO_LABEL_WORDS = ("", "-", "none", "null", "n/a", "na", "no label", "no labels", "empty")
MAX_LABEL_TEXT = 500
"""Longest text that names labels, in characters."""
Form = TypeVar("Form", bound=BaseModel)


class ParsedReply(NamedTuple):
    """A reply that can be used.

    ``votes`` and ``steps`` have an entry for each segment that was asked for, in the order of the segments;
    ``steps`` numbers the annotator's steps from 0, and the segments of a step share its vote. ``overall_confidence`` is
    None where the annotator gave none.
    """

    votes: list[LabelVote]
    steps: list[int]
    overall_confidence: float | None


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


class _ReadReply(Reply):
    """The object as far as it is needed."""

    overall_confidence: Confidence | None = None  # type: ignore[assignment]


def reply_schema(taxonomy: Taxonomy) -> dict[str, Any]:
    """JSON schema of a reply, with the labels as an enumeration, for endpoints that can enforce one."""
    schema = Reply.model_json_schema()
    schema["$defs"]["LabelRating"]["properties"]["label"]["enum"] = list(taxonomy.labels)
    return schema


def reply_schema_of(taxonomy: Taxonomy, asked: Sequence[Sequence[int]], max_labels: int) -> dict[str, Any]:
    """JSON schema of a reply that gives exactly these steps, in this order, with no more labels than are allowed.

    Confidences are whole numbers: servers that can't bound a fraction can bound these, and a small model that may write
    fractions takes the scale for one from 0 to 1.

    Not every provider takes such a schema; servers of one's own that constrain a reply (llama.cpp, vLLM, SGLang) do.

    Args:
        taxonomy: the closed label set.
        asked: the steps, each the indices of its segments.
        max_labels: most labels of a step.

    >>> from mralign_core.method.taxonomy import PAPER_TAXONOMY
    >>> schema = reply_schema_of(PAPER_TAXONOMY, [[0], [1, 2]], max_labels=2)
    >>> [step["properties"]["thinking_step"] for step in schema["properties"]["steps"]["prefixItems"]]
    [{'const': [0]}, {'const': [1, 2]}]
    """
    schema = reply_schema(taxonomy)
    step = schema["$defs"].pop("Step")
    schema["$defs"]["Labels"] = step["properties"]["labels"] | {"maxItems": max_labels}
    confidence = {"type": "integer", "minimum": 0, "maximum": FULL_CONFIDENCE}
    for part in (schema["$defs"]["LabelRating"], schema):
        part["properties"] |= {name: confidence for name in part["properties"] if "confidence" in name}
    labels = {"$ref": "#/$defs/Labels"}
    exact = [step | {"properties": {"thinking_step": {"const": list(one)}, "labels": labels}} for one in asked]
    bounds = {"minItems": len(exact), "maxItems": len(exact)}
    schema["properties"]["steps"] = {"type": "array", "prefixItems": exact} | bounds
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

    def read(content: dict[str, Any]) -> ParsedReply:
        reply = read_form(_canonical(content, taxonomy), _ReadReply)
        steps = _distinct(_counted_from_zero(reply.steps, asked, may_merge))
        _check_cover(steps, asked, may_merge)
        for step in steps:
            _check_labels(step, max_labels, taxonomy)
        votes = [LabelVote(*_split(step.labels)) for step in steps for _ in step.thinking_step]
        numbers = [number for number, step in enumerate(steps) for _ in step.thinking_step]
        return ParsedReply(votes, numbers, reply.overall_confidence)

    return read_reply(text, finish_reason, SHAPE, read)


def read_form(content: dict[str, Any], form: type[Form]) -> Form:
    """The content of a reply, of the asked form.

    Raises:
        ReplyProblem: it is not of this form.
    """
    try:
        return form.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        message = f"{where}: {first['msg']} (got {first['input']!r:.60}); {error.error_count()} problem(s) in all"
        raise ReplyProblem("wrong_form", message) from None


def _canonical(content: dict[str, Any], taxonomy: Taxonomy) -> dict[str, Any]:
    """The content as it was asked for; what has no place in it stays as it is, to be refused."""
    overall = _confidence(content.get("overall_confidence"))
    steps = content["steps"]
    if isinstance(steps, list):
        steps = _bounded(_canonical_step(step, overall, taxonomy) if isinstance(step, dict) else step for step in steps)
    return {"steps": steps, "overall_confidence": overall}


def _bounded(steps: Iterable[Any]) -> list[Any]:
    """The steps, as long as they have no more segments together than a step may have."""
    found, num_indices = [], 0
    for step in steps:
        found.append(step)
        num_indices += len(step.get("thinking_step", ())) if isinstance(step, dict) else 0
        if num_indices > MAX_RANGE:
            raise ReplyProblem("wrong_form", f"the steps have more than {MAX_RANGE:,} segments")
    return found


def _canonical_step(step: dict[str, Any], overall: Any, taxonomy: Taxonomy) -> dict[str, Any]:
    found = dict(step)
    if "thinking_step" in step:
        found["thinking_step"] = sorted({*read_indices(step["thinking_step"])})
    if "labels" in step:
        own = step.get("confidence")
        labels = list(_ratings(step["labels"], overall if own is None else own, own is not None, taxonomy))
        if isinstance(own, list) and len(own) == len(labels):
            labels = [rating | {"confidence": sure} for rating, sure in zip(labels, own, strict=True)]
        found["labels"] = _distinct([rating | {"confidence": _confidence(rating["confidence"])} for rating in labels])
    found.pop("confidence", None)
    return found


def _ratings(value: Any, fallback: Any, is_of_step: bool, taxonomy: Taxonomy) -> Iterator[dict[str, Any]]:
    """What a value says of labels, each with its confidence or with the wider one that stands in for it."""
    if value is None or (
        isinstance(value, str) and _known(value, taxonomy) is None and value.strip(" .").casefold() in NO_LABEL_WORDS
    ):
        return
    if isinstance(value, str) and len(value) <= MAX_LABEL_TEXT:
        yield from _named_labels(value, fallback, taxonomy)
    elif isinstance(value, dict):
        named = {name: value[key] for name, *others in LABEL_FIELDS for key in _keys(value, (name, *others))[:1]}
        if isinstance(named.get("label"), str | None) and "label" in named:
            # An object has a place for its confidence: the whole's does not stand in for one that is missing there.
            sure = named.get("confidence", fallback if is_of_step else None)
            yield from (
                rating | {"confidence": sure} for rating in _ratings(named["label"], sure, is_of_step, taxonomy)
            )
        else:
            for label, sure in value.items():
                sure = sure.get("confidence") if isinstance(sure, dict) else sure
                if _is_zero(sure):  # who rates every label of the set means by it that this is none of the step's
                    continue
                yield {"label": _known(label, taxonomy) or label, "confidence": sure}
    elif isinstance(value, list):
        if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float):
            yield {"label": _known(value[0], taxonomy) or value[0], "confidence": value[1]}
            return
        yield from chain.from_iterable(_ratings(part, fallback, is_of_step, taxonomy) for part in value)
    else:
        raise ReplyProblem("wrong_form", f"{value!r:.60} is no label")


def _named_labels(text: str, fallback: Any, taxonomy: Taxonomy) -> Iterator[dict[str, Any]]:
    """The labels that a text names: one, or several with marks between them, each with its confidence or without."""
    if _known(text, taxonomy) is None and (rated := RATED.fullmatch(text.strip())):
        text, fallback = rated["label"], rated["confidence"]
    parts = [text] if _known(text, taxonomy) else re.split(r"[,;|+&\n]|/(?!\s*10)|\band\b", text)
    if len(parts) > 1 and any(RATED.fullmatch(part.strip()) for part in parts):
        yield from chain.from_iterable(_named_labels(part, fallback, taxonomy) for part in parts)
        return
    yield from ({"label": _known(part, taxonomy) or part.strip(), "confidence": fallback} for part in parts)


def _known(text: str, taxonomy: Taxonomy) -> str | None:
    """The label that a text spells, if it is plain which."""
    if text in taxonomy.labels:
        return text
    alike = [label for label in taxonomy.labels if plain(label) == plain(text)]
    return alike[0] if len(alike) == 1 else None


def _keys(value: dict[str, Any], names: Sequence[str]) -> list[str]:
    return [key for name in names for key in value if plain(key) == plain(name)]


def _confidence(value: Any) -> Any:
    """A confidence from 0 to 10 as a number, where a text or a list of one gives it."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and (match := CONFIDENCE_NUMBER.fullmatch(value.strip())):
        number = float(match["number"].replace(",", "."))
        return number / 10 if match["scale"] == "%" else number
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value + 0.0 if is_number and abs(value) <= FULL_CONFIDENCE else value  # -0.0 becomes 0.0


def _is_zero(value: Any) -> bool:
    number = _confidence(value)
    return isinstance(number, float) and number == 0


def _distinct(parts: Sequence[Any]) -> list[Any]:
    """The parts, each once, in their order."""
    return list({repr(part): part for part in parts}.values())


def _counted_from_zero(steps: Sequence[Step], asked: Sequence[Sequence[int]], may_merge: bool) -> list[Step]:
    """The steps in the order of their segments, numbered as they were asked for."""
    given = [index for step in steps for index in step.thinking_step]
    base = count_from_zero(given, len(asked)) if may_merge else 0
    shifted = [Step(thinking_step=[n - base for n in step.thinking_step], labels=step.labels) for step in steps]
    return sorted(shifted, key=lambda step: step.thinking_step)


def _check_cover(steps: Sequence[Step], asked: Sequence[Sequence[int]], may_merge: bool) -> None:
    wanted = [index for step in asked for index in step]
    given = [index for step in steps for index in step.thinking_step]
    counts = Counter(given)
    if foreign := sorted(counts.keys() - set(wanted)):
        raise ReplyProblem(
            "index_out_of_range", f"thinking_step holds {_shown(foreign)}; asked for were {_shown(wanted)}"
        )
    for step in steps:
        first = step.thinking_step[0]
        if step.thinking_step != list(range(first, first + len(step.thinking_step))):
            detail = f"thinking_step {_shown(step.thinking_step)} must hold neighbouring numbers"
            raise ReplyProblem("non_adjacent_merge", detail)
    if repeated := sorted(index for index, count in counts.items() if count > 1):
        raise ReplyProblem("overlapping_steps", f"segment(s) {_shown(repeated)} are in more than one step")
    if missing := sorted(set(wanted) - counts.keys()):
        raise ReplyProblem("missing_segment", f"segment(s) {_shown(missing)} are in no step")
    if not may_merge and [step.thinking_step for step in steps] != [list(step) for step in asked]:
        raise ReplyProblem("wrong_steps", f"the steps must be {_shown([list(step) for step in asked])}")


def _shown(numbers: Sequence[Any]) -> str:
    return f"{list(numbers)!r:.120}"


def _check_labels(step: Step, max_labels: int, taxonomy: Taxonomy) -> None:
    names = [rating.label for rating in step.labels]
    where = f"step {_shown(step.thinking_step)}"
    if unknown := [name for name in names if name not in taxonomy.labels]:
        detail = f"{where} has {_shown(unknown)}; the labels are {', '.join(taxonomy.labels)}"
        raise ReplyProblem("unknown_label", detail)
    if len(set(names)) < len(names):
        raise ReplyProblem("repeated_label", f"{where} names a label twice: {_shown(names)}")
    if len(names) > max_labels:
        raise ReplyProblem("too_many_labels", f"{where} has {len(names)}, at most {max_labels}")


def _split(ratings: Sequence[LabelRating]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    return tuple(rating.label for rating in ratings), tuple(rating.confidence for rating in ratings)
