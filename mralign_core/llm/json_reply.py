"""What a reply that should be JSON says, in whatever a model put around it, or why it can't be used.

The framing is read as a person would: thinking before the answer, prose and fences around it, an object wrapped in
another, a list of items without the object, a line for each. The content is not guessed at:

* A reply is used whole or not at all. What is cut, or breaks off, is never completed.
* What stands outside of thinking is the answer. Drafts inside it are none: who closes the thinking and says no more has
  not answered. Only where the thinking is never closed is its last draft the answer, and only if the text ends with it,
  for whoever thinks on may yet reject it.
* Outside of thinking the last answer counts, and every other that could be used must say the same: two that differ are
  a :class:`ReplyProblem`, as is an answer that is begun after the last whole one.
"""

from __future__ import annotations

import html
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from mralign_core.llm.loose_json import Broken, LooseValues, TooTangledError, find_json, unescape
from mralign_core.llm.tidying import as_utf8

Parsed = TypeVar("Parsed")

MAX_DETAIL = 500
"""Longest sentence about a problem, in characters; it goes into tables and repair prompts."""
MAX_ESCAPED = 400_000
"""Longest text that is read again as one that was written by a program as a string, in characters."""
MAX_ESCAPES = 3
"""So many times a text may have been written as a string."""
MAX_WRAPPERS = 4
"""How deep the answer may be wrapped in other objects and lists."""
MAX_NAME = 200
"""So many characters tell names apart."""
MAX_RANGE = 10_000
"""Longest range of indices such as "0-3", and most indices of one item."""
THINKING = re.compile(
    r"""
    <\s{0,9}(?P<end>/?)\s{0,9}(?:[\w-]+:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad|analysis)\s*>
  | \[(?P<end2>/?)THINK\]
  | ◁(?P<end3>/?)think▷
  | <\|?(?:begin|(?P<end4>end))_of_(?:thought|thinking)\|?>
  | <\|channel\|>\s*(?:analysis|commentary|(?P<end5>final))[^<]{0,40}<\|message\|>
    """,
    re.VERBOSE | re.IGNORECASE,
)
AROUND = re.compile(r"(?:[\s`~'\"*.;)]|<[^<>]{0,20}>)*+")
"""What may stand around an object without saying anything: fences, quotes, the end tokens of a chat template."""
INDEX = re.compile(
    r"(?:(?:segments?|steps?|clusters?|index|no|number|s)\b[.:]?|\#)?\s*(\d{1,9})(?:\s*(?:-|–|to)\s*(\d{1,9}))?"
)


class ReplyProblem(ValueError):
    """Why a reply can't be used: ``kind``, one of ``KINDS``, and a sentence that its author can act on."""

    KINDS = (
        "failed",
        "empty",
        "refused",
        "truncated",
        "too_long",
        "not_json",
        "ambiguous",
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
        super().__init__(f"{kind}: {as_utf8(detail[:MAX_DETAIL])}")
        self.kind = kind

    @property
    def is_final(self) -> bool:
        """Whether the same question will meet it again: a refusal, not a fault of the other side."""
        return self.kind == "refused"


Fields = tuple[tuple[str, ...], ...]


class Shape(NamedTuple):
    """The object that is asked for: a list of items, and values beside it.

    ``items`` names the list. ``fields`` are those of an item, the one that numbers it first and its content second;
    ``beside`` are those of the whole. Each is its name and the other names that models give it, the likelier ones
    first. Names match whatever their case, blanks and hyphens.
    """

    items: str
    fields: Fields
    beside: Fields = ()


class _Answer(NamedTuple):
    """What may be the answer, from its ``start`` to its ``end`` in the text; ``is_bare``: items without the object."""

    start: int
    end: int
    is_bare: bool
    content: dict[str, Any]


def read_reply(text: str, finish_reason: str, shape: Shape, read: Callable[[dict[str, Any]], Parsed]) -> Parsed:
    r"""What a reply says.

    Args:
        text: the reply as it came.
        finish_reason: why the endpoint stopped, such as ``stop`` or ``length``.
        shape: the object that was asked for.
        read: takes such an object, with the field names of ``shape`` and what values came; raises ``ReplyProblem``.

    Raises:
        ReplyProblem: the reply can't be used.

    >>> shape = Shape("cities", (("index",), ("name",)))
    >>> read_reply('Sure!\n```\n[{"index": 0, "Name": "Rome",}]\n```', "stop", shape, dict)
    {'cities': [{'index': 0, 'name': 'Rome'}]}
    """
    if finish_reason == "content_filter":
        raise ReplyProblem("refused", "the endpoint refused to answer")
    if finish_reason == "length":
        raise ReplyProblem("truncated", "it was cut off at the token limit; leave out everything but the JSON object")
    if not text.strip():
        raise ReplyProblem("empty", "it holds no text")
    try:
        return _choose(_answers(text, shape), read)
    except TooTangledError as error:
        raise ReplyProblem("too_long", f"{error}; send the JSON object alone") from None
    except RecursionError:
        raise ReplyProblem("too_long", "it is nested too deep; send the JSON object alone") from None


def plain(name: str) -> str:
    """A name without what does not tell names apart: case, blanks, hyphens, underscores, quotes.

    >>> plain("Self-Verification.") == plain("self_verification")
    True
    """
    return _folded(name[:MAX_NAME])


def read_indices(value: Any) -> list[int]:
    """The whole numbers that a value gives, as a number, a text, a range or a list of these.

    Raises:
        ReplyProblem: it gives something else.

    >>> read_indices(["0", 1, "3-5"]), read_indices("segment 2")
    ([0, 1, 3, 4, 5], [2])
    """
    if isinstance(value, list):
        return _joined(map(read_indices, value))
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and value == int(value):
        return [int(value)]
    if isinstance(value, str) and len(value) < MAX_RANGE:
        return _joined(map(_range, re.split(r"[,;&]|\band\b", value.strip("[]() \n"))))
    raise ReplyProblem("wrong_form", f"{value!r:.60} is no index, nor a list of them")


def count_from_zero(given: Sequence[int], num_asked: int) -> int:
    """What to take off the indices: 1 where all of 1 to ``num_asked`` are given, in this order, else 0.

    Who counts so has counted from 1, for there is no item ``num_asked``. Of one item alone it is not plain.

    >>> count_from_zero([1, 2, 3], 3), count_from_zero([0, 1], 3), count_from_zero([1], 1)
    (1, 0, 0)
    """
    return int(num_asked > 1 and list(given) == list(range(1, num_asked + 1)))


@lru_cache(maxsize=4096)
def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def _joined(parts: Iterable[Sequence[int]]) -> list[int]:
    """The indices of all parts, as long as there are no more than any item has."""
    indices: list[int] = []
    for part in parts:
        indices += part
        if len(indices) > MAX_RANGE:
            raise ReplyProblem("wrong_form", f"more than {MAX_RANGE:,} indices are given for one item")
    return indices


def _range(part: str) -> range:
    match = INDEX.fullmatch(part.strip().casefold())
    if match is None:
        raise ReplyProblem("wrong_form", f"{part!r:.60} is no index")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 0 <= last - first < MAX_RANGE:
        raise ReplyProblem("wrong_form", f"{part!r:.60} is no range of indices")
    return range(first, last + 1)


def _unquoted(text: str) -> str:
    """A text without the marks of a quotation in mail or Markdown."""
    return re.sub(r"^[ \t]*>[ \t]?", "", text, flags=re.MULTILINE)


class _Candidates(NamedTuple):
    """What may be the answer, in order, whether all must agree, and why the last one can't be used, if so."""

    answers: list[_Answer]
    must_agree: bool
    problem: ReplyProblem | None


def _answers(text: str, shape: Shape, most_escapes: int = MAX_ESCAPES) -> _Candidates:
    """The answers in a text, or in what it is when it was written as a string, and that as another."""
    found = find_json(text)
    candidates = _outside_or_last(text, found, shape)
    is_plain = not candidates.problem or (candidates.must_agree and candidates.answers)
    if is_plain or not most_escapes or len(text) > MAX_ESCAPED:
        return candidates
    escapes = [(mark, unescape) for mark in ('\\"', "\\'", "\\u", "\\n")]
    for mark, decode in (*escapes, ("&quot;", html.unescape), ("\n>", _unquoted)):
        if mark in text:
            return _answers(decode(text), shape, most_escapes - 1)
    return candidates


def _outside_or_last(text: str, found: LooseValues, shape: Shape) -> _Candidates:
    thinking = _thinking(text, found)
    answers = _in_order(found, shape)
    begun = [broken for broken in found.broken if _looks_like(broken, shape)]
    outside = [answer for answer in answers if not _is_within(answer, thinking)]
    begun_outside = [broken for broken in begun if not _is_within(broken, thinking)]
    if outside or begun_outside:
        if begun_outside:  # items that follow a beginning which broke off are what is left of an answer
            outside = [answer for answer in outside if not answer.is_bare]
        end = outside[-1].end if outside else -1
        doubt = next((broken.reason for broken in begun_outside if broken.start >= end), None)
        problem = ReplyProblem("not_json", f"an answer is begun, but {doubt}") if doubt else None
        return _Candidates(outside, True, problem)
    if answers:
        is_end = thinking[-1][1] > len(text) and AROUND.fullmatch(text, answers[-1].end)
        only_thinks = ReplyProblem("not_json", "it thinks about the JSON object, and gives none after the thinking")
        return _Candidates(answers[-1:], False, None if is_end else only_thinks)
    if found.values:
        return _Candidates([], False, ReplyProblem("wrong_form", f"it holds no object with the field {shape.items!r}"))
    reason = f" (one is begun, but {found.broken[-1].reason})" if found.broken else ""
    return _Candidates([], False, ReplyProblem("not_json", f"it holds no JSON object{reason}"))


def _choose(candidates: _Candidates, read: Callable[[dict[str, Any]], Parsed]) -> Parsed:
    if candidates.problem:
        raise candidates.problem
    *earlier, last = candidates.answers
    parsed = read(last.content)
    for answer in earlier if candidates.must_agree else ():
        try:
            differs = read(answer.content) != parsed
        except ReplyProblem:
            continue
        if differs:
            raise ReplyProblem("ambiguous", "it gives two answers that differ; give one")
    return parsed


def _thinking(text: str, found: LooseValues) -> list[tuple[int, int]]:
    """Where thinking stands in a text, opened or not; what is not closed ends beyond the text.

    A mark inside a JSON value is none.
    """
    spans: list[tuple[int, int]] = []
    opened: int | None = None
    values = iter(found.values)
    value = next(values, None)
    for mark in THINKING.finditer(text):
        while value is not None and value.end <= mark.start():
            value = next(values, None)
        if value is not None and value.start < mark.start():
            continue
        if not any(mark.groups()):
            opened = mark.start() if opened is None else opened
        else:
            start = opened if opened is not None else spans[-1][1] if spans else 0
            spans.append((start, mark.end()))
            opened = None
    return spans if opened is None else [*spans, (opened, len(text) + 1)]


def _is_within(part: _Answer | Broken, spans: Sequence[tuple[int, int]]) -> bool:
    place = bisect_right(spans, part.start, key=lambda span: span[0]) - 1
    return place >= 0 and part.start < spans[place][1]


def _in_order(found: LooseValues, shape: Shape) -> list[_Answer]:
    """The answers among the values of a text; items that stand alone, a line each, are one answer together."""
    answers: list[_Answer] = []
    items: list[dict[str, Any]] = []
    start = end = 0
    for value in found.values:
        for content in _unwrap(value.value, shape):
            if shape.items in content:
                answers.append(_Answer(value.start, value.end, isinstance(value.value, list), content))
            else:
                start, end = start if items else value.start, value.end
                items.append(content)
    if items:
        answers.append(_Answer(start, end, True, {shape.items: items}))
    return sorted(answers, key=lambda answer: answer.end)


def _unwrap(value: Any, shape: Shape, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The objects of the shape, or single items of one, inside a value."""
    inside: Iterable[Any] = ()
    if isinstance(value, str):
        inside = [each.value for each in find_json(value).values] if "{" in value else ()
    elif isinstance(value, dict):
        beside = _named(value, shape.beside)
        items = [part for key, part in value.items() if plain(key) == plain(shape.items)]
        items = items or [part for part in value.values() if _are_items(part, shape)]
        if len(items) == 1:
            yield {**beside, shape.items: _items(items[0], shape)}
        elif _is_item(value, shape):
            yield _named(value, shape.fields)
        else:
            inside = value.values()
    elif _are_items(value, shape):
        yield {shape.items: _items(value, shape)}
    elif isinstance(value, list):
        inside = value
    for part in inside if depth < MAX_WRAPPERS else ():
        yield from _unwrap(part, shape, depth + 1)


def _items(value: Any, shape: Shape) -> Any:
    """The items of an answer, their fields by name; what is no item stays, for the reader to refuse."""
    if isinstance(value, str):
        value = next((inside.value for inside in find_json(value).values), value)
    if isinstance(value, dict):
        value = [value] if _is_item(value, shape) else [_numbered(*entry, shape) for entry in value.items()]
    if not isinstance(value, list):
        return value
    flat = [part[0] if isinstance(part, list) and len(part) == 1 else part for part in value]
    return [_named(part, shape.fields) if isinstance(part, dict) else part for part in flat]


def _numbered(index: str, value: Any, shape: Shape) -> dict[str, Any]:
    """An item that is given under its number, as an object or as its content alone."""
    (number, *_), (content, *_) = shape.fields[:2]
    is_object = isinstance(value, dict) and content in _named(value, shape.fields)
    return {number: index, **value} if is_object else {number: index, content: value}


def _are_items(value: Any, shape: Shape) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_item(part, shape) for part in value)


def _is_item(value: Any, shape: Shape) -> bool:
    """Whether a value has the number of an item, and something else of one."""
    named = _named(value, shape.fields) if isinstance(value, dict) else {}
    number = named.get(shape.fields[0][0])
    is_number = isinstance(number, int | float | str) or (
        isinstance(number, list) and not any(isinstance(part, dict) for part in number)
    )
    return is_number and len(named) > 1


def _named(value: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """The known fields of an object under their own names."""
    given = {plain(key): part for key, part in reversed(list(value.items()))}
    spellings = {
        name: next((other for other in plain_names if other in given), "") for name, plain_names in _plain(fields)
    }
    return {name: given[spelling] for name, spelling in spellings.items() if spelling}


@lru_cache
def _plain(fields: Fields) -> list[tuple[str, list[str]]]:
    return [(names[0], [plain(name) for name in names]) for names in fields]


def _looks_like(broken: Broken, shape: Shape) -> bool:
    names = {plain(name) for names in ((shape.items,), *shape.fields, *shape.beside) for name in names}
    return any(plain(key) in names for key in broken.keys)
