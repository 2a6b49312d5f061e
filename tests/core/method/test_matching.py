import json
import os
import random
import re
import string
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mralign_core.method.blanks import is_blank
from mralign_core.method.matching import MatchRules, contains_match, exact_match, normalise, thought_match

PLAIN = MatchRules(variants=False)
SUBSTRING = MatchRules(containment="substring")


def squad_normalise(text):
    """SQuAD's evaluation script, step by step: lower, punctuation, articles, whitespace."""
    text = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@given(st.text(alphabet=string.printable, max_size=40) | st.from_regex(r"(the|a|an|cat|-|'| ){1,9}", fullmatch=True))
def test_equals_squad_on_ascii(text):
    expected = squad_normalise(text)
    assume(expected)
    assert normalise(text) == expected


@given(*[st.text(alphabet=string.printable, max_size=9) | st.sampled_from(["The cat's", "3.5", "35%"])] * 2)
def test_exact_match_without_variants_is_squads_on_ascii(answer, gold):
    expected = squad_normalise(answer) == squad_normalise(gold)
    assume(squad_normalise(answer) and squad_normalise(gold))
    assert exact_match(answer, [gold], PLAIN) == expected


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
        ("1\u202f000", "1000"),
        ("ﬁnch", "finch"),
        ("東京。", "東京"),
        ("서울", "서울".encode().decode()),
        ("\u1109\u1165\u110b\u116e\u11af", "서울"),  # decomposed Hangul
        ("A", "a"),
        # golds that normalise to nothing
        ("£", "£"),
        ("£.", "£"),
        ("**£**", "£"),
        ("“£”", "£"),
        ("a £", "£"),
        ("≈", "≈"),
        ("🍎", "🍎"),
        ("❤", "❤\ufe0f"),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        ("+", "+"),
        ("％", "%"),
        ("...", "…"),
        ("`*`", "*"),
        ("A+", "a+"),
        ("A−", "A-"),
        ("The", "the"),
        # numbers
        (".5", "0.5"),
        ("0.50", ".5"),
        ("$.5 million", "500,000"),
        ("-5", "−5"),
        ("minus five", "-5"),
        ("-.5", "-0.5"),
        ("-$5", "-5"),
        ("٣", "3"),
        ("५", "5"),
        ("1/2", "½"),
        ("2 1/2", "2½"),
        ("10^5", "10⁵"),
        ("5.", "5"),
        ("1,000.5", "1000.5"),
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
        # signs differ
        ("€", ["£"]),
        ("🍏", ["🍎"]),
        ("☺\ufe0f", ["❤\ufe0f"]),
        ("*\ufe0f\u20e3", ["#\ufe0f\u20e3"]),
        ("-", ["+"]),
        ("A", ["A+"]),
        ("A-", ["A+"]),
        ("a", ["the"]),
        ("pound", ["£"]),
        ("£5", ["£"]),
        ("", ["£"]),
        (None, ["£"]),
        ("\u200b", ["\u200b"]),
        ("\u200b", ["\u3164"]),
        # and numbers
        ("406", [".406"]),
        ("5", [".5"]),
        ("5", ["-5"]),
        ("-5", ["5"]),
        ("12", ["½"]),
        ("21/2", ["2½"]),
        ("105", ["10⁵"]),
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
        ("So the sign is £, I think", "£", True),
        ("So the sign is “£”.", "£", True),
        ("It costs £5.", "£", False),
        ("符号是£。", "£", True),
        ("a + b", "+", True),
        ("2+2", "+", False),
        ("red🍎", "🍎", False),
        ("Maybe 🍎? Yes", "🍎", True),
        ("☺\ufe0f", "❤\ufe0f", False),
        ("Hmm... yes", "...", False),
        ("it is % here", "%", True),
        ("blood type A+, then", "A+", True),
        ("blood type A, then", "A+", False),
        ("a .5 chance", "5", False),
        ("a .5 chance", ".5", True),
        ("a .5 chance", "0.5", True),
        ("a 0.5 chance", ".5", True),
        ("a 5 chance", ".5", False),
        ("a .1 chance", "1", False),
        ("the end.5 more", "5", True),
        ("wait...5 it is", "5", True),
        ("it is -5 °C", "5", False),
        ("it is -5 °C", "-5", True),
        ("it is minus five", "-5", True),
        ("it is −5", "5", False),
        ("10 minus 5 is", "5", True),
        ("it is -1", "1", False),
        ("it is 1 million", "1", False),
        ("1990 -1995", "1995", True),
        ("Rome -1995", "1995", True),
        ("3 - 5", "5", True),
        ("(1990-95)", "95", True),
        ("score 3-5", "5", True),
        ("chapter v5", "5", False),
        ("the 5th", "5", False),
        ("about 1.5 m", "5", False),
        ("رقم ٣ هو", "3", True),
    ],
)
def test_containment_is_on_word_boundaries(text, gold, named):
    assert contains_match(text, [gold]) is named
    assert thought_match(text, [gold]) is named


@pytest.mark.parametrize(
    ("text", "gold", "named"),
    [
        ("Iranian", "Iran", True),
        ("Iranian", "rania", True),
        ("in 1988", "98", True),
        ("Paris/London", "London", True),
        ("a twenty-one gun salute", "twenty one", True),
        ("It's three.", "3", True),  # a variant
        ("It's thirty-three.", "3", False),
        ("Iran", "Iranian", False),
        ("banana", "A", False),
        ("the the", "the", True),
        ("anything", "...", False),
    ],
)
def test_containment_as_a_plain_substring(text, gold, named):
    assert contains_match(text, [gold], SUBSTRING) is named
    assert thought_match(text, [gold], SUBSTRING) is named
    assert exact_match(text, [gold], SUBSTRING) is exact_match(text, [gold])


def test_any_gold_counts():
    assert contains_match("the Fab Four", ["Beatles", "Fab Four"])
    assert exact_match("Fab Four", ["Beatles", "Fab Four"])


def test_a_number_with_a_leading_point_is_not_its_digits_in_marks_either():
    for text in ("_.5_", "*.5*", "It is .5"):
        assert contains_match(text, ["0.5"]) and not contains_match(text, ["5"])
    assert contains_match("v.5", ["5"])


MARKS = [*"*!?.,;:()[]{}_", "...", "??", "()", "?!", "[]", "**"]


@pytest.mark.parametrize("sign", [*MARKS, "≈", "£", "+", "→", "🍎"])
@pytest.mark.parametrize("form", ["{}", '"{}"', "`{}`", "The sign is {}", "The sign is {} here", 'It is "{}".'])
def test_a_sign_is_named_however_a_sentence_quotes_it(sign, form):
    assert contains_match(form.format(sign), [sign])
    assert not contains_match(form.format("&"), [sign])


@pytest.mark.parametrize("sign", [*"*!?;:_", "??", "()", "?!", "≈", "£", "+", "→"])
@pytest.mark.parametrize("form", ["{}.", "{},", "({})", "[{}]", "({}).", r"\boxed{{{}}}", "${}$", r"$\boxed{{{}}}$."])
def test_a_sign_is_an_answer_within_marks(sign, form):
    assert exact_match(form.format(sign), [sign]) and exact_match(sign, [form.format(sign)]) is not ("boxed" in form)
    assert contains_match(f"The sign is {form.format(sign)}", [sign])
    assert contains_match(f"Answer:{sign}", [sign])


def test_marks_that_are_other_marks_stay_so():
    assert exact_match("**?**", ["?"]) and exact_match("*?*", ["?"])
    for answer, gold in (("?!", "?"), ("??", "?"), ("...", "."), ("()", "("), ("!", "?"), ("(", ")"), ("$", "≈")):
        assert not exact_match(answer, [gold]) and not exact_match(gold, [answer])


texts = st.text(max_size=30) | st.lists(
    st.sampled_from(
        ["Iran", "ian", "U.S.", "Paris/London", "the", "2", "two", "twenty-one", "3.5", "first", "July 4", "東京"]
    ),
    max_size=4,
).map(" ".join)
rules = st.builds(MatchRules, st.sampled_from(["words", "substring"]), st.booleans())


@given(texts, st.lists(texts, max_size=3), rules)
def test_equal_answers_are_contained(answer, golds, rules):
    assert not exact_match(answer, golds, rules) or contains_match(answer, golds, rules)
    assert exact_match(answer, [answer], rules) or not normalise(answer)
    assert not (exact_match(answer, [answer], rules) and is_blank(answer))


@given(texts, texts, rules)
def test_exact_match_is_symmetric_and_blind_to_case(one, other, rules):
    assert exact_match(one, [other], rules) is exact_match(other, [one], rules)
    assert exact_match(one.swapcase().upper(), [one.upper()], rules) or not normalise(one)


@given(texts, st.lists(texts, min_size=2, max_size=4), rules, st.randoms())
def test_the_order_of_golds_is_no_matter(text, golds, rules, rng):
    shuffled = rng.sample(golds, len(golds))
    assert exact_match(text, golds, rules) is exact_match(text, shuffled, rules)
    assert contains_match(text, golds, rules) is contains_match(text, shuffled, rules)


@given(texts, texts, st.booleans())
def test_a_substring_is_found_wherever_words_are(text, gold, variants):
    assert not contains_match(text, [gold], MatchRules("words", variants)) or contains_match(
        text, [gold], MatchRules("substring", variants)
    )


@given(texts, texts)
def test_words_of_either_reading_are_found(text, gold):
    by_hand = normalise(gold) and f" {normalise(gold)} " in f" {normalise(text)} "
    assert contains_match(text, [gold], PLAIN) or not by_hand


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_containment_survives_surroundings(before, gold, after):
    assume(set(normalise(gold).split()) - {"a", "an", "the"})
    assert contains_match(f"{before} \n{gold}\n {after}", [gold])


@pytest.mark.real_data
def test_on_real_traces_the_rules_differ_as_they_should():
    if not (folder := os.environ.get("MRALIGN_REAL_DATA")):
        pytest.skip("MRALIGN_REAL_DATA names no folder with real traces")
    lines = Path(folder, "traces", "race_nq_ds7b_main.jsonl").read_text(encoding="utf-8").splitlines()
    thinking = [json.loads(line)["thinking"] for line in lines]
    lines = Path(folder, "nq_open", "NQ-open.dev.jsonl").read_text(encoding="utf-8").splitlines()
    golds = random.Random(0).sample([gold for line in lines for gold in json.loads(line)["answer"]], 300)
    rules = {"words": PLAIN, "variants": MatchRules(), "substring": MatchRules("substring", False)}
    found = {
        name: {(n, gold) for n, text in enumerate(thinking) for gold in golds if thought_match(text, [gold], rule)}
        for name, rule in rules.items()
    }
    assert found["words"] < found["substring"]
    assert {gold for _, gold in found["words"] ^ found["variants"]} <= {gold for gold in golds if has_number(gold)}
    assert all(exact_match(gold, [gold]) and exact_match(gold, [gold], PLAIN) for gold in golds if normalise(gold))


def has_number(gold):
    return re.search(r"[0-9]|one|two|three|four|five|six|seven|eight|nine|ten|twel|first|second|third", gold.lower())
