"""Reading each word once says what asking of one stretch of words after another does."""

from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mralign_core.evaluation import mentions
from mralign_core.evaluation.mentions import find_mentions
from mralign_core.method.matching import DEFAULT_RULES, MatchRules, contains_match
from mralign_core.method.traces import Span, split_segments

# fmt: off
WORDS = [
    "Oslo", "oslo's", "Oslo/Bergen", "“Oslo”", "Bergen", "New", "York", "New–York,", "the", "a", "The,", "-", "**", "…",
    "U.S.", "U.", "S.", "US", "J.", "K.", "Rowling", "C++", "C#", "c", "Na+", "A+", "A", "it", "i.", "e.", "x.y",
    "Beyoncé", "naïve", "e\u0301", "\u0301x", "Straße", "İstanbul", "ﬁne", "π", "北京", "也许是北京。", "O’Brien",
    "5", "five", "1,000", "3.5", "1\u00a0000", "½", "2²", "half",
]
GOLDS = [
    "Oslo", "Oslo Bergen", "Oslo the Bergen", "New York", "York City", "the", "A", "a-the", "*", "US", "J.K. Rowling",
    "K", "C", "C++", "Na", "I.e.", "xy", "x y", "beyonce", "naive", "Strasse", "istanbul", "fine", "pi", "北",
    "O'Brien", "5", "1000", "half",
]
# fmt: on
TEXTS = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from([" ", " ", "\n", "\n\n", ""])), max_size=12).map(
    lambda pairs: "".join(word + blank for word, blank in pairs)
)
RULES = st.sampled_from([DEFAULT_RULES, DEFAULT_RULES, MatchRules(variants=False), MatchRules(containment="substring")])


def by_stretches(text, segments, golds, rules):
    whole = Span(segments[0].start, segments[-1].end) if segments else Span(0, 0)
    names = partial(contains_match, golds=golds, rules=rules)
    return mentions._ask_stretches(text, segments, whole, names)


def spans_of(text, segments, golds, rules):
    found = find_mentions(text, segments, golds, rules)
    return found and tuple(each.span for each in found)


@settings(max_examples=600)
@given(TEXTS, st.lists(st.sampled_from(GOLDS), max_size=2), RULES)
@example("é Oslo 1\u00a0000\nOslo", ["1000"], MatchRules(variants=False))
def test_it_is_the_same_mention(text, golds, rules):
    segments = split_segments(text)
    assert spans_of(text, segments, golds, rules) == by_stretches(text, segments, golds, rules)


@given(st.text("Oslo,. é\n", max_size=20), st.lists(st.integers(0, 20), min_size=4, max_size=4, unique=True))
def test_it_is_so_where_an_edge_of_a_segment_parts_a_word(text, cuts):
    cuts = [cut for cut in sorted(cuts) if cut <= len(text)]
    segments = [Span(*cuts[:2]), Span(*cuts[2:])] if len(cuts) == 4 else [Span(0, len(text))] if text else []
    assert spans_of(text, segments, ["Oslo", "l"], DEFAULT_RULES) == by_stretches(
        text, segments, ["Oslo", "l"], DEFAULT_RULES
    )


@pytest.mark.parametrize(
    ("text", "gold", "is_asked"),
    [
        ("It is Oslo, not 5.", "Oslo", False),
        ("It's Beyoncé – not “Cher”.", "Beyonce", False),
        ("Not in 1777.\n\nIt is 1776.", "1776", True),
        ("By J. K. Rowling.", "J.K. Rowling", True),
        ("New\n\nYork", "New York", True),
    ],
    ids=["word", "accents", "number", "initials", "across a blank line"],
)
def test_no_stretch_is_asked_of_where_words_decide(monkeypatch, text, gold, is_asked):
    asked = []

    def asking(*args, **more):
        asked.append(args)
        return contains_match(*args, **more)

    monkeypatch.setattr(mentions, "contains_match", asking)
    assert find_mentions(text, split_segments(text), [gold])
    assert bool(asked) == is_asked
