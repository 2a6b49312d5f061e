import datetime
import re
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mralign_core.method.matching import MatchRules, contains_match, exact_match
from mralign_core.method.quantities import MONTHS, clues, holds_quantity, unify_quantities

UNITS = re.findall(
    "[a-z]+",
    """
    zero one two three four five six seven eight nine ten
    eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
""",
)
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
ORDINALS |= {"twelve": "twelfth"}
BIG = [(10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred")]

integers = st.integers(0, 10**12 - 1) | st.integers(0, 2000) | st.sampled_from([10**n for n in range(12)])
dates = st.dates(datetime.date(1000, 1, 1))


def in_words(number, hyphen="-", link=" and "):
    """English number words, with or without hyphens and "and"; written apart from the code under test."""
    for scale, name in BIG:
        if number >= scale:
            rest = number % scale
            head = f"{in_words(number // scale, hyphen, link)} {name}"
            between = link if rest < 100 else ", " if link != " " and scale > 100 else " "
            return head + (between + in_words(rest, hyphen, link) if rest else "")
    if number < 20:
        return UNITS[number]
    return TENS[number // 10] + (hyphen + UNITS[number % 10] if number % 10 else "")


def ordinal_in_words(number):
    word = re.fullmatch(r"(.*?)(\w+)", in_words(number))
    assert word
    head, last = word.groups()
    return head + (ORDINALS.get(last) or re.sub("y$", "ie", last) + "th")


def ordinal(number):
    suffix = "th" if 10 < number % 100 < 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def spellings_of(number):
    words = [in_words(number, hyphen, link) for hyphen in "- " for link in (" and ", " ", ", and ")]
    spaced = [f"{number:,}".replace(",", space) for space in ("\u00a0", "\u2009", "\u202f", " ")]
    return [
        str(number),
        f"{number:,}",
        f"${number:,}.00",
        f"{number}.0",
        f"{number}%",
        f"{number} percent",
        *words,
        *spaced,
    ]


def spellings_of_date(date):
    month, day, year = MONTHS[date.month - 1].capitalize(), date.day, date.year
    plain = [f"{month} {day}, {year}", f"{day} {month} {year}", f"{month} {ordinal(day)} {year}", date.isoformat()]
    odd = [f"the {ordinal(day)} of {month}, {year}", f"{month[:3]}. {day} {year}", f"{day:02} {month[:3]} {year}"]
    numeric = [f"{day}/{date.month}/{year}", f"{date.month:02}/{day:02}/{year}"] if day > 12 else []
    worded = [f"{ordinal_in_words(day)} of {month} {year}", f"{month} the {ordinal(day)}, {year}"]
    return plain + odd + numeric + worded


@given(integers, st.data())
def test_an_integer_is_the_same_in_words_and_in_digits(number, data):
    one, other = (data.draw(st.sampled_from(spellings_of(number))) for _ in range(2))
    assert exact_match(one, [other])
    assert exact_match(one.upper(), [other])


@given(integers, integers, st.data())
def test_different_integers_never_match(first, second, data):
    assume(first != second)
    one, other = (data.draw(st.sampled_from(spellings_of(number))) for number in (first, second))
    assert not exact_match(one, [other])
    assert not contains_match(f"it was {one}, i think", [other]) or second == 1


@given(st.integers(1, 10**6), st.data())
def test_ordinals_are_the_same_in_words_and_in_digits_and_no_cardinals(number, data):
    one, other = ordinal(number), ordinal_in_words(number)
    assert exact_match(one, [other]) and exact_match(other, [one])
    assert not exact_match(data.draw(st.sampled_from(spellings_of(number))), [one, other])


@given(st.integers(2, 10**9), st.data())
def test_an_integer_is_found_in_a_text_in_any_spelling(number, data):
    one, other = (data.draw(st.sampled_from(spellings_of(number))) for _ in range(2))
    assert contains_match(f"So there were {one} of them, (I think).", [other])
    assert contains_match(f"There were\n\n**{one}**. Wait", [other])


@given(dates, st.data())
def test_a_date_is_the_same_in_any_format(date, data):
    one, other = (data.draw(st.sampled_from(spellings_of_date(date))) for _ in range(2))
    assert exact_match(one, [other])
    assert contains_match(f"It was signed on {one}, in the city.", [other])


@given(dates, dates, st.data())
def test_different_dates_never_match(first, second, data):
    assume(first != second)
    one, other = (data.draw(st.sampled_from(spellings_of_date(date))) for date in (first, second))
    assert not exact_match(one, [other])
    assert not contains_match(f"It was signed on {one}, in the city.", [other])


@given(dates, st.data())
def test_a_part_of_a_date_is_found_in_it_and_never_the_other_way_round(date, data):
    whole = data.draw(st.sampled_from(spellings_of_date(date)))
    month = MONTHS[date.month - 1].capitalize()
    for part in (str(date.year), f"{month} {date.year}", f"{month} {date.day}"):
        assert contains_match(f"It was on {whole}.", [part])
        assert not contains_match(f"It was in {part}.", [whole])


words = st.sampled_from(["one", "two", "first", "twenty", "hundred", "thousand", "million", "and", "of", "the", "cat"])
words |= st.sampled_from(["5", "1,000", "3.5", "3rd", "2 percent", "7%", "b52", "1990s", "-", ",", "\n2. it", "\n"])
words |= st.sampled_from(["4", "31", "may", "july", "1776", "1776-07-04", "13/04/1776", "07/04/1776"])
texts = st.lists(words, max_size=8).map(" ".join)


@given(integers, dates, st.data())
def test_unifying_twice_changes_nothing(number, date, data):
    one, other = (
        data.draw(st.sampled_from(spellings)) for spellings in (spellings_of(number), spellings_of_date(date))
    )
    once = unify_quantities(f"{one} of them on {other}, the {ordinal_in_words(number + 1)} of {one}.".lower())
    assert unify_quantities(once) == once


@given(texts, texts)
def test_exact_match_is_symmetric_and_contained(one, other):
    assert exact_match(one, [other]) == exact_match(other, [one])
    assert contains_match(one, [other]) or not exact_match(one, [other])


@given(texts, texts, texts)
def test_equality_is_transitive(one, two, three):
    assert exact_match(one, [three]) or not (exact_match(one, [two]) and exact_match(two, [three]))


@given(st.text(max_size=30) | texts)
def test_texts_without_quantities_stay(text):
    text = text.lower()
    assert holds_quantity(text) or unify_quantities(text) == text


@given(integers)
def test_every_spelling_of_a_number_has_a_clue(number):
    for spelling in spellings_of(number):
        bare = re.sub(r"[^\w ]|(?<=\d)\s(?=\d)", "", spelling)
        assert any(clue in bare for clue in clues(str(number)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.5 million", "1,500,000"),
        ("1.50", "1.5"),
        ("$1,000.00", "1000"),
        ("a hundred", "100"),
        ("nineteen hundred", "1900"),
        ("ten thousand", "10,000"),
        ("39.97 lakh", "3,997,000"),
        ("50%", "fifty per cent"),
        ("five-year plan", "5-year plan"),
        ("Twenty One Pilots", "21 Pilots"),
        ("World War Two", "World War 2"),
        ("Third Reich", "3rd Reich"),
        ("the One", "1"),
        ("Sept. 1990", "September, 1990"),
        ("4\u00a0July\u00a01776", "July 4,1776"),
        ("4/4/1776", "4 April 1776"),
        ("1776/07/04", "4 July 1776"),
        ("13.04.1776", "13 April 1776"),
        ("B-52", "B52"),
        ("7-Up", "7UP"),
    ],
)
def test_these_are_the_same(one, other):
    assert exact_match(one, [other]) and exact_match(other, [one])
    assert contains_match(one, [other]) and contains_match(other, [one])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.5", "15"),
        ("3.5 km", "35 km"),
        ("3-5", "35"),
        ("1/2", "12"),
        ("7", "007"),
        ("3", "third"),
        ("1000 dollars", "$1000"),
        ("Henry V", "Henry 5"),
        ("1990s", "1990"),
        ("July 4, 1776", "1776"),
        ("July 4, 1776", "July 4"),
        ("07/04/1776", "4 July 1776"),
        ("07/04/1776", "7 April 1776"),
        ("31/12/1776", "12 December 1776"),
        ("1776-13-04", "13 April 1776"),
        ("January", "Jan"),
        ("3 million", "3"),
    ],
)
def test_these_are_not(one, other):
    assert not exact_match(one, [other]) and not exact_match(other, [one])


@pytest.mark.parametrize(
    ("text", "gold", "named"),
    [
        ("There were three men.", "3", True),
        ("There were 3 men.", "three", True),
        ("The third man", "3rd", True),
        ("About 15 of 5,000, or 3.5%", "5", False),
        ("at 12:30", "12", False),
        ("twenty-two men", "two", False),
        ("twenty two men", "2", False),
        ("two hundred men", "two", False),
        ("between two hundred and three hundred", "300", True),
        ("between two hundred and three hundred", "200", True),
        ("5 million men", "5", False),
        ("The list:\n3. Paris\n4) Rome", "3", False),
        ("The list:\n- **3.** Paris", "3", False),
        ("It has\n3.5 km", "3.5", True),
        ("The answer is\n3.", "3", True),
        ("12. That is how many", "12", True),
        ("one of the 7 men", "1", False),
        ("one of the men", "one", True),
        ("At first, wait a second", "1st", False),
        ("At first, wait a second", "2nd", False),
        ("the second season of it", "2nd season", True),
        ("In season 1 of it", "season one", True),
        ("no one", "1", False),
        ("one", "1", True),
        ("it was two\nmillion years", "two", True),
        ("the 1990s", "1990", False),
        ("1990–1995", "1995", True),
        ("on 7/4/1776", "1776", True),
        ("4 July 1776", "July 1776", True),
        ("14 July 1776", "4 July 1776", False),
        ("July 1776", "4 July 1776", False),
        ("在1776年", "1776", True),
        ("There were 1 250 men.", "1250", True),
        ("There were 1 250 men.", "250", False),
        ("There were 1 250 men.", "1", False),
        ("In 1990 250 men came", "250", True),
        ("It has 1 250, I think", "1250", True),
        ("It is -12 500 m", "-12500", True),
        ("It has 1 250km", "1250 km", True),
        ("call 555 123 4567", "123", True),
        ("about 2e6 of them", "2,000,000", True),
        ("at half past three", "3:30", True),
        ("at half past three", "3", False),
        ("It opens at 3.30 p.m. daily", "3:30 pm", True),
    ],
)
def test_numbers_in_running_text(text, gold, named):
    assert contains_match(text, [gold]) is named


@pytest.mark.parametrize(
    ("one", "other"), [("three", "3"), ("3rd", "third"), ("1000.0", "1000"), ("4 July 1776", "July 4, 1776")]
)
def test_variants_can_be_switched_off(one, other):
    plain = MatchRules(variants=False)
    assert exact_match(one, [other]) and contains_match(f"It is {one}.", [other])
    assert not exact_match(one, [other], plain) and not contains_match(f"It is {one}.", [other], plain)


@pytest.mark.parametrize(
    "piece",
    [
        "\n",
        "11,22,",
        "one hundred ",
        "4 ",
        "may ",
        "1 million ",
        "#* ",
        "-",
        "5-",
        "3.",
        "one-",
        "1 000 ",
        " 000",
        "half past ",
        "1e3",
    ],
)
def test_time_is_linear_in_the_length(piece):
    def seconds(repeats):
        text = piece * repeats
        started = time.process_time()
        unify_quantities(text)
        return time.process_time() - started

    shortest = min(seconds(2000) for _ in range(3))
    assert min(seconds(20_000) for _ in range(3)) < 40 * max(shortest, 1e-3)
