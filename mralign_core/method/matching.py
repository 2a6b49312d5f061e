"""Whether an answer, or a stretch of thinking, names a gold answer (§4, App. A.2).

Texts are compared after SQuAD-style normalisation: case, punctuation, articles and whitespace do not count.
On printable ASCII, :func:`normalise` is SQuAD's own function, but for a text of nothing but articles, which
keeps them. Decisions where the paper is silent:

* Unicode: compatibility forms are unified (NFKC), all punctuation, symbols and format characters count as
  punctuation, and the accents of Latin, Greek and Cyrillic letters are dropped, so that "Beyonce" names
  "Beyoncé". Vowel signs of other scripts carry meaning and stay. No-break and thin spaces that group digits go, as
  commas do.
* Containment is on word boundaries: "Iran" is in "Iran's" and not in "Iranian". Punctuation may join words
  ("U.S." is "US") or part them ("Paris/London"); containment accepts either reading, but never parts a number
  ("5" is not in "3.5"). The paper's plain substring is an option, see :class:`MatchRules`.
* Variants, unless switched off: initials and signs behind letters are read in one spelling, so that "J. K. Rowling" is
  "J.K. Rowling" and C++ is not C (see :mod:`mralign_core.method.spellings`); and where both sides hold numbers or
  dates, these are compared as such. "1,000" is "one thousand", "July 4, 1776" is "1776-07-04" (see
  :mod:`mralign_core.method.quantities`), and 1.5 is not 15, which SQuAD's normalisation takes for the same.
  In a longer text a gold answer of just 1, 1st or 2nd is looked for as it is written, because "one", "first" and
  "second" stand in most texts without meaning a number.
* Scripts written without spaces are compared character by character.
* A gold answer that SQuAD normalises to nothing (``£``, ``≈``, 🍎, ``+``, ``...``, but also ``A+`` and ``A``) is
  compared as it is written, but for case and for quotation marks, brackets and closing punctuation around its words.
  Of a sign that is such a mark itself (``?``, ``()``) only a pair around it and the end of a sentence are taken off.
  In a longer text it stands as a word of its own, in a formula or behind a colon; articles ("A") stand
  in all of them, so only an equal answer is right.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

from mralign_core.method.blanks import BLANKS
from mralign_core.method.quantities import MONTHS, clues, holds_quantity, unify_digits, unify_quantities
from mralign_core.method.spellings import unify_spellings

ARTICLES = frozenset({"a", "an", "the"})

_NUMBER_MARK = re.compile(r"[.,:](?<=[0-9].)(?=[0-9])")
_ACCENTS = re.compile("[\u0300-\u036f]+")
_TYPOGRAPHIC = (("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"'), ("–", "-"), ("—", "-"))
_GROUP_SPACE = re.compile(r"(?<=[0-9])[\u00a0\u2007\u2009\u202f](?=[0-9]{3}(?![0-9]))(?<![0-9]{4}.)")
# Numbers whose words, "one", "first" and "second", have other meanings more often than not.
_COMMON = frozenset({"1", "1th", "2th"})
_DIGIT = re.compile("[0-9]")
_NUMBER = re.compile("m?[0-9]+(p[0-9]+)?(th)?")
# Digits of other scripts, and signs that compatibility forms would melt into the number before them.
_OTHER_DIGIT = re.compile(r"[^\D0-9]")
_RARE = re.compile(r"[−¼-¾⅐-⅟↉⁰¹²³⁴-⁹⁻]|[^\D0-9]")
_BEFORE_FRACTION = re.compile("(?<=[0-9])(?=[¼-¾⅐-⅟↉])")
_BEFORE_POWER = re.compile("(?<=[0-9])(?=[⁰¹²³⁴-⁹⁻])")
# Around a word, these are not part of it.
_QUOTES, _AROUND = "\"'`«»„‚", ".,;:!?()[]{}*_。、「」『』【】"
# What a sign made of such marks may still be wrapped in, and what a sentence ends in behind it.
_PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ("*", "*"), ("_", "_"), ("「", "」"), ("『", "』"), ("【", "】"))
_SENTENCE_ENDS = ".,。、"
# What stands directly around a sign that is an answer in mathematics, or behind a label.
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}(?:[.,](?!\S))?")
_LABELS = re.compile(r"\$(?:[.,](?!\S))?|(?<=\w):")
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
        if char in BLANKS and not char.isspace():
            mapped = None
        elif category[0] in "PS" or category in ("Cf", "Me") or char in _LETTER_APOSTROPHES:
            mapped = self.replacement
        elif any(first <= code <= last for first, last in _UNSPACED_SCRIPTS):
            mapped = f" {char} "
        self[code] = mapped
        return mapped


class _VisibleTable(_PunctuationTable):
    """The same, but that punctuation stays: only what can't be seen goes, and unspaced scripts are parted."""

    def __missing__(self, code: int) -> str | None:
        char = chr(code)
        mapped = super().__missing__(code)
        self[code] = char if char not in BLANKS and unicodedata.category(char)[0] in "PSM" else mapped
        return self[code]


_SEEN = _VisibleTable(None)
_JOINING = _PunctuationTable(None)
_PARTING = _PunctuationTable(" ")


def normalise(text: str) -> str:
    """The text without case, accents, punctuation, articles and surplus whitespace.

    >>> normalise("The  Café-Bar, “Zoë’s”!")
    'cafebar zoes'
    """
    return _words(_fold(text).translate(_JOINING))


class MatchRules(NamedTuple):
    """What counts as naming a gold answer."""

    containment: Literal["words", "substring"] = "words"
    """A gold answer stands in a longer text on word boundaries, or anywhere in it, inside words too. The latter is
    the plain reading of the paper's EM_t. The paper doesn't say how the texts are prepared for it; here they are
    normalised as for "words", so that the boundaries are the only difference and "substring" accepts all that
    "words" does. It has no bearing on :func:`exact_match`, and variants are always whole words."""
    variants: bool = True
    """Numbers, dates and initials count as equal in their common spellings."""


DEFAULT_RULES = MatchRules()


def exact_match(answer: str | None, golds: Sequence[str], rules: MatchRules = DEFAULT_RULES) -> bool:
    """Whether the answer equals one of the gold answers after normalisation.

    Implements EM_a of App. A.2 of arXiv 2510.24794.

    Args:
        answer: the model's answer; None never matches.
        golds: accepted answers.
        rules: whether variants count.

    >>> exact_match("the Beatles.", ["Beatles", "The Fab Four"])
    True
    >>> exact_match("4 July 1776", ["July 4th, 1776"]), exact_match("1776", ["July 4th, 1776"])
    (True, False)
    """
    if answer is None:
        return False
    text = _Text(_fold(answer))
    return any(_equals(text, _compiled(gold), rules) for gold in golds)


def contains_match(answer: str | None, golds: Sequence[str], rules: MatchRules = DEFAULT_RULES) -> bool:
    """Whether a gold answer stands in the answer; true wherever :func:`exact_match` is.

    Args:
        answer: the model's answer; None never matches.
        golds: accepted answers.
        rules: what counts as standing in it.

    >>> contains_match("It is Iran's capital.", ["Iran"]), contains_match("Iranian", ["Iran"])
    (True, False)
    >>> contains_match("Iranian", ["Iran"], MatchRules(containment="substring"))
    True
    """
    if not answer:
        return False
    text = _Text(_fold(answer))
    return any(_contains(text, _compiled(gold), rules) for gold in golds)


def thought_match(thinking: str | None, golds: Sequence[str], rules: MatchRules = DEFAULT_RULES) -> bool:
    """Whether the thinking names a gold answer, in the sense of :func:`contains_match`.

    Implements EM_t of App. A.2 of arXiv 2510.24794.

    >>> thought_match("So the chemical symbol is Au, for gold.", ["au"])
    True
    >>> thought_match("That makes twenty-two.", ["22"]), thought_match("That makes twenty-two.", ["two"])
    (True, False)
    """
    return contains_match(thinking, golds, rules)


class _Text:
    """A folded text's readings, each made when it is first asked for."""

    def __init__(self, folded: str) -> None:
        self.folded = folded

    @cached_property
    def squeezed(self) -> str:
        """Without punctuation."""
        return self.folded.translate(_JOINING)

    @cached_property
    def joined(self) -> str:
        """The words, with punctuation joining them: SQuAD's reading."""
        return _words(self.squeezed)

    @cached_property
    def parted(self) -> str:
        """The words, with punctuation parting them."""
        return _words(_NUMBER_MARK.sub("", self.folded).translate(_PARTING))

    @cached_property
    def as_written(self) -> str:
        """The words with what is written in them, but for marks around them."""
        return _as_written(self.folded)

    @cached_property
    def signs(self) -> frozenset[str]:
        """``as_written``, and the same with formulas and labels taken off; without what has nothing in it."""
        unboxed = _LABELS.sub(" ", _BOXED.sub(r" \1 ", self.folded))
        return frozenset(filter(None, (self.as_written, _as_written(unboxed))))

    @cached_property
    def is_nothing(self) -> bool:
        """Whether SQuAD's normalisation leaves nothing of it."""
        return ARTICLES.issuperset(self.joined.split())

    @cached_property
    def spelled(self) -> _Text:
        """The same with initials and with signs behind letters in one spelling."""
        folded = unify_spellings(self.folded)
        return self if folded == self.folded else _Text(folded)

    @cached_property
    def in_digits(self) -> _Text:
        """The same with the numbers that are written in digits in one spelling."""
        return _Text(unify_digits(self.folded))

    @cached_property
    def unified(self) -> _Text:
        """The same with numbers and dates in one spelling."""
        return _Text(unify_quantities(self.folded))

    @cached_property
    def has_numbers(self) -> bool:
        """Whether it holds a number, in digits or in words."""
        return holds_quantity(self.folded)

    @cached_property
    def clues(self) -> tuple[str, ...]:
        """Strings of which at least one is in the ``squeezed`` of every text that contains this one."""
        words = self.unified.parted.split()
        fixed = [word for word in words if not _DIGIT.search(word) and word not in MONTHS]
        numbers = [word for word in words if _NUMBER.fullmatch(word)]
        if fixed or not numbers:
            return (max(fixed, key=len, default=""),)
        return clues(max(numbers, key=len))


@lru_cache(maxsize=1 << 14)
def _compiled(gold: str) -> _Text:
    return _Text(_fold(gold))


def _equals(text: _Text, gold: _Text, rules: MatchRules) -> bool:
    if rules.variants:
        text, gold = text.spelled, gold.spelled
    if rules.variants and gold.has_numbers and text.has_numbers:
        text, gold = text.unified, gold.unified
    if gold.is_nothing:
        return not text.signs.isdisjoint(gold.signs)
    return text.joined == gold.joined


def _contains(text: _Text, gold: _Text, rules: MatchRules) -> bool:
    if rules.variants:
        text, gold = text.spelled, gold.spelled
    if gold.is_nothing:
        return _names_sign(text, gold, rules) or _equals(text, gold, rules)
    # Spares most texts the splitting into words. Right because no reading breaks a sequence of letters.
    if not any(clue in text.squeezed for clue in gold.clues):
        return False
    if rules.containment == "substring" and _is_substring(text, gold):
        return True
    if not (rules.variants and gold.has_numbers):
        return _stands_in(text, gold)
    if gold.unified.joined in _COMMON:
        return _stands_in(text.in_digits, gold.in_digits) or _equals(text, gold, rules)
    return _stands_in(text.unified, gold.unified) or _equals(text, gold, rules)


def _names_sign(text: _Text, gold: _Text, rules: MatchRules) -> bool:
    """Whether a gold answer of signs stands in the text as a word of its own, or anywhere; articles stand in none."""
    signs = gold.as_written
    if rules.containment == "substring" and not ARTICLES.issuperset(signs.split()) and signs in text.as_written:
        return True
    return bool(signs) and any(f" {signs} " in f" {where} " for where in text.signs)


def _is_substring(text: _Text, gold: _Text) -> bool:
    """Whether one of the gold answer's readings stands anywhere in the text's."""
    return gold.joined in text.joined or gold.parted in text.parted


def _stands_in(text: _Text, gold: _Text) -> bool:
    """Whether one of the gold answer's readings stands in the text's, on word boundaries."""
    return any(
        words and f" {words} " in f" {where} "
        for where, words in ((text.joined, gold.joined), (text.parted, gold.parted))
    )


def _fold(text: str) -> str:
    # Most texts are ASCII but for these, and much faster to read without them.
    for mark, ascii_mark in _TYPOGRAPHIC:
        text = text.replace(mark, ascii_mark)
    if text.isascii():
        return text.lower()
    text = _GROUP_SPACE.sub("", text)
    if _RARE.search(text):
        text = _OTHER_DIGIT.sub(lambda digit: str(unicodedata.digit(digit[0])), text.replace("−", "-"))
        text = _BEFORE_POWER.sub("^", _BEFORE_FRACTION.sub(" ", text))
    bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFKC", bare.casefold())


def _words(text: str) -> str:
    words = text.split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


def _as_written(folded: str) -> str:
    return _words(" ".join(map(_bare_word, folded.translate(_SEEN).split())))


def _bare_word(word: str) -> str:
    return word.strip(_QUOTES + _AROUND) or _bare_sign(word)


def _bare_sign(sign: str) -> str:
    """A word of nothing but marks without a pair around it or the end of a sentence; "..." and "()" stay."""
    while len(set(sign)) > 1:
        is_wrapped = len(sign) > 2 and (sign[0], sign[-1]) in _PAIRS
        bare = sign[1:-1] if is_wrapped else sign[:-1] if sign[-1] in _SENTENCE_ENDS else sign.strip(_QUOTES)
        if bare in ("", sign):
            break
        sign = bare
    return sign
