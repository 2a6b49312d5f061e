import re
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mralign_core.method.matching import contains_match, exact_match, normalise, thought_match


def squad_normalise(text):
    """SQuAD's evaluation script, step by step: lower, punctuation, articles, whitespace."""
    text = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@given(st.text(alphabet=string.printable, max_size=40) | st.from_regex(r"(the|a|an|cat|-|'| ){1,9}", fullmatch=True))
def test_equals_squad_on_ascii(text):
    expected = squad_normalise(text)
    assume(expected)
    assert normalise(text) == expected


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("the Beatles.", "Beatles"),
        ("PARIS", "Paris"),
        ("U.S.", "US"),
        ("1,000", "1000"),
        ("Beyonce", "Beyoncé"),
        ("Beyonce\u0301", "Beyoncé"),
        ("Müller‑Lüdenscheidt", "Muller-Ludenscheidt"),  # non-breaking hyphen
        ("Straße", "STRASSE"),
        ("İstanbul", "Istanbul"),
        ("“Hamlet”", "Hamlet"),
        ("it’s", "it's"),
        ("Hawaiʻi", "Hawai'i"),
        ("Tokyo\u200b", "Tokyo"),
        ("２０２４", "2024"),
        ("ﬁnch", "finch"),
        ("東京。", "東京"),
        ("서울", "서울".encode().decode()),
        ("\u1109\u1165\u110b\u116e\u11af", "서울"),  # decomposed Hangul
        ("A", "a"),
    ],
)
def test_exact_match_sees_through_writing(answer, gold):
    assert exact_match(answer, [gold])
    assert contains_match(answer, [gold])


@pytest.mark.parametrize(
    ("answer", "golds"),
    [
        (None, ["Paris"]),
        ("", ["Paris"]),
        ("", [""]),
        ("...", ["!"]),
        ("It is Paris", ["Paris"]),
        ("Pari", ["Paris"]),
        ("Paris", []),
        ("हिंदी", ["हद"]),  # vowel signs of other scripts are not accents
    ],
)
def test_exact_match_is_equality(answer, golds):
    assert not exact_match(answer, golds)


@pytest.mark.parametrize(
    ("text", "gold", "named"),
    [
        ("Iranian", "Iran", False),
        ("Iran's capital", "Iran", True),
        ("Iran’s capital", "Iran", True),
        ("in Iran.", "Iran", True),
        ("**Iran**", "Iran", True),
        ("Paris/London", "London", True),
        ("Paris—the capital", "Paris", True),
        ("1990–1995", "1990", True),
        ("on 7/4/1776", "1776", True),
        ("3.5 million", "5", False),
        ("1,000 men", "1", False),
        ("1,000 men", "1000", True),
        ("at 12:30", "12", False),
        ("the U.S. Navy", "US", True),
        ("a twenty-one gun salute", "twenty one", True),
        ("New\n\nYork", "New York", True),
        ("york new", "New York", False),
        ("首都是北京。", "北京", True),
        ("首都是南京。", "北京", False),
        ("เมืองหลวงคือกรุงเทพ", "กรุงเทพ", True),
        ("The The play", "the", False),
        ("nothing here", "…", False),
        ("...", "!", False),
        (None, "Paris", False),
    ],
)
def test_containment_is_on_word_boundaries(text, gold, named):
    assert contains_match(text, [gold]) is named
    assert thought_match(text, [gold]) is named


def test_any_gold_counts():
    assert contains_match("the Fab Four", ["Beatles", "Fab Four"])
    assert exact_match("Fab Four", ["Beatles", "Fab Four"])


@given(st.text(max_size=30), st.lists(st.text(max_size=30), max_size=3))
def test_equal_answers_are_contained(answer, golds):
    assert not exact_match(answer, golds) or contains_match(answer, golds)
    assert exact_match(answer, [answer]) is bool(normalise(answer))


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_containment_survives_surroundings(before, gold, after):
    assume(set(normalise(gold).split()) - {"a", "an", "the"})
    assert contains_match(f"{before} \n{gold}\n {after}", [gold])
