r"""What a reply gives as its answer: behind its last lead-in or in ``\boxed{}``, as a number, or as one of the options.

Not in the paper, whose models answer in tags. The rules are those of each benchmark's field, and a preamble changes
nothing: the last statement of an answer counts, wherever it stands. Decisions:

* A stated answer stands behind ``####``, in ``\boxed{}``, or behind "answer is" or "answer:" where that begins a line
  or a sentence ("The answer is", "Final answer:", "So, the correct answer is"); of several, the last. It ends with its
  line.
* GSM8K: the number behind ``####``, in ``\boxed{}``, or right behind "answer is"; without any of these the last number
  that is written in digits. Ordinals ("the 4th") and digits in words ("B52") are none; currencies, "%" and units don't
  count.
* Options: a letter that is stated, then an option's text that is stated, then one letter that the reply chooses, then
  the one option that it names. A reply that names several options, or a letter beside another option's text, chooses
  none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from string import ascii_uppercase

from mralign_core.method.matching import contains_match, exact_match
from mralign_core.method.quantities import unify_quantities

MOST_OPTIONS = len(ascii_uppercase)

# Braces within three levels; possessive, so that time is linear in the length of any reply.
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})++)\}")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([^{}]+?)\s*\}\s*\{\s*([^{}]+?)\s*\}")
_LEAD_IN = re.compile(
    r"""
    (?: ^ | (?<=[.!?;,\n])[ \t]* | (?<=\*\*) )[ \t>*_#-]{0,9}
    (?: (?:so|thus|hence|therefore|finally|in[ ]conclusion|here)[ ]*,?[ ]+ (?:is[ ]+)? )?
    (?: (?:my|the|our|your)[ ]+ )? (?: (?:final|correct|right|short|best)[ ]+ ){0,2}
    answer [*_]{0,3} (?: [ ]*[:=] | [ ]+(?:is|would[ ]be|must[ ]be)\b [ ]*:? ) [*_]{0,3} [ \t]*
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_HASHES = re.compile(r"#{4}[ \t]*(?=[^\s#])")
_MARKS = " \t\r\n*_`\"'“”‘’$"
_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,99}|\d{1,300})(?:\.\d{1,300})?|\.\d{1,300}"
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NUMBER = re.compile(
    rf"""
    (?<![\w.])(?<!\d,) (?P<sign> (?<![\d)%][ ]) [-−] (?=[$€£]?[\d.]) )? [$€£]?
    (?: (?P<whole>\d{{1,300}}) [ ]+ (?=\d+/\d) )? (?P<digits>{_DIGITS}) (?:/(?P<below>\d{{1,300}}))?
    (?: [ ](?P<scale>{"|".join(_SCALES)})\b )?
    (?![\d/]) (?!\.\d) (?![ ]?(?:st|nd|rd|th)\b)
    """,
    re.VERBOSE,
)
_STATED_NUMBER = re.compile(r"(?P<minus>m)?(?P<whole>[0-9]{1,300})(?:p(?P<below>[0-9]{1,300}))?(?![a-z0-9])")
_BEFORE_NUMBER = re.compile(
    r"[\s*_$€£({\[=~≈\"'`]*(?:(?:about|approximately|exactly|roughly|equal to)\s+)?[\s*_$€£({]*"
)
_LETTER_ALONE = re.compile(r"(?:(?:option|choice|letter)\s+)?[(\[]?([A-Za-z])[)\].:]*", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(
    r"(?:(?:option|choice)\s+)?(?:[(\[]([A-Za-z])[)\]]|([A-Z])[.):])[:.]?\s+(\S.*)", re.DOTALL
)
_CHOICE = re.compile(
    r"(?:answer|option|choice|choose|pick|select|go with)\b[\s*_:\"'`]*"
    r"(?:(?:is|would be|option|choice)\b[\s*_:\"'`]*){0,2}"
    r"(?:[(\[]([A-Z])[)\]]|([A-Z])(?=[.,;:)\"'*`]|\s*$|\s+(?:because|since|as)\b|\s*\n))"
)


def stated_answer(reply: str) -> str:
    r"""What a reply gives as its answer, without the words that lead to it; all of it where nothing does.

    >>> stated_answer("It was built in 1889. The final answer is: **Paris**.")
    'Paris**.'
    >>> stated_answer(r"So $\boxed{\text{Paris}}$."), stated_answer("in Paris")
    ('Paris', 'in Paris')
    """
    found = [(match.start(), match[1]) for match in _BOX.finditer(reply) if match[1].strip()]
    for pattern in (_LEAD_IN, _HASHES):
        for match in pattern.finditer(reply):
            line = reply[match.end() :].partition("\n")[0].strip(_MARKS)
            if line and not _BOX.search(line):
                found.append((match.start(), line))
    return _without_commands(max(found)[1]) if found else reply


def final_number(reply: str) -> Fraction | None:
    r"""The number that a reply to a calculation ends with, as GSM8K's field reads it; None where there is none.

    Implements the answer extraction of GSM8K (Cobbe et al. 2021): the number behind ``####``; and where a model does
    not write that, in ``\boxed{}``, behind "The answer is", or the last in the reply.

    >>> final_number("16 - 7 = 9, and 9 * 2 = 18.\n#### 18"), final_number("The answer is $1,250.50.")
    (Fraction(18, 1), Fraction(2501, 2))
    >>> final_number("She makes 9 * 2 = $18 every day."), final_number("I don't know.")
    (Fraction(18, 1), None)
    """
    stated = stated_answer(reply)
    if stated != reply and (number := _leading_number(stated)) is not None:
        return number
    numbers = reversed(list(_NUMBER.finditer(_with_fractions(reply))))
    return next((number for match in numbers if (number := _value(match)) is not None), None)


def chosen_option(reply: str, options: Sequence[str]) -> int | None:
    """Which of the options a reply chooses, by its letter or its text; None where it chooses none, or several.

    Args:
        reply: the answer.
        options: their texts, shown as A, B, C, …; those that are alike are one choice.

    Returns:
        The place of the option, of those alike the first.

    >>> options = ["a bank", "a river", "a mall"]
    >>> chosen_option("The answer is (C).", options), chosen_option("It's kept in a bank.", options)
    (2, 0)
    >>> chosen_option("a bank or a mall", options) is None
    True
    """
    stated = stated_answer(reply).strip(_MARKS)
    if (letter := _LETTER_ALONE.fullmatch(stated.strip(_MARKS + ".,;!?"))) and not _equal_options(stated, options):
        return _index(letter[1], options)
    if pair := _LETTER_AND_TEXT.match(stated):
        return _agreeing(_index(pair[1] or pair[2], options), _named_options(pair[3], options))
    if len(equal := _equal_options(stated, options)) == 1:
        return equal[0]
    chosen = {_index(match[1] or match[2], options) for match in _CHOICE.finditer(reply)}
    if len(chosen) == 1:
        return chosen.pop()
    named = _named_options(stated, options) or _named_options(reply, options)
    return named[0] if len(named) == 1 else None


def with_options(question: str, options: Sequence[str]) -> str:
    r"""The question as it is asked: its options below it, a letter each; the question alone where it has none.

    >>> with_options("Where is money kept?", ["a bank", "a mall"])
    'Where is money kept?\nA. a bank\nB. a mall'
    """
    shown = (f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
    return "\n".join([question, *shown])


def _without_commands(text: str) -> str:
    return _TEXT_COMMAND.sub(r"\1", text).strip()


def _with_fractions(text: str) -> str:
    return _LATEX_FRACTION.sub(r"\1/\2", text.replace("{,}", ",").replace("\\$", "$"))


def _leading_number(stated: str) -> Fraction | None:
    """The number that a stated answer begins with, in digits or in words."""
    text = _with_fractions(stated)
    start = _BEFORE_NUMBER.match(text)
    rest = text[start.end() if start else 0 :]
    if number := _NUMBER.match(rest):
        return _value(number)
    spelled = _STATED_NUMBER.match(unify_quantities(rest.lower()))
    if not spelled:
        return None
    value = Fraction(f"{spelled['whole']}.{spelled['below'] or 0}")
    return -value if spelled["minus"] else value


def _value(match: re.Match[str]) -> Fraction | None:
    below = int(match["below"] or 1)
    if not below:
        return None
    value = Fraction(match["digits"].replace(",", "")) / below + int(match["whole"] or 0)
    value *= _SCALES.get(match["scale"], 1)
    return -value if match["sign"] else value


def _index(letter: str, options: Sequence[str]) -> int | None:
    """The place of a letter; of options that are alike, the first."""
    place = ascii_uppercase.index(letter.upper())
    return options.index(options[place]) if place < len(options) else None


def _equal_options(text: str, options: Sequence[str]) -> list[int]:
    return [options.index(option) for option in dict.fromkeys(options) if exact_match(text, [option])]


def _named_options(text: str, options: Sequence[str]) -> list[int]:
    """The options that stand in a text, but for those that stand in another one of these."""
    named = [option for option in dict.fromkeys(options) if contains_match(text, [option])]
    return [
        options.index(option)
        for option in named
        if not any(other != option and contains_match(other, [option]) for other in named)
    ]


def _agreeing(chosen: int | None, named: Sequence[int]) -> int | None:
    return chosen if not named or chosen in named else None
