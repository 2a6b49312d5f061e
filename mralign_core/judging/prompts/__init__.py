"""What judges are told: versioned texts, and the messages made from them.

The rules of :mod:`mralign_core.annotation.prompts` hold here too: a changed text is a new file, instructions come first
and are the same in every request, and what is judged travels as JSON that can't break out of its markers. An answer's
variant is not in the message: a judge does not know whose answer it judges, and the same answer of two variants is the
same request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mralign_core.annotation.prompts import data_message, read_text
from mralign_core.llm.offline import Message
from mralign_core.schemas.judgements import JudgementKind

JUDGE_PROMPTS: dict[JudgementKind, str] = {"truthful": "truthful.v1", "grade": "grade.v1"}
EXTRACT_CLAIMS = "extract_claims.v1"
VERIFY_CLAIM = "verify_claim.v1"


class JudgedReply(NamedTuple):
    """What is shown of an answer: the question, what the set calls correct and incorrect, and the answer."""

    question: str
    answers: Sequence[str]
    incorrect_answers: Sequence[str]
    answer: str


def judge_messages(kind: JudgementKind, shown: JudgedReply) -> list[Message]:
    """Messages that ask for a verdict of a kind on an answer."""
    if kind == "grade":
        payload = {"question": shown.question, "gold_answers": list(shown.answers), "answer": shown.answer}
    else:
        payload = {
            "question": shown.question,
            "correct_answers": list(shown.answers),
            "incorrect_answers": list(shown.incorrect_answers),
            "answer": shown.answer,
        }
    return [{"role": "system", "content": read_text(JUDGE_PROMPTS[kind], __name__)}, data_message(payload)]


class ShownSentence(NamedTuple):
    """A sentence of an answer, its number in it, and what is shown around it."""

    number: int
    before: str
    sentence: str
    after: str


def claims_messages(question: str, shown: ShownSentence) -> list[Message]:
    """Messages that ask for the claims of a sentence."""
    payload = {"question": question, "before": shown.before, "sentence": shown.sentence, "after": shown.after}
    return [{"role": "system", "content": read_text(EXTRACT_CLAIMS, __name__)}, data_message(payload)]


def check_messages(claim: str, passages: Sequence[str]) -> list[Message]:
    """Messages that ask whether passages support a claim."""
    payload = {"claim": claim, "passages": list(passages)}
    return [{"role": "system", "content": read_text(VERIFY_CLAIM, __name__)}, data_message(payload)]
