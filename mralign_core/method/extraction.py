r"""What a reply gives as its answer: behind its last lead-in or in ``\boxed{}``, as a number, or as one of the options.

Not in the paper, whose models answer in tags. The rules are those of each benchmark's field, and a preamble changes
nothing: the last statement of an answer counts, wherever it stands. Decisions:

* A stated answer stands in ``\boxed{}``, or behind "answer is" or "answer:" where that begins a line or a sentence
  ("The answer is", "Final answer:", "So, the correct answer is"); of several, the last. It ends with its line; where
  nothing is left of that, it is the next line that has something.
* GSM8K: the number behind ``####``, where a number and its unit are all that follows, since ``####`` begins a heading
  too; else the stated one, of a calculation what is behind the last ``=``; else the last number that is written in
  digits. Ordinals ("the 4th") and digits in words ("B52") are none; currencies, "%" and units don't count.
* Options: an option's text that is all that is stated, then a letter that is stated, or has the first or last line to
  itself, then one letter that the reply chooses, then the one option that it names. A reply that names several options,
  or a letter beside another option's text, chooses none.
* A reply that is nothing but a number in words ("eighteen") is that number.
* "not Lyon but Paris" gives Paris, "not only Lyon but also Paris" is left as it is.
* Everything takes time that is linear in the length of the reply: blanks in a pattern are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from fractions import Fraction
from string import ascii_uppercase

from mralign_core.method.matching import contains_match, exact_match
from mralign_core.method.quantities import unify_quantities
from mralign_core.method.spellings import join_groups, unify_powers

MOST_OPTIONS = len(ascii_uppercase)
LONGEST_STATED = 1000
"""Characters of a stated answer in which its number is looked for."""

# Braces within three levels; possessive, so that nothing is tried twice.
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})++)\}")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s{0,9}\{([^{}]{1,300})\}\s{0,9}\{([^{}]{1,300})\}")
_LATEX_SPACE = re.compile(r"\\[,!;:]")
_LEAD_IN = re.compile(
    r"""
    (?: ^ | (?<=[.!?;,\n]) | (?<=\*\*)(?!\*) )[ \t>*_#-]{0,18}+
    (?: (?:so|thus|hence|therefore|finally|in[ ]conclusion|here)[ ]{0,3},?[ ]{1,9} (?:is[ ]{1,9})? )?
    (?: (?:my|the|our|your)[ ]{1,9} )? (?: (?:final|correct|right|short|best)[ ]{1,9} ){0,2}
    answer [*_]{0,3} (?: [ ]{0,9}[:=] | [ ]{1,9}(?:is|would[ ]be|must[ ]be)\b [ ]{0,9}:? ) [*_]{0,3}
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
# What is denied in favour of something else: at most eight words, at the start of a clause or behind a form of "be".
_DENIED = re.compile(
    r"""
    (?: (?P<before> (?:^|[.,:;(>*_\n]) \s{0,3} | \b(?:is|was|are|were|it'?s|be|answer) \s{1,3} ) (?:\bnot\b)
      | \b(?:is|was|are|were)n['’]t )
    \s{1,3} (?!(?:only|just|merely|simply|necessarily|all|every|sure|certain|known|clear|really)\b)
    (?: (?:[^\s.!?;]{1,40}|\w{1,3}\.) [ ]{1,3} ){1,8}? but \s{1,3} (?:(?:rather|instead)\b,?\s{1,3})?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_MARKS = " \t\r\n*_`\"'“”‘’$"
_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,99}|\d{1,300})(?:\.\d{1,300})?|\.\d{1,300}"
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NUMBER = re.compile(
    rf"""
    (?<![\w.])(?<!\d,) (?P<sign> (?<![\d)%][ ]) [-−] (?=[$€£]?[\d.]) )? [$€£]?
    (?: (?P<whole>\d{{1,300}}) [ ]+ (?=\d+/\d) )? (?P<digits>{_DIGITS}) (?:/(?P<below>\d{{1,300}}))?
    (?: [ ](?P<scale>(?i:{"|".join(_SCALES)}))\b )?
    (?![\d/]) (?!\.\d) (?![ ]?(?:st|nd|rd|th)\b)
    """,
    re.VERBOSE,
)
_STATED_NUMBER = re.compile(r"(?P<minus>m)?(?P<whole>[0-9]{1,300})(?:p(?P<below>[0-9]{1,300}))?(?![a-z0-9])")
_BEFORE_NUMBER = re.compile(
    r"[\s*_$€£({\[=~≈\"'`]*(?:(?:about|approximately|exactly|roughly|equal to)\s+)?[\s*_$€£({]*"
)
_UNIT = re.compile(r"[%°]?[^\W\d_]*[.²³]?(?:[ /][^\W\d_]+[.²³]?){0,3}")
_OPERATION = re.compile(r"\d\s{0,9}(?:[+*×÷·−-]|\\(?:times|cdot|div)\b)\s{0,9}\d")
_CLAUSE_END = re.compile(r"[,;.!?]\s|\b(?:since|because|as|so|where|if)\b|\n")
_REASON = re.compile(r"\b(?:since|because)\b", re.IGNORECASE)
_LETTER_ALONE = re.compile(r"(?:(?:option|choice|letter)\s+)?[(\[]?([A-Za-z])[)\].:]*", re.IGNORECASE)
_NOT_THAT = r"(?![)\]*_\"]{0,3}\s{1,9}(?:isn't|(?:is|was|would be|seems)\s{1,9}(?:wrong|incorrect|false|not|too))\b)"
_LETTER_AND_TEXT = re.compile(
    rf"(?:(?i:option|choice)\s{{1,9}})?(?:[(\[]([A-Za-z])[)\]]|([A-Z])[.):]){_NOT_THAT}[:.]?\s{{1,9}}(\S.*)"
)
_CHOICE = re.compile(
    rf"""
    (?: (?i:answer|option|choice|choose|pick|select|go[ ]with|it'?s|it[ ]is|it[ ]would[ ]be|it[ ]must[ ]be)\b
        [\s*_:"'`]{{0,9}} (?: (?:is|would[ ]be|option|choice)\b[\s*_:"'`]{{0,9}} ){{0,2}}
        (?: [(\[]([A-Z])[)\]]{_NOT_THAT.replace(" ", "[ ]")}
        | ([A-Z])(?=[.,;:)"'*`]|\s{{0,9}}(?:$|\n)|\s{{1,9}}(?:because|since|as)\b) ) )
    | (?<![\w'’-])([A-Z])[)\]*_"]{{0,3}}[ ](?:is|would[ ]be|must[ ]be)[ ](?:(?:clearly|probably|most[ ]likely)[ ])?
      (?:the[ ](?:correct|right|best|answer)|correct|right)\b
    """,
    re.VERBOSE,
)


def stated_answer(reply: str) -> str:
    r"""What a reply gives as its answer, without the words that lead to it; all of it where nothing does.

    >>> stated_answer("It was built in 1889. The final answer is: **Paris**.")
    'Paris**.'
    >>> stated_answer(r"So $\boxed{\text{Paris}}$."), stated_answer("in Paris")
    ('Paris', 'in Paris')
    """
    box = next((match for match in reversed(list(_BOX.finditer(reply))) if match[1].strip()), None)
    leads = list(_LEAD_IN.finditer(reply))
    ends = [*(lead.start() for lead in leads[1:]), len(reply)]
    for lead, end in reversed(list(zip(leads, ends, strict=False))):
        if box and box.start() > lead.start():
            break
        line = next(filter(None, (line.strip(_MARKS) for line in reply[lead.end() : end].split("\n"))), "")
        if line and not _BOX.search(line):
            return _without_commands(line)
    return _without_commands(box[1]) if box else reply


def without_denied(text: str) -> str:
    """The text without what it denies in favour of something else.

    >>> without_denied("Not Lyon but Paris."), without_denied("It is not Lyon, but rather Paris.")
    ('Paris.', 'It is Paris.')
    >>> without_denied("not only Lyon but also Paris")
    'not only Lyon but also Paris'
    """
    return _DENIED.sub(lambda match: match["before"] or "", text)


def final_number(reply: str) -> Fraction | None:
    r"""The number that a reply to a calculation ends with, as GSM8K's field reads it; None where there is none.

    Implements the answer extraction of GSM8K (Cobbe et al. 2021): the number behind ``####``; and where a model does
    not write that, in ``\boxed{}``, behind "The answer is", or the last in the reply.

    >>> final_number("16 - 7 = 9, and 9 * 2 = 18.\n#### 18"), final_number("The answer is $1,250.50.")
    (Fraction(18, 1), Fraction(2501, 2))
    >>> final_number("She makes 9 * 2 = $18 every day."), final_number("Eighteen."), final_number("I don't know.")
    (Fraction(18, 1), Fraction(18, 1), None)
    """
    if (number := _number_behind_hashes(reply)) is not None:
        return number
    stated = stated_answer(reply)
    if stated != reply and (number := stated_number(stated)) is not None:
        return number
    numbers = reversed(list(_NUMBER.finditer(_plain(reply))))
    last = next((number for match in numbers if (number := _value(match)) is not None), None)
    return _number_in_words(reply) if last is None else last


def stated_number(stated: str) -> Fraction | None:
    r"""The number that a stated answer, or a gold one, begins with, in digits or words; None where it is no number.

    Of a calculation it is the result: what is behind the last ``=``, unless that is a calculation itself.

    >>> [int(stated_number(text)) for text in ("18 eggs", "seven", "10^5", r"9 \times 2 = 18", "18, since x = 3")]
    [18, 7, 100000, 18, 18]
    >>> stated_number("Paris") is None
    True
    """
    text = _plain(stated)
    is_calculation = "=" in _CLAUSE_END.split(text, maxsplit=1)[0]
    result = text.rpartition("=")[2]
    number = _leading_number(result) if is_calculation and not _OPERATION.search(result) else None
    return _leading_number(text) if number is None else number


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
    reply = without_denied(reply)
    stated = stated_answer(reply).strip(_MARKS)
    if len(equal := _equal_options(stated, options)) == 1:
        return equal[0]
    lines = [line.strip(_MARKS) for line in stated.split("\n") if line.strip(_MARKS)] or [""]
    alone = [found[1] for line in (lines[0], lines[-1]) if (found := _LETTER_ALONE.fullmatch(line.strip(".,;!? #>-")))]
    if alone:
        return _only({_index(letter, options) for letter in alone})
    if pair := _LETTER_AND_TEXT.match(lines[0]):
        return _option_of_pair(pair, options)
    chosen = {_index(next(filter(None, match.groups())), options) for match in _CHOICE.finditer(reply)}
    if len(chosen) == 1:
        return chosen.pop()
    # A reason may name other options: "a mall, since a bank is elsewhere".
    named = _named_options(_REASON.split(stated, maxsplit=1)[0], options)
    return _only(set(named or _named_options(stated, options) or _named_options(reply, options)))


def with_options(question: str, options: Sequence[str]) -> str:
    r"""The question as it is asked: its options below it, a letter each; the question alone where it has none.

    >>> with_options("Where is money kept?", ["a bank", "a mall"])
    'Where is money kept?\nA. a bank\nB. a mall'
    """
    shown = (f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
    return "\n".join([question, *shown])


def _without_commands(text: str) -> str:
    return _TEXT_COMMAND.sub(r"\1", text).strip()


def _plain(text: str) -> str:
    """The text with fractions and powers of ten in digits, and without what LaTeX writes for looks."""
    text = join_groups(_LATEX_SPACE.sub("", text.replace("{,}", ",").replace("\\$", "$")))
    return unify_powers(_LATEX_FRACTION.sub(lambda match: f"{match[1].strip()}/{match[2].strip()}", text))


def _number_behind_hashes(reply: str) -> Fraction | None:
    """The number behind ``####``, of which only its unit may follow."""
    _, mark, stated = reply.rstrip().rpartition("\n")[2].rpartition("####")
    text = _plain(stated).rpartition("=")[2].strip(_MARKS)
    number = _NUMBER.match(text) if mark else None
    is_all = number and _UNIT.fullmatch(text[number.end() :].strip(_MARKS))
    return _value(number) if number and is_all else None


def _leading_number(text: str) -> Fraction | None:
    start = _BEFORE_NUMBER.match(text)
    rest = text[start.end() if start else 0 :][:LONGEST_STATED]
    if number := _NUMBER.match(rest):
        return _value(number)
    return _spelled_value(_STATED_NUMBER.match(unify_quantities(rest.lower())))


def _number_in_words(reply: str) -> Fraction | None:
    """The number that is all of a reply, in words."""
    text = reply[:LONGEST_STATED].lower().strip(f"{_MARKS}.")
    return _spelled_value(_STATED_NUMBER.fullmatch(unify_quantities(text)))


def _spelled_value(spelled: re.Match[str] | None) -> Fraction | None:
    if not spelled:
        return None
    value = Fraction(f"{spelled['whole']}.{spelled['below'] or 0}")
    return -value if spelled["minus"] else value


def _value(match: re.Match[str]) -> Fraction | None:
    below = int(match["below"] or 1)
    if not below:
        return None
    value = Fraction(match["digits"].replace(",", "")) / below + int(match["whole"] or 0)
    value *= _SCALES.get((match["scale"] or "").lower(), 1)
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


def _option_of_pair(pair: re.Match[str], options: Sequence[str]) -> int | None:
    """The option of a letter with a text behind it, where they agree; of an initial, as in D. H. Lawrence, the name."""
    chosen, behind = _index(pair[1] or pair[2], options), _named_options(pair[3], options)
    if behind:
        return chosen if chosen in behind else None
    with_letter = _named_options(pair[0], options)
    return _only(set(with_letter)) if with_letter else chosen


def _only(found: Set[int | None]) -> int | None:
    return next(iter(found)) if len(found) == 1 else None
