"""The words that name a gold answer, where each word of a text can be read once and for all.

Whether a stretch of whole words names a gold answer without numbers is for its words alone to say: punctuation, accents
and articles are read word by word (:mod:`mralign_core.method.matching`). So a segment's words are read once, where
asking of one stretch after another reads most of them a dozen times. Numbers, dates, initials with blanks between and
signs behind letters are read across words: there this says that it can't tell, and the stretches are asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from mralign_core.method.matching import (
    _GROUP_SPACE,
    _JOINING,
    _NUMBER_MARK,
    _PARTING,
    ARTICLES,
    MatchRules,
    _compiled,
    _fold,
)
from mralign_core.method.spellings import unify_spellings
from mralign_core.method.traces import Span

UNBROKEN = re.compile(r"\S+")
_PARTED_INITIAL = re.compile(r"\.[ \u00a0]+[a-z]\.")

Tokens = tuple[str, ...]


class WordSearch(NamedTuple):
    """Looks for words that name any of some gold answers.

    Args:
        joined: the gold answers as tokens, with punctuation joining words.
        parted: the same with punctuation parting them.
        has_variants: whether spellings are unified (:class:`MatchRules`).
    """

    joined: tuple[Tokens, ...]
    parted: tuple[Tokens, ...]
    has_variants: bool

    def can_read(self, text: str) -> bool:
        """Whether nothing in a text is read across its words."""
        if not text.isascii() and _GROUP_SPACE.search(text):
            return False
        folded = _fold(text)
        if not self.has_variants:
            return True
        has_none = folded.isascii() and "+" not in folded and "#" not in folded and not _PARTED_INITIAL.search(folded)
        return has_none or unify_spellings(folded) == folded  # which takes longer

    def may_name(self, text: str) -> bool:
        """Whether a text that can be read holds the letters of a gold answer; else no stretch of it names one."""
        letters = _fold(text).translate(_JOINING)
        return any(all(token in letters for token in tokens) for tokens in (*self.joined, *self.parted))

    def stretches(self, text: str, piece: Span) -> list[Span]:
        """The shortest stretches of words in a piece of a text that each name a gold answer.

        Args:
            text: can be read.
            piece: characters of it.
        """
        if not self.may_name(text[slice(*piece)]):
            return []
        folded = _fold("\n".join(text[slice(*piece)].split()))
        readings = (
            (folded.translate(_JOINING), self.joined),
            (_NUMBER_MARK.sub("", folded).translate(_PARTING), self.parted),
        )
        named = [(reading, gold) for reading, golds in readings for gold in golds if gold[0] in reading]
        found = {place for reading, gold in named for place in _places(reading.split("\n"), gold)}
        words = [word.span() for word in UNBROKEN.finditer(text, *piece)] if found else []
        return [Span(words[first][0], words[last][1]) for first, last in sorted(found)]


@lru_cache(maxsize=1 << 12)
def word_search(golds: Tokens, rules: MatchRules) -> WordSearch | None:
    """What looks for some gold answers word by word; None where one of them is not read so.

    >>> search = word_search(("New York",), MatchRules())
    >>> search.stretches("York, new. So, New York!", Span(0, 24))
    [Span(start=15, end=24)]
    >>> word_search(("1776",), MatchRules())
    """
    if rules.containment != "words":
        return None
    compiled = [_compiled(gold).spelled if rules.variants else _compiled(gold) for gold in golds]
    if any(each.is_nothing or (rules.variants and each.has_numbers) for each in compiled):
        return None
    joined, parted = (
        [tuple(text.split()) for text in texts]
        for texts in ([each.joined for each in compiled], [each.parted for each in compiled])
    )
    if any(ARTICLES.issuperset(tokens) for tokens in parted):  # found in texts of nothing but articles, and else never
        return None
    return WordSearch(tuple(joined), tuple(parted), rules.variants)


def _places(words: Sequence[str], gold: Tokens) -> Iterator[tuple[int, int]]:
    """Number of the first and of the last word of each occurrence of a gold answer in a text's words."""
    fitting = [place for place, word in enumerate(words) if gold[0] in word]
    if len(gold) == 1:
        yield from ((place, place) for place in fitting if gold[0] in words[place].split())
    elif fitting:
        tokens = [(token, place) for place, word in enumerate(words) for token in word.split() if token not in ARTICLES]
        only = [token for token, _ in tokens]
        for at, token in enumerate(only):
            if token == gold[0] and tuple(only[at : at + len(gold)]) == gold:
                yield tokens[at][1], tokens[at + len(gold) - 1][1]
