"""What a reply of the open-vocabulary labeller or of the namer says, or why it can't be used.

As with annotators, a reply is used whole or not at all, and its framing is read as a person would.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from mralign_core.annotation.replies import read_form
from mralign_core.induction.prompts import MAX_DEFINITION, MAX_LABEL_NAME, MAX_OPEN_LABELS, MAX_WORDS
from mralign_core.label_sets import RESERVED_NAMES
from mralign_core.llm.json_reply import ReplyProblem, Shape, count_from_zero, read_indices, read_reply

MAX_MACRO = 60
"""Longest name of a macro-strategy, in characters; what label set files accept."""
MAX_PHRASE = 80
"""Longest open label, in characters."""
LABELLED = Shape(
    "segments",
    (("index", "segment_index", "segment", "number", "id"), ("labels", "label")),
)
NAMED = Shape(
    "clusters",
    (
        ("cluster", "cluster_id", "cluster_index", "index", "number", "id"),
        ("name", "label"),
        ("definition", "description"),
        ("macro_strategy", "macro"),
    ),
)
NAME = re.compile(rf"[a-z][a-z0-9_]{{0,{MAX_LABEL_NAME - 1}}}")

StrictInt = Annotated[int, Field(strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SegmentLabels(_Part):
    """The open labels of one segment."""

    index: StrictInt
    labels: list[str]


class OpenLabelReply(_Part):
    """What the open-vocabulary labeller replies with."""

    segments: list[SegmentLabels]


class ClusterName(_Part):
    """The namer's words for one cluster."""

    cluster: StrictInt
    name: str
    definition: str
    macro_strategy: str


class NameReply(_Part):
    """What the namer replies with."""

    clusters: list[ClusterName]


class Named(NamedTuple):
    """Name, definition and macro-strategy of a cluster."""

    name: str
    definition: str
    macro_strategy: str


def normalize(phrase: str) -> str:
    """An open label without what doesn't tell labels apart: case, punctuation, underscores, spacing.

    >>> normalize("  Re-check_Claim!  ")
    're check claim'
    """
    folded = unicodedata.normalize("NFKC", phrase).casefold()
    return " ".join(re.findall(r"[^\W_]+", folded))


def parse_open_labels(text: str, finish_reason: str, num_segments: int) -> list[list[str]]:
    """The normalised open labels of each segment, in the order of the segments.

    Args:
        text: the reply as it came.
        finish_reason: why the endpoint stopped.
        num_segments: segments that were asked about.

    Raises:
        ReplyProblem: the reply can't be used.

    >>> parse_open_labels('{"segments": [{"index": 0, "labels": ["Recall fact."]}]}', "stop", 1)
    [['recall fact']]
    """

    def read(content: dict[str, Any]) -> list[list[str]]:
        items = _numbered(content["segments"], "index", num_segments)
        named = [item | {"labels": _texts(item["labels"])} if "labels" in item else item for item in items]
        reply = read_form({"segments": named}, OpenLabelReply)
        _check_cover("segment", [part.index for part in reply.segments], num_segments)
        return [_phrases(part) for part in sorted(reply.segments, key=lambda part: part.index)]

    return read_reply(text, finish_reason, LABELLED, read)


def parse_names(text: str, finish_reason: str, num_clusters: int) -> list[Named]:
    """Name, definition and macro-strategy of each cluster, in the order of the clusters.

    Raises:
        ReplyProblem: the reply can't be used.
    """

    def read(content: dict[str, Any]) -> list[Named]:
        reply = read_form({"clusters": _numbered(content["clusters"], "cluster", num_clusters)}, NameReply)
        _check_cover("cluster", [part.cluster for part in reply.clusters], num_clusters)
        return [_named(part) for part in sorted(reply.clusters, key=lambda part: part.cluster)]

    return read_reply(text, finish_reason, NAMED, read)


def _numbered(items: Any, field: str, num_asked: int) -> list[dict[str, Any]]:
    """The items, each once, their number in ``field`` a whole one that is counted from 0."""
    if not isinstance(items, list) or not all(isinstance(item, dict) and field in item for item in items):
        raise ReplyProblem("wrong_form", f"it must be a list of objects, each with its {field}, got {items!r:.60}")
    numbers = [_one_number(item[field], field) for item in items]
    base = count_from_zero(numbers, num_asked)
    counted = [item | {field: number - base} for item, number in zip(items, numbers, strict=True)]
    return list({repr(item): item for item in counted}.values())


def _one_number(value: Any, field: str) -> int:
    numbers = read_indices(value)
    if len(numbers) != 1:
        raise ReplyProblem("wrong_form", f"{field} must be one number, got {value!r:.60}")
    return numbers[0]


def _texts(labels: Any) -> Any:
    """Labels as a list of texts, where they are one text, none, or objects that hold one."""
    if labels is None or labels == "":
        return []
    if isinstance(labels, str):
        return re.split(r"[,;\n]", labels)
    found = [labels] if isinstance(labels, dict) else labels
    if not isinstance(found, list):
        return found
    return [label.get("label", label.get("name", label)) if isinstance(label, dict) else label for label in found]


def _check_cover(what: str, given: Sequence[int], num_asked: int) -> None:
    counts, asked = Counter(given), range(num_asked)
    if foreign := sorted(set(given) - set(asked)):
        raise ReplyProblem("index_out_of_range", f"there is no {what} {foreign}; they are 0 to {num_asked - 1}")
    if repeated := sorted(index for index, count in counts.items() if count > 1):
        raise ReplyProblem("overlapping_steps", f"{what} {repeated} comes more than once")
    if missing := sorted(set(asked) - set(given)):
        raise ReplyProblem("missing_segment", f"{what} {missing} is missing")


def _phrases(part: SegmentLabels) -> list[str]:
    where, phrases = f"segment {part.index}", [normalize(label) for label in part.labels]
    if len(phrases) > MAX_OPEN_LABELS:
        raise ReplyProblem("too_many_labels", f"{where} has {len(phrases)} labels, at most {MAX_OPEN_LABELS}")
    for phrase in phrases:
        if not 1 <= len(phrase.split()) <= MAX_WORDS or len(phrase) > MAX_PHRASE:
            limits = f"1 to {MAX_WORDS} words and at most {MAX_PHRASE} characters"
            raise ReplyProblem("wrong_form", f"{where}: label {phrase!r:.100} must have {limits}")
    if len(set(phrases)) < len(phrases):
        raise ReplyProblem("repeated_label", f"{where} has one label twice: {phrases}")
    return phrases


def _named(part: ClusterName) -> Named:
    where = f"cluster {part.cluster}"
    name = re.sub(r"[\W_]+", "_", unicodedata.normalize("NFKC", part.name).casefold()).strip("_")
    if not NAME.fullmatch(name):
        form = f"lower-case letters, digits and underscores, a letter first, at most {MAX_LABEL_NAME} characters"
        raise ReplyProblem("wrong_form", f"{where}: name {part.name!r:.60} must be {form}")
    if name in RESERVED_NAMES:
        raise ReplyProblem("wrong_form", f"{where}: name {name!r} would be taken for {RESERVED_NAMES[name]}")
    definition, macro = (" ".join(text.split()) for text in (part.definition, part.macro_strategy))
    for field, value, limit in (("definition", definition, MAX_DEFINITION), ("macro_strategy", macro, MAX_MACRO)):
        if not 1 <= len(value) <= limit:
            raise ReplyProblem("wrong_form", f"{where}: {field} {value!r:.60} must have 1 to {limit} characters")
    return Named(name, definition, macro)
