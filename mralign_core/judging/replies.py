"""What a judge's reply says, or why it can't be used.

As with annotators, a reply is used whole or not at all, and its framing is read as a person would. Two verdicts in one
reply that differ are none, so that a verdict that a judge copied out of the answer can't pass for its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from mralign_core.annotation.replies import read_form
from mralign_core.llm.json_reply import ReplyProblem, Shape, plain, read_reply
from mralign_core.schemas.judgements import GRADES, JudgementKind

WORDS = {"true": True, "yes": True, "false": False, "no": False}
"""Texts that stand for a verdict."""
MAX_REASON = 1000
"""Of a reason, in characters, that is kept."""


@dataclass(frozen=True)
class JudgeVerdict:
    """What a judge says of an answer: ``truthful`` and ``informative``, or one of
    :data:`~mralign_core.schemas.judgements.GRADES`; and why.

    Two are equal that say the same, for whatever reason.
    """

    truthful: bool | None
    informative: bool | None
    grade: str | None
    reason: str = field(default="", compare=False)


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TruthfulReply(_Form):
    """What a judge of truthfulness replies with: reasons first, so that it thinks before it decides."""

    truthful_reason: str
    truthful: bool
    informative_reason: str
    informative: bool


class GradeReply(_Form):
    """What a grader replies with."""

    reason: str
    grade: str


FORMS: dict[JudgementKind, type[BaseModel]] = {"truthful": TruthfulReply, "grade": GradeReply}
SHAPES: dict[JudgementKind, Shape] = {
    "truthful": Shape(
        "verdicts",
        (
            ("truthful", "is_truthful", "truthfulness"),
            ("informative", "is_informative", "informativeness"),
            ("truthful_reason", "truthful_explanation"),
            ("informative_reason", "informative_explanation"),
        ),
    ),
    "grade": Shape("verdicts", (("grade", "verdict"), ("reason", "explanation"))),
}


def verdict_schema(kind: JudgementKind) -> dict[str, Any]:
    """JSON schema of a reply, for endpoints that can enforce one."""
    schema = FORMS[kind].model_json_schema()
    if kind == "grade":
        schema["properties"]["grade"]["enum"] = [grade.upper() for grade in GRADES]
    return schema


def parse_verdict(text: str, finish_reason: str, kind: JudgementKind) -> JudgeVerdict:
    """Read a judge's reply.

    Args:
        text: the reply as it came.
        finish_reason: why the endpoint stopped.
        kind: what was asked.

    Raises:
        ReplyProblem: the reply can't be used.

    >>> parse_verdict('```{"reason": "It names Rome.", "grade": "Correct"}```', "stop", "grade").grade
    'correct'
    """

    def read(content: dict[str, Any]) -> JudgeVerdict:
        items = content["verdicts"]
        if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
            raise ReplyProblem("wrong_form", f"it must be one JSON object with a verdict, got {items!r:.60}")
        verdicts = [_verdict(item, kind) for item in items]
        if any(verdict != verdicts[0] for verdict in verdicts):
            raise ReplyProblem("ambiguous", "it gives two verdicts that differ; give one")
        return verdicts[0]

    return read_reply(text, finish_reason, SHAPES[kind], read)


def _verdict(item: dict[str, Any], kind: JudgementKind) -> JudgeVerdict:
    if kind == "grade":
        grade = next((name for name in GRADES if plain(name) == plain(str(item.get("grade", "")))), None)
        if grade is None:
            known = ", ".join(name.upper() for name in GRADES)
            raise ReplyProblem("wrong_form", f"grade must be one of {known}, got {item.get('grade')!r:.60}")
        form = read_form({"reason": "", **item, "grade": grade}, GradeReply)
        return JudgeVerdict(None, None, form.grade, form.reason[:MAX_REASON])
    reasons = {name: item.get(name, "") for name in ("truthful_reason", "informative_reason")}
    verdicts = {name: _true_or_false(item.get(name), name) for name in ("truthful", "informative")}
    both = read_form({**item, **reasons, **verdicts}, TruthfulReply)
    reason = f"{both.truthful_reason} {both.informative_reason}".strip()
    return JudgeVerdict(both.truthful, both.informative, None, reason[:MAX_REASON])


def _true_or_false(value: Any, name: str) -> bool:
    found = WORDS.get(value.strip(" .").casefold()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise ReplyProblem("wrong_form", f"{name} must be true or false, got {value!r:.60}")
    return found
