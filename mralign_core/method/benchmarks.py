r"""How a set of questions is scored: how its answers are found and judged, and which metrics that gives (§4, App. A.2).

A set declares one of :data:`SCORINGS`. Departures and decisions:

* ``exact_match``, the paper's EM_t and EM_a: an answer is also right where what it states (behind "Final answer:", in
  ``\boxed{}``; see :mod:`mralign_core.method.extraction`) equals a gold answer, so that a preamble changes no score.
* An answer "not Lyon but Paris" gives Paris, and not Lyon; what a thinking names is not weighed so.
* ``number`` and ``option`` have one metric, the share of right answers. The thinking is not compared: a calculation
  passes through many numbers, and the options stand in the question. So there is no EM_t, Acc or Mis.
* ``truthful`` and ``claims`` can't be scored by comparing texts, which leaves them undefined. Whether an answer is
  truthful and informative, and which of its claims evidence supports, a judge says, where one is named
  (:mod:`mralign_core.judging`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

from mralign_core.method.extraction import chosen_option, final_number, stated_answer, stated_number, without_denied
from mralign_core.method.matching import DEFAULT_RULES, MatchRules, contains_match, exact_match, thought_match

ScoringName = Literal["exact_match", "number", "option", "truthful", "claims"]
SCORING_NAMES: tuple[ScoringName, ...] = get_args(ScoringName)
MATCH_METRICS = ("acc", "mis", "em_thought", "em_answer")
"""What a comparison with the gold answers gives."""
JUDGED_METRICS = ("truthful", "informative", "truthful_informative")
"""What a judge says of an answer: each of the two, and both."""
CLAIM_METRICS = ("f1_at_k", "supported_share")
"""What a judge's verdicts on an answer's claims come to; shares of an answer, where the others are 0 or 1."""
METRIC_SIGNS = {**dict.fromkeys((*MATCH_METRICS, *JUDGED_METRICS, *CLAIM_METRICS), 1), "mis": -1}
"""Metric → the sign of an improvement."""


class Gold(NamedTuple):
    """What an answer is compared with: the accepted answers, how, and the options that the question shows."""

    answers: Sequence[str]
    scoring: ScoringName = "exact_match"
    options: Sequence[str] = ()


class Judgement(NamedTuple):
    """Whether a reply is right; each null where that is not defined.

    ``contains_answer`` is the looser match, a gold answer that stands in the answer; only ``exact_match`` has one.
    """

    em_thought: bool | None
    em_answer: bool | None
    contains_answer: bool | None


class Scoring(NamedTuple):
    """One way to score a set."""

    says: str
    """What makes an answer right, in words."""
    metrics: tuple[str, ...]
    """Of :data:`METRIC_SIGNS`, those that are defined; none where answers are not scored."""
    is_right: Callable[[str | None, Gold, MatchRules], bool] | None = None
    """Whether an answer is right; None where no comparison of texts says."""


def _equals_gold(answer: str | None, gold: Gold, rules: MatchRules) -> bool:
    if answer is None:
        return False
    stated = stated_answer(answer)
    readings = dict.fromkeys((answer, stated, without_denied(stated)))
    return any(exact_match(reading, gold.answers, rules) for reading in readings)


def _has_number(answer: str | None, gold: Gold, _: MatchRules) -> bool:
    number = None if answer is None else final_number(answer)
    return number is not None and any(number == stated_number(one) for one in gold.answers)


def _chooses(answer: str | None, gold: Gold, _: MatchRules) -> bool:
    chosen = None if answer is None else chosen_option(answer, gold.options)
    return chosen is not None and gold.options[chosen] in gold.answers


SCORINGS: dict[ScoringName, Scoring] = {
    "exact_match": Scoring("the answer equals a gold answer", MATCH_METRICS, _equals_gold),
    "number": Scoring("the answer's final number is the gold one", ("em_answer",), _has_number),
    "option": Scoring("the answer chooses the right option, by letter or text", ("em_answer",), _chooses),
    "truthful": Scoring("a judge says that it is truthful, and that it is informative", JUDGED_METRICS),
    "claims": Scoring("a judge says which of its claims evidence supports", CLAIM_METRICS),
}
"""Name → how sets are scored. Sets may only be averaged whose metrics are the same."""


def judge_reply(
    answer: str | None, thinking: str | None, gold: Gold, rules: MatchRules = DEFAULT_RULES, *, thinks: bool = True
) -> Judgement:
    """Whether a reply is right, as its set is scored.

    Implements EM_t and EM_a of App. A.2 of arXiv 2510.24794 for ``exact_match``, and accuracy for the others.

    Args:
        answer: the reply's answer; None is wrong.
        thinking: what was thought before it; None names nothing.
        gold: what it is compared with; without a gold answer nothing is defined.
        rules: how texts are compared.
        thinks: whether the reply was to think at all; where it was not, EM_t is not defined.

    >>> judge_reply("Final answer: Paris", "Lyon? Paris.", Gold(["Paris"]))
    Judgement(em_thought=True, em_answer=True, contains_answer=True)
    >>> judge_reply("The answer is 18.", "16 - 7", Gold(["18"], "number"))
    Judgement(em_thought=None, em_answer=True, contains_answer=True)
    >>> judge_reply("(B)", "", Gold(["a mall"], "option", ["a bank", "a mall"])).em_answer
    True
    """
    scoring = SCORINGS[gold.scoring]
    if scoring.is_right is None or not len(gold.answers):
        return Judgement(None, None, None)
    is_right = scoring.is_right(answer, gold, rules)
    if "em_thought" not in scoring.metrics:
        return Judgement(None, is_right, is_right)
    named = thought_match(thinking, gold.answers, rules) if thinks else None
    asserted = without_denied(answer) if answer else answer
    return Judgement(named, is_right, is_right or contains_match(asserted, gold.answers, rules))


def gold_of(question: Any) -> Gold:
    """What the answer to a question is compared with.

    Args:
        question: a row of table ``questions``.

    >>> gold_of({"answers": ["18"], "scoring": "number", "options": []})
    Gold(answers=['18'], scoring='number', options=[])
    """
    return Gold(question["answers"], question["scoring"], question["options"])
