r"""Initials, signs behind letters, Greek letters, powers, fractions, times and ranges in one spelling.

Not in the paper. English only; part of the variants of :class:`~mralign_core.method.matching.MatchRules`. Decisions:

* "J. K. Rowling" is J.K. Rowling, "U. S. A." is U.S.A.: the blank between dotted initials goes.
* C++, C# and Na+ are none of C and Na, which SQuAD's normalisation takes for the same: a sign behind at most three
  letters is part of the word. Letters joined by a sign, as in a+b, are left alone.
* A Greek letter that stands alone is its name.
* A power of ten is the number: 10^5, 10**5, 10^{5}, 3 x 10^8, 1e3. A fraction that ends as a decimal is that: 1/2, ½,
  ``\frac{1}{2}``, one half, three quarters; others (1/3, 9/11) stay as they are. No date is one.
* 10:30 is not 1030, and 14.0.1 is not 1401; 3 : 4 is 3:4; 7:00 p.m. is 7 pm; v3.11 is 3.11; 1'000'000 and 1.000.000,
  with two or more groups of three, are 1000000. A point parts hours and minutes only before am or pm: 3.30 is 3.3.
* Blanks part groups of three digits, 1 234 567, where no other number stands beside them: "3 100 20" are three numbers.
* A range is its ends, however it is written: 3-5, 3 to 5, from 3 to 5, between 3 and 5. 5km is 5 km.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

LARGEST_EXPONENT = 30
_INITIALS = re.compile(r"(?<![^\W_])([a-z]\.)[ \u00a0]+(?=[a-z]\.)")
_SIGNED = re.compile(r"(?<![^\W_])([a-z][a-z0-9]{0,2})([+#♯]{1,2})(?![^\s.,;:!?)\]}\"'*`])")
_SIGN_NAMES = {"+": "plus", "#": "sharp", "♯": "sharp"}
_GREEK = re.compile(r"(?<![^\W_])[α-ω](?![^\W_])")
_GREEK_NAMES = {
    chr(code): unicodedata.name(chr(code)).rsplit(" ", 1)[-1].lower().replace("lamda", "lambda")
    for code in range(ord("α"), ord("ω") + 1)
    if code != ord("ς")
}
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([0-9]{1,9})\s*\}\s*\{\s*([0-9]{1,9})\s*\}")
_FRACTION = re.compile(r"(?<![\w./:,^-])(?:([0-9]{1,9}) +)?([0-9]{1,9}) ?[/⁄] ?([0-9]{1,9})(?![\w/⁄]|[.,][0-9])")
_SPELLED_FRACTION = re.compile(r"(?<![^\W_])(?:(one|1|a)[ -](half|quarter)|(three|3)[ -](quarter)s)(?![^\W_])")
_POWER = re.compile(
    r"(?<![\w.,^])(?:([0-9]{1,15}(?:\.[0-9]{1,15})?) ?(?:[x×*·⋅]|\\times) ?)?10 ?(?:\^|\*\*) ?"
    r"(?:\{(-?[0-9]{1,2})\}|(-?[0-9]{1,2}))(?![\w^])(?!\.[0-9])"
)
_SCIENTIFIC = re.compile(r"(?<![\w.,^])([0-9]{1,15}(?:\.[0-9]{1,15})?)[eE]([+-]?[0-9]{1,2})(?![\w^])(?!\.[0-9])")
_BLANK = "[ \u00a0\u2007\u2009\u202f]"
_BLANK_GROUPS = re.compile(
    rf"(?<![\w.,:/^'])(?<!\w-)(?<![0-9]{_BLANK})[1-9][0-9]{{0,2}}(?:{_BLANK}[0-9]{{3}}){{1,9}}"
    rf"(?!{_BLANK}?[0-9]|[,:/^'-][0-9])"
)
_APOSTROPHE_GROUP = re.compile(r"(?<=[0-9])'(?=[0-9]{3}(?![0-9]))")
_POINT_GROUPS = re.compile(r"(?<![\w.,])[0-9]{1,3}(?:\.[0-9]{3}){2,9}(?![\w.]*[0-9])")
_VERSION = re.compile(
    r"(?<![\w.,])(?![0-9]{1,2}\.[0-9]{1,2}\.[0-9]{4}(?![0-9]))"  # a date
    r"v?[0-9]{1,9}(?:\.[0-9]{1,9}){2,9}(?![^\W_])(?!\.[0-9])"
)
_VERSION_MARK = re.compile(r"(?<![^\W_])v(?=[0-9]{1,9}\.[0-9])")
_CLOCK = re.compile(r"(?<![\w.:,])[0-9]{1,9}(?: ?: ?[0-9]{1,9}){1,3}(?![^\W_]|:[0-9]|\.[0-9])(?! ?:)")
_POINT_CLOCK = re.compile(r"(?<![\w.:,])([0-9]{1,2})\.([0-5][0-9])(?= ?[ap](?:m|\.m\.?)(?![^\W_]))")
_HALF_DAY = re.compile(r"(?<![\w.:,])([0-9]{1,2}(?::[0-9]{2})?) ?([ap])\.?m(?:\.(?=\W|$)|(?![^\W_]))")
_RANGE = re.compile(
    r"(?:(?<![^\W_])(?:from|between) )?(?<![\w.,/-])(m?[0-9][0-9p]{0,20}) (?:to|and) "
    r"(?=m?[0-9][0-9p]{0,20}(?![^\W_]))"
)
_UNIT = re.compile(
    r"(?<![\w.])([0-9][0-9,.]{0,20})(km|cm|mm|kg|mg|lbs?|ft|mph|kmh|[kmg]?hz|[kmgt]b|[km]w|kwh)(?![^\W_])"
)


def unify_spellings(text: str) -> str:
    """The text with initials, signs behind letters and single Greek letters in one spelling.

    Args:
        text: in lower case, with compatibility forms unified.

    >>> unify_spellings("j. k. rowling on c++, c# and π")
    'j.k. rowling on cplusplus, csharp and pi'
    """
    text = _INITIALS.sub(r"\1", text)
    if "+" in text or "#" in text or "♯" in text:
        text = _SIGNED.sub(lambda match: match[1] + "".join(_SIGN_NAMES[sign] for sign in match[2]), text)
    return text if text.isascii() else _GREEK.sub(lambda letter: _GREEK_NAMES.get(letter[0], letter[0]), text)


def unify_notations(text: str) -> str:
    r"""The text with powers, fractions, times, versions and units in one spelling, before its numbers are read.

    >>> unify_notations(r"3 x 10^8, 10**-2, 2 1/2, \frac{3}{4}, 1/3; 7:00 p.m., 10:30, v3.11, 14.0.1, 1.000.000, 5km")
    '300000000, 0.01, 2.5, 0.75, 1/3; 7 pm, 10c30, 3.11, 14p0p1, 1000000, 5 km'
    """
    if not any(char.isdigit() for char in text):
        return _SPELLED_FRACTION.sub(_spelled_fraction, text)
    text = text.replace("−", "-")  # of a superscript
    text = _APOSTROPHE_GROUP.sub("", _LATEX_FRACTION.sub(r"\1/\2", text))
    text = _POINT_GROUPS.sub(lambda match: match[0].replace(".", ""), unify_powers(text))
    text = _POINT_CLOCK.sub(r"\1:\2", text)
    text = _VERSION_MARK.sub("", _VERSION.sub(lambda match: match[0].lstrip("v").replace(".", "p"), text))
    text = _FRACTION.sub(_decimal, _SPELLED_FRACTION.sub(_spelled_fraction, text))
    text = _HALF_DAY.sub(lambda match: f"{match[1].removesuffix(':00')} {match[2]}m", text)
    return _UNIT.sub(r"\1 \2", _CLOCK.sub(lambda match: match[0].replace(" ", "").replace(":", "c"), text))


def unify_powers(text: str) -> str:
    r"""The text with powers of ten in digits.

    >>> unify_powers(r"10^5, 3 x 10^8, 2.5 \times 10^{3}, 1.5e6")
    '100000, 300000000, 2500, 1500000'
    """
    return _SCIENTIFIC.sub(_scientific, _POWER.sub(_power, text))


def join_groups(text: str) -> str:
    """The text with the blanks taken out that group a number's digits by three.

    >>> join_groups("1 234 567 of 12 000.5, but 3 100 20, 0 123 and 1990 200")
    '1234567 of 12000.5, but 3 100 20, 0 123 and 1990 200'
    """
    return _BLANK_GROUPS.sub(lambda match: "".join(match[0].split()), text)


def unify_ranges(text: str) -> str:
    """The text with ranges as their two ends, once its numbers are in one spelling.

    >>> unify_ranges("from 1990 to 1995, 3 to 5 and between 2 and 4")
    '1990 1995, 3 5 and 2 4'
    """
    return _RANGE.sub(_ends, text)


def _ends(match: re.Match[str]) -> str:
    is_range = " to " in match[0] or match[0].startswith("between")
    return f"{match[1]} " if is_range else match[0]


def _power(match: re.Match[str]) -> str:
    return _times_ten_to(match[1] or "1", int(match[2] or match[3])) or match[0]


def _scientific(match: re.Match[str]) -> str:
    return _times_ten_to(match[1], int(match[2])) or match[0]


def _times_ten_to(factor: str, exponent: int) -> str:
    """The number in digits; "" of one that would have too many."""
    if abs(exponent) > LARGEST_EXPONENT:
        return ""
    value = f"{Decimal(factor).scaleb(exponent):f}"
    return value.rstrip("0").rstrip(".") if "." in value else value


def _decimal(match: re.Match[str]) -> str:
    below = int(match[3])
    if not below:
        return match[0]
    value = Fraction(int(match[2]), below) + int(match[1] or 0)
    if value.denominator == 1:  # 24/7 has no decimal, and 6/3 is rather a date or a score
        return match[0]
    places = next((places for places in range(7) if (value * 10**places).denominator == 1), None)
    return match[0] if places is None else f"{Decimal(value.numerator) / Decimal(value.denominator):.{places}f}"


def _spelled_fraction(match: re.Match[str]) -> str:
    if match[3]:
        return "0.75"
    return "0.5" if match[2] == "half" else "0.25"
