"""Whether an answer, or a stretch of thinking, names a gold answer (§4, App. A.2).

Texts are compared after SQuAD-style normalisation: case, punctuation, articles and whitespace do not count.
On printable ASCII, :func:`normalise` is SQuAD's own function, but for a text of nothing but articles, which
keeps them. Decisions where the paper is silent:

* Unicode: compatibility forms are unified (NFKC), all punctuation, symbols and format characters count as
  punctuation, and the accents of Latin, Greek and Cyrillic letters are dropped, so that "Beyonce" names
  "Beyoncé". Vowel signs of other scripts carry meaning and stay.
* Containment is on word boundaries: "Iran" is in "Iran's" and not in "Iranian". Punctuation may join words
  ("U.S." is "US") or part them ("Paris/London"); containment accepts either reading, but never parts a number
  ("5" is not in "3.5").
* Scripts written without spaces are compared character by character.
* A gold answer that normalises to nothing never matches.
  One of nothing but articles ("A") is matched by an equal answer, not found in a longer text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

ARTICLES = frozenset({"a", "an", "the"})

_NUMBER_MARK = re.compile(r"[.,:](?<=[0-9].)(?=[0-9])")
_ACCENTS = re.compile("[\u0300-\u036f]+")
# Letters by category, but written as apostrophes: Hawaiʻi, Qurʼan.
_LETTER_APOSTROPHES = frozenset("ʹʻʼʽˈ")
# Thai, Lao, Myanmar, Khmer, Han with kana, and Han beyond the basic plane.
_UNSPACED_SCRIPTS = (
    (0x0E01, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


class _PunctuationTable(dict[int, str | None]):
    """For ``str.translate``, filled as characters are met: punctuation becomes ``replacement`` or goes."""

    def __init__(self, replacement: str | None) -> None:
        super().__init__()
        self.replacement = replacement

    def __missing__(self, code: int) -> str | None:
        char = chr(code)
        mapped: str | None = char
        category = unicodedata.category(char)
        if category[0] in "PS" or category == "Cf" or char in _LETTER_APOSTROPHES:
            mapped = self.replacement
        elif any(first <= code <= last for first, last in _UNSPACED_SCRIPTS):
            mapped = f" {char} "
        self[code] = mapped
        return mapped


_JOINING = _PunctuationTable(None)
_PARTING = _PunctuationTable(" ")


def normalise(text: str) -> str:
    """The text without case, accents, punctuation, articles and surplus whitespace.

    >>> normalise("The  Café-Bar, “Zoë’s”!")
    'cafebar zoes'
    """
    return _words(_fold(text).translate(_JOINING))


def exact_match(answer: str | None, golds: Sequence[str]) -> bool:
    """Whether the answer equals one of the gold answers after normalisation.

    Implements EM_a of App. A.2 of arXiv 2510.24794.

    Args:
        answer: the model's answer; None never matches.
        golds: accepted answers.

    >>> exact_match("the Beatles.", ["Beatles", "The Fab Four"])
    True
    """
    if answer is None:
        return False
    normalised = normalise(answer)
    return bool(normalised) and any(normalised == _gold_forms(gold)[0] for gold in golds)


def contains_match(answer: str | None, golds: Sequence[str]) -> bool:
    """Whether a gold answer stands in the answer, on word boundaries; true wherever :func:`exact_match` is.

    Args:
        answer: the model's answer; None never matches.
        golds: accepted answers.

    >>> contains_match("It is Iran's capital.", ["Iran"]), contains_match("Iranian", ["Iran"])
    (True, False)
    """
    if not answer:
        return False
    texts = [f" {form} " for form in _forms(answer)]
    return any(
        form and f" {form} " in text for gold in golds for form, text in zip(_gold_forms(gold), texts, strict=True)
    )


def thought_match(thinking: str | None, golds: Sequence[str]) -> bool:
    """Whether the thinking names a gold answer, on word boundaries as :func:`contains_match`.

    Implements EM_t of App. A.2 of arXiv 2510.24794.

    >>> thought_match("So the chemical symbol is Au, for gold.", ["au"])
    True
    """
    return contains_match(thinking, golds)


def _forms(text: str) -> tuple[str, str]:
    """The text's words with punctuation joining them (SQuAD's reading), and with punctuation parting them."""
    folded = _fold(text)
    return _words(folded.translate(_JOINING)), _words(_NUMBER_MARK.sub("", folded).translate(_PARTING))


_gold_forms = lru_cache(maxsize=1 << 16)(_forms)


def _fold(text: str) -> str:
    if text.isascii():
        return text.lower()
    bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFKC", bare.casefold())


def _words(text: str) -> str:
    words = text.split()
    return " ".join([word for word in words if word not in ARTICLES] or words)
