"""Numbers and dates of a text in one spelling, so that "3rd" equals "third" and "4 July 1776" equals "1776-07-04".

Not in the paper, which compares texts as they are. English only. Decisions:

* Numbers become digits: "1,000", "one thousand" and "1000.0" are 1000, "1.5 million" is 1500000, "a hundred" is 100.
  Ordinals stay apart from cardinals. SQuAD's normalisation drops currencies and "%", so "percent" after a number
  goes with them; no other unit does ("1000 dollars" is not "$1000"). Leading zeros count: 007 is not 7.
* A number or date ends with its line. It is read whole: "twenty-two" holds no 2, "3.5" and ".5" (which is 0.5) no 5,
  "-5" no 5, "14.0.7" and "10:30" are words of their own. Digits joined to letters ("1990s", "B52") are words. The
  number of an item, at the start of a line, goes with the punctuation.
* "half past three" is 3:30, "a quarter to four" 3:45.
* Groups of digits, powers, fractions, times, versions and ranges: see :mod:`mralign_core.method.spellings`.
* Not read: Roman numerals (Henry V), years in words ("nineteen eighty-four"), "dozen", "5k".
* Dates become day, month's name, year, so that a year, or a month with its year, is found in a full date and never the
  other way round. 07/04/1776 may be in April or in July and is left as it is; 13/04/1776 can only be in April.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter

from mralign_core.method.spellings import join_groups, unify_notations, unify_ranges

# fmt: off
MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)
_UP_TO_19 = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
# fmt: on
_MONTH_OF = {month[:length]: month for month in MONTHS for length in (3, len(month))} | {"sept": "september"}
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ZEROS = {"hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "crore": 7, "billion": 9, "trillion": 12}
_CARDINALS = {
    **{word: value for value, word in enumerate(_UP_TO_19)},
    **{word: value for value, word in zip(range(20, 100, 10), _TENS, strict=True)},
    **{word: 10**zeros for word, zeros in _ZEROS.items()},
}
_IRREGULAR = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
_IRREGULAR |= {"twelve": "twelfth"} | {word: f"{word[:-1]}ieth" for word in _TENS}
_ORDINALS = {_IRREGULAR.get(word, f"{word}th"): value for word, value in _CARDINALS.items() if value}
_VALUES = _CARDINALS | _ORDINALS
LONGEST_GAP = 9
"""Characters before a number that are looked at for what a hyphen is."""


def _any_of(words: Iterable[str], after_initial: str = "") -> str:
    """A pattern for one of the words, with another pattern behind its first letter."""
    by_initial = groupby(sorted(words), key=itemgetter(0))
    rests = {initial: sorted((word[1:] for word in group), key=len, reverse=True) for initial, group in by_initial}
    return "|".join(f"{initial}{after_initial}(?:{'|'.join(rest)})" for initial, rest in rests.items())


# The start of a word is checked behind its first character: a search skips to the characters that a pattern begins
# with, which makes it four times as fast. A repeat is bounded where each of its parts could begin a match, so that time
# is linear in the length of any text.
_START, _END = r"(?<![^\W_].)", r"(?![^\W_])"
_ITEM_NUMBER = re.compile(r"\n[ \t>*#-]{0,9}[0-9]{1,3}[.)](?=\**[ \t]+\S)")
_LEADING_POINT = re.compile(r"\.(?=[0-9])(?<!(?:[^\W_]|[.)])\.)")
# A hyphen before a number is a sign where no word or number ends before it: in 1990-95, 3 -2 and twenty-two it is none.
_SIGN = re.compile(r"(?:^|[\s(\[{=<>~≈:,;\"'`*])-[$€£¥]?\Z")
_BEHIND_NUMBER = re.compile(r"[0-9%][ \t]*-[$€£¥]?\Z")
_SIGN_WORD = re.compile(r"(?:m(?<![^\W_].)(?<![0-9] .)inus|n(?<![^\W_].)(?<![0-9] .)egative) (?=[0-9])")
_NUMERIC_DATE = re.compile(
    rf"[0-9]{_START}(?<![0-9][-/.].)[0-9]{{0,3}}([-/.])[0-9]{{1,2}}\1[0-9]{{1,4}}{_END}(?![-/.][0-9])"
)
_SCALE = rf"(?:{_any_of(_ZEROS)}){_END}"
_PERCENT = rf"(?:[ -]*per[ -]?cent{_END})?"
_DIGITS = re.compile(
    rf"""
    (?P<digits>
        [0-9]{_START}(?<![0-9][.:].) (?: [0-9]{{0,2}}(?:,[0-9]{{2,3}}){{0,9}},[0-9]{{3}} | [0-9]* ) (?:\.[0-9]+)?
    ) (?![.:]?[0-9])
    (?: (?P<ordinal> st|nd|rd|th ) | (?P<scales> (?: [ -]+{_SCALE} )+ ) )? {_END} {_PERCENT}
    """,
    re.VERBOSE,
)
_WORD = rf"(?:{_any_of(_VALUES)}){_END}"
_AFTER_SCALE = "|".join(f"(?<={scale})" for scale in _ZEROS)
_WORDS = re.compile(
    rf"(?:{_any_of(_VALUES, _START)}){_END}(?:(?:[ -]+|(?:{_AFTER_SCALE})(?:, +|,? +and +)){_WORD})*{_PERCENT}"
)
_MINUTES = {"half past": 30, "quarter past": 15, "quarter to": -15}
_SPOKEN_TIME = re.compile(
    rf"(?:{_any_of(_MINUTES, _START)}) (?:({'|'.join(_UP_TO_19[1:13])})|(1[0-2]|[1-9])){_END}(?![.:][0-9])"
)
_BEFORE_QUARTER = re.compile(r"\ba (?=quarter (?:past|to) )")
_BETWEEN_NUMBERS = re.compile(r"([0-9])[^\w\s.:]+(?=[0-9])")
_DAY = r"(?:0?[1-9]|[12][0-9]|3[01])(?:th)?"
_MONTH = rf"(?:{_any_of(_MONTH_OF)}){_END}\.?"
_NAMED_DATE = re.compile(
    rf"""
    (?<![^\W_])
    (?: (?P<day>{_DAY}) {_END} [ ]+ (?:of[ ]+)? (?P<month>{_MONTH})
      | (?P<month_first>{_MONTH})
        (?: [ ]+ (?:the[ ]+)? (?P<day_last>{_DAY}) {_END} | (?= ,?[ ]+(?:of[ ]+)?[0-9]{{3,4}}{_END} ) )
    )
    (?: (?: [ ]*,[ ]* | [ ]+ ) (?:of[ ]+)? (?P<year>[0-9]{{3,4}}) {_END} )?
    """,
    re.VERBOSE,
)


def unify_quantities(text: str) -> str:
    """The text with its numbers and dates in one spelling.

    A decimal point becomes the letter p and a minus sign the letter m, because normalisation drops points and signs.

    Args:
        text: in lower case, with compatibility forms unified.

    >>> unify_quantities("thirty-two of $1.5 million on the 4th of july, 1776; then 3.25, minus two and -.5")
    '32 of $1500000 on the 4 july 1776; then 3p25, m2 and -m0p5'
    """
    text = _NUMERIC_DATE.sub(_numeric_date, with_whole_decimals(join_groups(_ITEM_NUMBER.sub(" ", text))))
    if " past " in text or "quarter to" in text:
        text = _SPOKEN_TIME.sub(_spoken_time, _BEFORE_QUARTER.sub("", text))
    text = unify_notations(text)
    text = _WORDS.sub(_in_words, _DIGITS.sub(_in_digits, text))
    if "minus" in text or "negative" in text:
        text = _SIGN_WORD.sub("m", text)
    text = _NAMED_DATE.sub(_named_date, unify_ranges(text))
    return _BETWEEN_NUMBERS.sub(r"\1 ", text)


def unify_digits(text: str) -> str:
    """The text with the numbers that are written in digits in one spelling, and number words as they are.

    >>> unify_digits("one in 1,000.0, or .1, or -1")
    'one in 1000, or 0p1, or -m1'
    """
    return _DIGITS.sub(_in_digits, with_whole_decimals(join_groups(text)))


def with_whole_decimals(text: str) -> str:
    """The text with a zero before each point that begins a number: ``.5`` is 0.5, and holds no 5.

    >>> with_whole_decimals("a .5 chance, in v.5 or at the end.5 more...6")
    'a 0.5 chance, in v.5 or at the end.5 more...6'
    """
    return _LEADING_POINT.sub("0.", text)


def holds_quantity(text: str) -> bool:
    """Whether there is anything to unify in the text, in digits or in words.

    >>> holds_quantity("the third man"), holds_quantity("nobody")
    (True, False)
    """
    return any(char in text for char in "0123456789") or _WORDS.search(text) is not None


def clues(number: str) -> tuple[str, ...]:
    """Strings of which at least one stands in every text that holds the number, once punctuation is left out.

    Args:
        number: a number as :func:`unify_quantities` writes it.

    >>> clues("1250")[:2]
    ('1250', '250')
    >>> clues("22th")
    ('22', 'twenty', 'twentieth', 'hundred', 'thousand', 'lakh', 'million', 'crore', 'billion', 'trillion')
    """
    if "p" in number:  # may be written as a fraction
        return ("",)
    digits = number.removesuffix("th").removeprefix("m")
    value = int(digits) if len(digits) <= 2 else 100
    first_word = value if value < 20 else value // 10 * 10
    words = [word for word, of_word in _VALUES.items() if of_word == first_word and value < 100]
    groups = (digits[-3:],) if len(digits) > 3 else ()  # of digits, with blanks between
    tens = ("10", *(f"e{digit}" for digit in range(10))) if digits.endswith("0") else ()  # a power of ten
    return (digits, *groups, *words, *tens, *_ZEROS)


def _spoken_time(match: re.Match[str]) -> str:
    hour = _UP_TO_19.index(match[1]) if match[1] else int(match[2])
    minutes = 60 * hour + _MINUTES[match[0].rpartition(" ")[0]]
    return f"{(minutes // 60 - 1) % 12 + 1}:{minutes % 60:02}"


def _numeric_date(match: re.Match[str]) -> str:
    parts = match[0].split(match[1])
    first, second, third = map(int, parts)
    if len(parts[0]) == 4 and len(parts[2]) <= 2:
        year, orders = first, {(third, second)}
    elif len(parts[0]) <= 2 and len(parts[2]) == 4:
        year, orders = third, {(first, second), (second, first)}
    else:
        return match[0]
    dates = [f"{day} {MONTHS[month - 1]} {year}" for day, month in orders if 1 <= month <= 12 and 1 <= day <= 31]
    return dates[0] if len(dates) == 1 else match[0]


def _named_date(match: re.Match[str]) -> str:
    day = (match["day"] or match["day_last"] or "").removesuffix("th").removeprefix("0")
    month = _MONTH_OF[(match["month"] or match["month_first"]).removesuffix(".")]
    return f"{day} {month} {match['year'] or ''}".strip()


def _in_digits(match: re.Match[str]) -> str:
    whole, _, fraction = match["digits"].replace(",", "").partition(".")
    if match["scales"]:
        zeros = sum(_ZEROS[scale] for scale in re.findall("[a-z]+", match["scales"]))
        whole = (whole + fraction[:zeros].ljust(zeros, "0")).lstrip("0") or "0"
        fraction = fraction[zeros:]
    fraction = fraction.rstrip("0")
    sign = "m" if not match["ordinal"] and _is_negative(match) else ""
    return f"{sign}{whole}{'p' if fraction else ''}{fraction}{'th' if match['ordinal'] else ''}"


def _is_negative(match: re.Match[str]) -> bool:
    start = match.start()
    if match.string[max(0, start - 2) : start].find("-") < 0:
        return False
    before = match.string[max(0, start - LONGEST_GAP) : start]
    # A year behind a word is rather one with a dash before it.
    is_year = re.fullmatch("[0-9]{4}", match["digits"]) and before.strip() not in ("-", "")
    return bool(_SIGN.search(before)) and not _BEHIND_NUMBER.search(before) and not is_year


def _in_words(match: re.Match[str]) -> str:
    """The numbers that consecutive words spell: "two hundred and five six" is "205 6"."""
    numbers: list[str] = []
    terms: list[int] = []  # of the number under way, which is their sum, in falling order
    for word in re.findall("[a-z]+", match[0]):
        value = _VALUES.get(word)
        if value is None:  # and, percent
            continue
        if value >= 100:
            kept, factor = [term for term in terms if term >= value], sum(term for term in terms if term < value)
            product = (factor or 1) * value
            if kept and not (factor and kept[-1] > product):
                numbers.append(str(sum(kept)))
                kept = []
            terms = [*kept, product]
        elif not terms or (value and terms[-1] >= 100) or (0 < value < 10 and terms[-1] >= 20):
            terms.append(value)
        else:
            numbers.append(str(sum(terms)))
            terms = [value]
        if word in _ORDINALS:
            numbers.append(f"{sum(terms)}th")
            terms = []
    return " ".join([*numbers, str(sum(terms))] if terms else numbers)
