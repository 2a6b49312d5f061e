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
_WRAPPER = re.compile(
    r"(?:np\.|numpy\.)?(?:array|list|tuple|set|frozenset|deque|dict_keys|dict_values|c)\(\s*+(?=[\[({'\"])"
)
_DTYPE = re.compile(r"\s{0,9}dtype\s{0,9}=\s{0,9}[^()]{1,20}")
MOST_WRAPPERS = 4
"""Of these in one another; programs write one or two."""
# What begins a list that is written in a way that is not read: in another's call or quotes, or in HTML.
_OTHER_LIST = re.compile(
    r"(?P<before>[A-Za-z_][\w.]{0,60}\(\s*+|[\"'])?\[\s*+(?P<quote>[\"']|&(?:quot|apos|#0*3[49]|#x2[27]);)",
    re.IGNORECASE,
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
    if (decoded := _encoded_twice(text)) is not None:
        return written_list(decoded, is_own=is_own)
    inner = _inside(text)
    if is_own and _is_list_unread(text):
        raise UnclearListError("looks like a list, but cut off or written in a way that is not read")
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
    for _ in range(MOST_WRAPPERS):
        if (unwrapped := _unwrapped(text)) is None:
            break
        text, is_wrapped = unwrapped, True
    if text[:1] in _CLOSING and text.endswith(_CLOSING[text[0]]) and len(text) > 1:
        inner = text[1:-1].strip()
        is_array = _unwrapped(inner) is not None  # a list of one array
        return _inside(inner) if is_array and not is_wrapped else ("[" if is_wrapped else text[0], inner)
    return ("[", text) if is_wrapped else None


def _unwrapped(text: str) -> str | None:
    """What a call such as ``array(…, dtype=object)`` holds; None where the text is none. In linear time."""
    wrapper = _WRAPPER.match(text) if text.endswith(")") else None
    if not wrapper:
        return None
    inner = text[wrapper.end() : -1]
    held, comma, last = inner.rpartition(",")
    return (held if comma and _DTYPE.fullmatch(last.rstrip()) else inner).rstrip()


def _encoded_twice(text: str) -> str | None:
    """The text that a text in JSON's quotes stands for, where that may be a list; None for others."""
    if len(text) < 2 or not text[0] == text[-1] == '"':
        return None
    try:
        decoded = json.loads(text)
    except ValueError:
        return None
    decoded = decoded.strip()
    return decoded if decoded[:1] in ("[", '"') else None


def _is_list_unread(text: str) -> bool:
    """Whether it begins as a list of quoted items does, but in a call, in quotes, in HTML, cut off, or with a comma."""
    if not (begins := _OTHER_LIST.match(text)):
        return False
    is_foreign = (begins["before"] and not _WRAPPER.match(text)) or begins["quote"].startswith("&")
    return bool(is_foreign) or "]" not in text or text.rstrip(",; \n").endswith("]") != text.endswith("]")


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
