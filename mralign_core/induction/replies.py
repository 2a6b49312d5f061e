"""What a reply of the open-vocabulary labeller or of the namer says, or why it can't be used.

As with annotators, a reply is used whole or not at all.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from mralign_core.annotation.replies import ReplyProblem, read_json
from mralign_core.induction.prompts import MAX_DEFINITION, MAX_LABELS, MAX_NAME, MAX_WORDS

MAX_MACRO = 60
"""Longest name of a macro-strategy, in characters; what label set files accept."""
MAX_PHRASE = 80
"""Longest open label, in characters."""
NAME = re.compile(rf"[a-z][a-z0-9_]{{0,{MAX_NAME - 1}}}")

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
    reply = read_json(text, finish_reason, OpenLabelReply)
    _check_cover("segment", [part.index for part in reply.segments], num_segments)
    return [_phrases(part) for part in sorted(reply.segments, key=lambda part: part.index)]


def parse_names(text: str, finish_reason: str, num_clusters: int) -> list[Named]:
    """Name, definition and macro-strategy of each cluster, in the order of the clusters.

    Raises:
        ReplyProblem: the reply can't be used.
    """
    reply = read_json(text, finish_reason, NameReply)
    _check_cover("cluster", [part.cluster for part in reply.clusters], num_clusters)
    return [_named(part) for part in sorted(reply.clusters, key=lambda part: part.cluster)]


def open_label_schema() -> dict[str, Any]:
    """JSON schema of the labeller's reply."""
    return OpenLabelReply.model_json_schema()


def name_schema() -> dict[str, Any]:
    """JSON schema of the namer's reply."""
    return NameReply.model_json_schema()


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
    if len(phrases) > MAX_LABELS:
        raise ReplyProblem("too_many_labels", f"{where} has {len(phrases)} labels, at most {MAX_LABELS}")
    for phrase in phrases:
        if not 1 <= len(phrase.split()) <= MAX_WORDS or len(phrase) > MAX_PHRASE:
            limits = f"1 to {MAX_WORDS} words and at most {MAX_PHRASE} characters"
            raise ReplyProblem("wrong_form", f"{where}: label {phrase!r:.100} must have {limits}")
    if len(set(phrases)) < len(phrases):
        raise ReplyProblem("repeated_label", f"{where} has one label twice: {phrases}")
    return phrases


def _named(part: ClusterName) -> Named:
    where = f"cluster {part.cluster}"
    if not NAME.fullmatch(part.name):
        form = f"lower-case letters, digits and underscores, a letter first, at most {MAX_NAME} characters"
        raise ReplyProblem("wrong_form", f"{where}: name {part.name!r:.60} must be {form}")
    definition, macro = (" ".join(text.split()) for text in (part.definition, part.macro_strategy))
    for field, value, limit in (("definition", definition, MAX_DEFINITION), ("macro_strategy", macro, MAX_MACRO)):
        if not 1 <= len(value) <= limit:
            raise ReplyProblem("wrong_form", f"{where}: {field} {value!r:.60} must have 1 to {limit} characters")
    return Named(part.name, definition, macro)
