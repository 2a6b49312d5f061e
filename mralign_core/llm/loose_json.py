"""The JSON values in a text that a language model wrote, in any form that a person reads without guessing.

Beside JSON it reads trailing commas, comments, single and typographic quotes, bare words, Python's literals, odd blanks
and full-width punctuation. It never completes: an object that is not closed, or breaks off, is no value but a
:class:`Broken`, so that a reply which was cut can't pass for a shorter one.

Libraries were weighed: those that repair JSON close what is open and drop what they don't understand, which invents
labels; those that read JSON5 know no prose around it, recurse into hostile nesting and take minutes for a megabyte.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

MAX_CHARS = 4_000_000
"""Longest text that is looked at, in characters."""
MAX_TOKENS = 40_000
"""Most pieces of JSON that are looked at in one text; a labelled trace of 1,000 segments has 20,000."""
MAX_PLAIN = 300_000
"""Longest text that is tried as plain JSON, which is not counted in pieces, in characters."""
MAX_DEPTH = 40
"""Of a value that is nested deeper, the depths are left out."""
MAX_DIGITS = 40
"""Longest number, in characters; a longer one is a word."""

QUOTES = {'"': '"', "'": "'", **dict.fromkeys("“”„‟«»", "“”«»"), **dict.fromkeys("‘’‚", "‘’")}
"""Opening quote → what closes it. Any typographic quote closes one, as people and models mix them."""
CONSTANTS = {"true": True, "false": False, "null": None, "none": None, "undefined": None}
_STRING = "|".join(
    r"[{0}][^\\{1}]*+(?:\\.[^\\{1}]*+)*+[{1}]".format("".join(o for o, c in QUOTES.items() if c == close), close)
    for close in dict.fromkeys(QUOTES.values())
)
TOKEN = re.compile(
    rf"""
    (?P<blank>[\s\ufeff\u200b-\u200d\u2060]++)
  | (?P<comment>(?://|\#)[^\n{{}}]*+ | /\*[^*{{}}]*+(?:\*(?!/)[^*{{}}]*+)*+(?:\*/)?+)
  | (?P<string>{_STRING})
  | (?P<mark>[][{{}},:，：])
  | (?P<number>[-+]?(?:\d[\d_]*+\.?\d*+|\.\d++)(?:[eE][-+]?\d++)?+(?![\w.]))
  | (?P<word>[^\W\d][\w.-]*+)
    """,
    re.VERBOSE | re.DOTALL,
)
OPENER = re.compile(r"[{[]")
ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
WIDE = {"，": ",", "：": ":"}


class Value(NamedTuple):
    """An object or a list that stands in a text, from ``start`` to ``end``, in characters."""

    start: int
    end: int
    value: Any


class Broken(NamedTuple):
    """An object or a list that begins at ``start`` and is not one: why, where, and the keys it had so far."""

    start: int
    end: int
    keys: tuple[str, ...]
    reason: str


class LooseValues(NamedTuple):
    """What stands in a text, in order."""

    values: list[Value]
    broken: list[Broken]


class TooTangledError(ValueError):
    """A text holds more, or longer, beginnings of JSON than anybody would read."""


def find_json(text: str) -> LooseValues:
    """All objects and lists in a text that are in no other one, and those that are begun and don't end well.

    Its time grows with the length of the text and with ``MAX_TOKENS``, whatever the text is.

    Args:
        text: prose, fences and JSON in any order.

    Raises:
        TooTangledError: it is longer than ``MAX_CHARS``, or holds more than ``MAX_TOKENS`` pieces of JSON.

    >>> [found.value for found in find_json("Sure: {'a': [1, True,]} // done").values]
    [{'a': [1, True]}]
    >>> find_json('{"a": [1, 2').broken[0].reason
    'it is not closed'
    """
    if len(text) <= MAX_PLAIN and (whole := _plain_json(text)) is not None:
        return LooseValues([Value(0, len(text), whole)], [])
    if len(text) > MAX_CHARS:
        raise TooTangledError(f"it has {len(text):,} characters, at most {MAX_CHARS:,} are read")
    found, tokens, place = LooseValues([], []), _Tokens(text), 0
    while opener := OPENER.search(text, place):
        ended = _Reader(tokens, opener.start()).read()
        if isinstance(ended, Value):
            found.values.append(ended)
            place = ended.end
        else:
            found.broken.append(ended)
            place = max(ended.end, opener.end())
    return found


def _plain_json(text: str) -> dict[str, Any] | list[Any] | None:
    """The text's value where it is JSON and nothing else, which is read many times faster."""
    try:
        value = None if "\\u" in text else json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is given twice")
    return values


def unescape(text: str) -> str:
    r"""A text without its backslashes: what stood inside quotes, or was written by a program as a string.

    >>> unescape(r'self\_verification \"\u00e9\"')
    'self_verification "é"'
    """

    def plain(match: re.Match[str]) -> str:
        code, char = match.groups()
        return chr(int(code, 16)) if code else ESCAPES.get(char, char)

    if "\\" not in text:
        return text
    # Halves of one character, each escaped by itself, are joined; a lone half has no place in a table or a request.
    return ESCAPE.sub(plain, text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _Token(NamedTuple):
    kind: str
    start: int
    end: int


class _Tokens:
    """Cuts a text into pieces, and counts them: pieces looked at twice count twice."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._left = MAX_TOKENS
        self._chars_left = 2 * len(text) + MAX_TOKENS

    def after(self, place: int) -> _Token:
        """The next piece that is no blank and no comment; kind "" where there is none or none is understood."""
        while match := TOKEN.match(self.text, place):
            self._left -= 1 + (self.text.count("\\", match.start(), match.end()) if match.lastgroup == "string" else 0)
            self._chars_left -= match.end() - place
            if self._left < 0 or self._chars_left < 0:
                raise TooTangledError("it holds more brackets and quotes than are read")
            if match.lastgroup == "comment" and not self._is_comment(match):
                return _Token("", match.start(), match.end())
            if match.lastgroup not in ("blank", "comment"):
                return _Token(str(match.lastgroup), match.start(), match.end())
            place = match.end()
        if self.text[place : place + 1] in QUOTES:  # no end of this quote was found up to the end of the text
            self._chars_left -= len(self.text) - place
        return _Token("", place, place)

    def _is_comment(self, match: re.Match[str]) -> bool:
        """Whether it ends as one, and not at a brace: what holds an object may be meant, and is not passed over."""
        return (
            match[0].endswith("*/") if match[0][:2] == "/*" else self.text[match.end() : match.end() + 1] in ("", "\n")
        )


class _Container(NamedTuple):
    """An open object or list; ``keys`` are those of an object."""

    value: dict[str, Any] | list[Any]
    keys: list[str]


class _Reader:
    """Reads one object or list, by a stack of its own: nesting costs no recursion."""

    def __init__(self, tokens: _Tokens, start: int) -> None:
        self._tokens, self._start, self._place = tokens, start, start
        self._stack: list[_Container] = []
        self._root_keys: list[str] = []
        self._last_string, self._pieces_since = start, 2

    def read(self) -> Value | Broken:
        """The value that begins here, or why there is none."""
        try:
            while True:
                ended = self._step()
                if ended is not None:
                    return Value(self._start, self._place, ended)
        except _BrokenOff as error:
            # What looked like a string may have begun in the middle of things: go on inside it.
            resume = self._last_string + 1 if self._pieces_since <= 1 else error.place
            return Broken(self._start, resume, tuple(self._root_keys), str(error))

    def _step(self) -> Any:
        """Read one value or one end; the whole, when it ends."""
        token = self._next()
        mark = self._text(token) if token.kind == "mark" else ""
        if self._stack and mark == ("}" if isinstance(self._stack[-1].value, dict) else "]"):
            return self._end()
        if self._stack and isinstance(self._stack[-1].value, dict):
            self._read_key(token)
            token = self._next()
            mark = self._text(token) if token.kind == "mark" else ""
        if mark in ("{", "["):
            self._begin({} if mark == "{" else [])
            return None
        if mark:
            raise _BrokenOff(token.start, f"it has {mark!r} where a value should be")
        return self._put(self._scalar(token))

    def _begin(self, value: dict[str, Any] | list[Any]) -> None:
        self._stack.append(_Container(value, [] if self._stack else self._root_keys))

    def _end(self) -> Any:
        value = self._stack.pop().value
        return self._put(value) if self._stack else value

    def _put(self, value: Any) -> None:
        """Add a value to the open object or list, and read the comma behind it."""
        holder = self._stack[-1]
        if len(self._stack) > MAX_DEPTH:
            pass
        elif isinstance(holder.value, list):
            holder.value.append(value)
        else:
            self._put_under(holder.value, holder.keys[-1], value)
        token = self._next()
        mark = self._text(token) if token.kind == "mark" else ""
        if mark in ("}", "]"):
            self._place = token.start
        elif mark != ",":
            raise _BrokenOff(token.start, "it has no comma between two values")

    def _put_under(self, holder: dict[str, Any], key: str, value: Any) -> None:
        if key in holder and holder[key] != value:
            raise _BrokenOff(self._place, f"it says two things of {key!r:.40}")
        holder[key] = value

    def _read_key(self, token: _Token) -> None:
        if token.kind not in ("string", "word", "number"):
            raise _BrokenOff(token.start, "it has no key where one should be")
        key = self._text(token) if token.kind != "string" else self._string(token)
        colon = self._next()
        if colon.kind != "mark" or self._text(colon) != ":":
            raise _BrokenOff(colon.start, f"it has no colon after {key!r:.40}")
        self._stack[-1].keys.append(key)

    def _scalar(self, token: _Token) -> Any:
        if token.kind == "string":
            return self._string(token)
        text = self._text(token)
        if token.kind == "number" and len(text) <= MAX_DIGITS:
            plain = text.replace("_", "")
            return int(plain) if re.fullmatch(r"[-+]?\d+", plain) else float(plain)
        return CONSTANTS.get(text.casefold(), text)

    def _string(self, token: _Token) -> str:
        return unescape(self._tokens.text[token.start + 1 : token.end - 1])

    def _text(self, token: _Token) -> str:
        text = self._tokens.text[token.start : token.end]
        return WIDE.get(text, text)

    def _next(self) -> _Token:
        token = self._tokens.after(self._place)
        if not token.kind:
            is_end = token.start >= len(self._tokens.text)
            raise _BrokenOff(token.start, "it is not closed" if is_end else "it holds what is not JSON")
        self._last_string = token.start if token.kind == "string" else self._last_string
        self._pieces_since = 0 if token.kind == "string" else self._pieces_since + 1
        self._place = token.end
        return token


class _BrokenOff(Exception):
    def __init__(self, place: int, reason: str) -> None:
        super().__init__(reason)
        self.place = place
