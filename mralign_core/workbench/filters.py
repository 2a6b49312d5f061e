"""What an address asks for: which traces, draws or answers, and in which order."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mralign_core.errors import ConfigError
from mralign_core.method.taxonomy import MAX_LABELS, START_NAME, STOP_NAME, Taxonomy

Hit = Literal["", "both", "thinking", "answer", "neither", "gap", "named", "right", "wrong"]
"""Where a gold answer is: in thinking and answer, in the thinking only, in the answer only, in neither; in exactly one
of them (the hit gap); in the thinking, whatever the answer; in the answer, and not in it, whatever the thinking."""
Flip = Literal["", "any", "wrong to right", "right to wrong", "both right", "both wrong"]
Chosen = TypeVar("Chosen", bound="Filter")
MOST = 2**31
"""Of anything that is counted; DuckDB takes no number of 2¹²⁷ or more."""
GAP, ARROW, ANY = "…", "→", "*"
_STEP = r"[^;]*;"


class Filter(BaseModel):
    """What all lists can be filtered by. Empty: no matter."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    text: str = Field("", max_length=500)
    """Stands in the question, the thinking or the answer; letters' case aside."""
    question: str = ""
    """A question's id."""
    source: str = ""
    """The set of the question."""
    stratum: str = ""
    """Of the question."""
    page: int = Field(1, ge=1, le=1_000_000)
    """Which page, from 1."""
    reverse: Literal["", "yes"] = ""
    """The order of ``sort`` the other way round; what can't be ordered stays last."""


class ThinkingFilter(Filter):
    """Where thinking and answer part, by the report's analyses; of what has no labels, ``behind`` and ``loops`` say
    nothing. Of answers only those whose set has EM_t.
    """

    ending: Literal["", "named_right", "named_wrong", "unnamed_right", "unnamed_wrong"] = ""
    """Whether the thinking names a gold answer, and whether the answer is right."""
    first_from: float | None = Field(None, ge=0, le=100)
    """The first mention of a gold answer begins there or later, in % of the thinking's characters."""
    first_to: float | None = Field(None, ge=0, le=100)
    """It begins before; 100 is the end, and with it."""
    last_from: float | None = Field(None, ge=0, le=100)
    """The last mention begins there or later."""
    last_to: float | None = Field(None, ge=0, le=100)
    """It begins before."""
    after_from: int | None = Field(None, ge=0, le=MOST)
    """At least so many segments stand behind that of the last mention."""
    after_to: int | None = Field(None, ge=0, le=MOST)
    """At most so many."""
    behind: str = Field("", max_length=500)
    """Labels in a row behind the last mention, as ``pattern`` of traces has them; ``<start>`` is the mention,
    ``<stop>`` the answer, so that ``<start> → <stop>`` is nothing. But a step without a label is not passed over, since
    a report's paths have it: ``*`` and ``…`` stand for it. With ``=`` in front, as tables of a report write them:
    the first steps, with these labels and no others; see :func:`exact_steps`."""
    loops: Literal["", "yes", "no"] = ""
    """Whether two or more different moves are made twice in a row in the same order."""
    repeats: Literal["", "yes", "no"] = ""
    """Whether a segment has the words of one before it."""
    segments_from: int | None = Field(None, ge=0, le=MOST)
    """The thinking has at least so many segments."""
    segments_to: int | None = Field(None, ge=0, le=MOST)
    """At most so many."""
    tokens_from: int | None = Field(None, ge=0, le=MOST)
    """A trace's thinking, or an answer with its thinking, has at least so many tokens."""
    tokens_to: int | None = Field(None, ge=0, le=MOST)
    """At most so many."""


class TraceFilter(ThinkingFilter):
    """Which traces. ``label``, ``rule``, ``disputed``, the weights and ``moved`` are of one segment, which a trace must
    have.
    """

    of: Literal["candidates", "thinking-draws"] = "candidates"
    """The traces to train on, or the think-on draws that matrices are estimated from."""
    polarity: Literal["", "positive", "negative"] = ""
    """Whether thinking made the answers right."""
    pattern: str = Field("", max_length=500)
    """Labels in a row, as ``retrieval → backtracking → … → synthesis``; ``…`` is any number of steps, ``*`` one of any
    label, ``framing + chaining`` one that has both, ``<start>`` and ``<stop>`` are the ends."""
    label: str = ""
    """One label of the segment."""
    rule: Literal["", "agree", "merge", "adjudicate", "unlabelled", "distilled"] = ""
    """What decided its labels."""
    disputed: str = ""
    """``any``: the annotators gave it different labels; a label: only one of them gave it that."""
    weight_min: float | None = None
    """Its weight is at least this."""
    weight_max: float | None = None
    """Its weight is at most this."""
    trained: str = ""
    """Under which variant's adapter log-probabilities are; the last one that has them, when empty."""
    moved_min: float | None = None
    """Training changed its log-probability by at least so many nats a token."""
    moved_max: float | None = None
    """By at most so many; below 0 it became less likely."""
    sort: Literal[
        "",
        "weight",
        "weight_low",
        "disagreement",
        "length",
        "raised",
        "lowered",
        "kl",
        "first",
        "last",
        "after",
        "tokens",
    ] = ""
    """By the largest weight, the smallest (of equal ones by their ratios), the share of segments with different labels,
    the number of segments; the largest implicit reward, the smallest, the largest KL a token; the earliest first
    mention of a gold answer, the earliest last one, the most segments behind it; the most tokens; as they stand in the
    file."""


class DrawFilter(Filter):
    """Which draws of the questions to align on."""

    mode: Literal["", "on", "off"] = ""
    """Whether it thinks."""
    hit: Hit = ""
    """Where a gold answer is."""
    outcome: str = ""
    """What became of the draw."""
    sort: Literal["", "length"] = ""
    """By the length of the text; as they stand in the file."""


class AnswerFilter(ThinkingFilter):
    """Which answers of the evaluation."""

    variant: str = ""
    """Whose; the last of the variants, when empty."""
    against: str = ""
    """A variant to compare with, answer by answer."""
    flip: Flip = ""
    """Right or wrong in ``against`` and then in ``variant``."""
    pattern: str = Field("", max_length=500)
    """Labels in a row of its thinking, as ``pattern`` of traces has them; of thinkings that are labelled alone."""
    verdict: Literal["", "right", "wrong"] = ""
    """What most judges say of it: truthful and informative, or of a graded one correct."""
    judged_flip: Flip = ""
    """Right or wrong by the judges in ``against`` and then in ``variant``."""
    hit: Hit = ""
    """Where a gold answer is, in the answer of ``variant``."""
    hit_before: Hit = ""
    """The same, in the answer of ``against``."""
    outcome: str = ""
    """What became of the draw."""
    sort: Literal["", "length", "first", "last", "after"] = ""
    """By tokens that were drawn; by mentions, as traces; as they stand in the file."""


def read_filter(kind: type[Chosen], query: Mapping[str, str]) -> Chosen:
    """What the query of an address asks for.

    Args:
        kind: of which list.
        query: name → value; empty values count as not given.

    Raises:
        ConfigError: a name or a value is none that the list has.
    """
    try:
        return kind.model_validate({name: value for name, value in query.items() if value != ""})
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        if problem["type"] != "extra_forbidden":
            raise ConfigError(f"{field}={problem['input']!r}: {problem['msg']}") from None
        near = difflib.get_close_matches(field, kind.model_fields, n=3)
        known = f"is it {' or '.join(near)}?" if near else "remove it from the address, or use the form"
        raise ConfigError(f"{field}={problem['input']}: these lists have no filter {field!r}; {known}") from None


def pattern_regex(pattern: str, taxonomy: Taxonomy) -> str:
    """A pattern of labels as a regular expression over a trace's steps, ``<start>;framing;retrieval+analogy;<stop>;``.

    Args:
        pattern: see :class:`TraceFilter`; ``->`` and ``...`` do as well.
        taxonomy: has its labels.

    Raises:
        ConfigError: a label is not in the taxonomy, or a step is to have more than there can be.

    >>> from mralign_core.method.taxonomy import PAPER_TAXONOMY
    >>> steps = "<start>;framing;chaining;analogy;<stop>;"
    >>> bool(re.search(pattern_regex("framing → … → analogy", PAPER_TAXONOMY), steps))
    True
    >>> regex = pattern_regex("framing + chaining → analogy", PAPER_TAXONOMY)
    >>> bool(re.search(regex, "chaining+framing;analogy;")), bool(re.search(regex, "framing;analogy;"))
    (True, False)
    """
    written = re.sub(r"\s*\+\s*", "+", re.sub(r"->|=>|,", ARROW, pattern.replace("...", GAP)))
    parts = []
    for step in filter(None, (part.strip() for part in re.split(rf"\s*{ARROW}\s*|\s+", written))):
        if step == GAP:
            parts.append(f"(?:{_STEP})*")
        elif step == ANY:
            parts.append(_STEP)
        else:
            parts.append(_step_regex(step.split("+"), taxonomy))
    return f"(?:^|;){''.join(parts)}" if parts else ""


def _step_regex(labels: Sequence[str], taxonomy: Taxonomy) -> str:
    """A step that has all of some labels, in whatever order, and maybe others. DuckDB has no lookahead."""
    states = set(taxonomy.state_names)
    if unknown := [label for label in labels if label not in states]:
        names = ", ".join([*taxonomy.labels, START_NAME, STOP_NAME, ANY, GAP])
        raise ConfigError(f"pattern: {unknown[0]!r} is no label; there are {names}")
    if len(labels) > MAX_LABELS:
        raise ConfigError(f"pattern: {'+'.join(labels)} has more than the {MAX_LABELS} labels that a step can")
    orders = (r"\+(?:[^;]*\+)?".join(map(re.escape, order)) for order in itertools.permutations(labels))
    return rf"(?:[^;]*\+)?(?:{'|'.join(orders)})(?:\+[^;]*)?;"


EXACTLY = "="
"""Begins a pattern of steps that have these labels and no others."""


def exact_steps(pattern: str) -> tuple[str, str]:
    """What steps behind a mention begin with, as ``<start>;analogy;<stop>;``, and what they must not begin with.

    Args:
        pattern: steps as a report's table has them, each with all its labels, behind ``=``. ``<stop>`` at the end says
            that no other follows, ``…`` that one does.

    >>> exact_steps("= analogy + comparison → <stop>")
    ('<start>;analogy+comparison;<stop>;', '')
    >>> exact_steps("= analogy → …")
    ('<start>;analogy;', '<start>;analogy;<stop>;')
    """
    steps = [re.sub(r"\s*\+\s*", "+", step.strip()) for step in pattern.removeprefix(EXACTLY).split(ARROW)]
    goes_on = steps[-1] == GAP
    begin = "".join(f"{step};" for step in [START_NAME, *(step for step in steps if step not in ("", GAP, START_NAME))])
    return begin, f"{begin}{STOP_NAME};" if goes_on else ""


def text_regex(text: str) -> str:
    r"""A text as a regular expression that finds it, letters' case aside; in DuckDB half as long as ``ILIKE`` takes.

    >>> text_regex("50 %?")
    '(?i)50\\ %\\?'
    """
    return f"(?i){re.escape(text)}"
