"""Lists that a table holds as text, because its format has no lists: what programs write, and what only looks like it.

Gold answers in such a cell would otherwise be one answer that no model gives. What is surely a list, because its items
are quoted, is read; what may be one, or a single answer in brackets, is refused with both ways to write it.

Read: JSON's ``["a", "b"]``, Python's ``['a', 'b']``, tuples, sets, NumPy's ``['a' 'b']`` and ``[np.str_('a')]``,
``array(['a'], dtype=object)``, R's ``c("a", "b")``, PostgreSQL's ``{"a","b"}``. Left as text: ``[Fe/H]``,
``(a) Paris``, ``[1969]``, whatever has text outside its brackets.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_ITEM = re.compile(
    rf"(?:np|numpy)\.\w+\(\s*(?P<inner>{_QUOTED}|{_NUMBER})\s*\)|(?P<value>{_QUOTED}|{_NUMBER})", re.DOTALL
)
_PARTING = re.compile(r"\s*,\s*|\s+")
_WRAPPED = re.compile(
    r"(?:np\.|numpy\.)?(?:array|list|tuple|set|frozenset|deque|dict_keys|dict_values|c)\(\s*"
    r"(?P<inner>[\[({'\"].*?)\s*(?:,\s*dtype\s*=\s*[^()]{1,20})?\)",
    re.DOTALL,
)
_CLOSING = {"[": "]", "{": "}", "(": ")"}
_NULLS = frozenset({"none", "nan", "null", "<na>", "nat"})


class UnclearListError(ValueError):
    """A text that may be a list, or an answer in brackets; the message says so, without its place."""


def written_list(text: str, *, is_own: bool = True) -> list[str] | None:
    """The items of a list that was written as text; None where the text is no list.

    Args:
        text: a cell, without blanks around it.
        is_own: the text is a cell of its own. In a list, text in brackets is an answer, unless its items are quoted.

    Raises:
        UnclearListError: it may be one or not, or is a list of something other than answers.

    >>> written_list("['Jane Austen', 'Austen']"), written_list("[Fe/H]")
    (['Jane Austen', 'Austen'], None)
    """
    inner = _inside(text)
    if inner is None:
        return None
    items = _items(inner[1])
    if items is not None:
        is_tuple = inner[0] != "(" or "," in inner[1]
        return items if is_tuple else None
    if _begins_or_ends_quoted(*inner):
        raise UnclearListError("looks like a list, but of something other than answers in quotes")
    if is_own and _may_be_a_list(*inner):
        raise UnclearListError("may be a list, or one answer in brackets")
    return None


def _inside(text: str) -> tuple[str, str] | None:
    """The opening bracket, and what stands between it and the one that closes the text; None for other texts."""
    is_wrapped = False
    while match := _WRAPPED.fullmatch(text):
        text, is_wrapped = match["inner"], True
    if text[:1] in _CLOSING and text.endswith(_CLOSING[text[0]]) and len(text) > 1:
        inner = text[1:-1].strip()
        wrapped = _WRAPPED.fullmatch(inner)  # a list of one array
        return _inside(inner) if wrapped and not is_wrapped else ("[" if is_wrapped else text[0], inner)
    return ("[", text) if is_wrapped else None


def _items(inner: str) -> list[str] | None:
    """The items, if at least one is quoted, or if there is none at all; None where it is no list of such items."""
    if (values := _json_items(inner)) is not None:
        return values
    items: list[Any] = []
    place, is_quoted = 0, not inner
    while place < len(inner):
        item = _ITEM.match(inner, place)
        if not item:
            return None
        value = item["inner"] or item["value"]
        is_quoted |= value[0] in "'\""
        items.append(_unquoted(value) if value[0] in "'\"" else value)
        parting = _PARTING.match(inner, item.end())
        place = parting.end() if parting else item.end()
        if not parting and place < len(inner):
            return None
    return items if is_quoted else None


def _json_items(inner: str) -> list[str] | None:
    if '"' not in inner:
        return None
    try:
        values = json.loads(f"[{inner}]")
    except (ValueError, RecursionError):
        return None
    is_answers = all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values)
    return [str(value) for value in values] if is_answers else None


def _unquoted(text: str) -> str:
    try:
        return str(ast.literal_eval(text.replace("\n", "\\n")))
    except (SyntaxError, ValueError):
        return text[1:-1]


def _begins_or_ends_quoted(opening: str, inner: str) -> bool:
    ends = inner.lstrip("[({")[:1] + inner.rstrip("])}")[-1:]
    return opening != "(" and ("'" in ends or '"' in ends)


def _may_be_a_list(opening: str, inner: str) -> bool:
    if opening == "(" or not _is_balanced(inner):
        return False
    words = inner.split()
    are_numbers = len(words) > 1 and all(re.fullmatch(_NUMBER, word) for word in words)
    return "," in inner or are_numbers or inner.lower() in _NULLS


def _is_balanced(inner: str) -> bool:
    """Whether no bracket inside closes one that is outside, as in ``[a] and [b]``."""
    depth = 0
    for char in inner:
        depth += (char in "[{(") - (char in "]})")
        if depth < 0:
            return False
    return True
