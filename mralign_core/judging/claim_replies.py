"""What a judge's reply says of claims: those of a sentence, or whether one is supported; or why it can't be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mralign_core.judging.replies import MAX_REASON
from mralign_core.llm.json_reply import ReplyProblem, Shape, plain, read_reply
from mralign_core.llm.tidying import as_utf8
from mralign_core.schemas.claims import CLAIM_VERDICTS

MAX_CLAIM = 1000
"""Characters of a claim; a longer one is no single fact."""
CLAIMS_SHAPE = Shape("claims", (("claim", "text", "fact"), ("sentence",)))
CHECK_SHAPE = Shape("checks", (("verdict", "label", "support"), ("reason", "explanation")))
CLAIMS_SCHEMA: dict[str, Any] = {
    "title": "ClaimsReply",
    "type": "object",
    "properties": {"claims": {"type": "array", "items": {"type": "string"}}},
    "required": ["claims"],
    "additionalProperties": False,
}
CHECK_SCHEMA: dict[str, Any] = {
    "title": "CheckReply",
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "verdict": {"type": "string", "enum": [name.upper() for name in CLAIM_VERDICTS]},
    },
    "required": ["reason", "verdict"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class ClaimCheck:
    """Whether the passages support a claim: one of :data:`~mralign_core.schemas.claims.CLAIM_VERDICTS`; and why.

    Two are equal that say the same, for whatever reason.
    """

    verdict: str
    reason: str = field(default="", compare=False)


def parse_claims(text: str, finish_reason: str) -> tuple[str, ...]:
    """The claims that a reply lists; none is an answer.

    Raises:
        ReplyProblem: the reply can't be used.

    >>> parse_claims('Here: {"claims": ["Rome lies in  Italy."]}', "stop"), parse_claims('{"claims": []}', "stop")
    (('Rome lies in Italy.',), ())
    """
    return read_reply(text, finish_reason, CLAIMS_SHAPE, _claims)


def _claims(content: dict[str, Any]) -> tuple[str, ...]:
    items = content["claims"]
    if not isinstance(items, list):
        raise ReplyProblem("wrong_form", f"claims must be a list of texts, got {items!r:.60}")
    texts = [item.get("claim") if isinstance(item, dict) else item for item in items]
    claims: list[str] = []
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise ReplyProblem("wrong_form", f"each claim must be a text, got {text!r:.60}")
        if len(text) > MAX_CLAIM:
            raise ReplyProblem("wrong_form", f"a claim is one fact in a short sentence, got {len(text):,} characters")
        claims.append(as_utf8(" ".join(text.split())))
    return tuple(claims)


def parse_check(text: str, finish_reason: str) -> ClaimCheck:
    """Whether a reply calls a claim supported.

    Raises:
        ReplyProblem: the reply can't be used.

    >>> parse_check('{"reason": "The second passage says so.", "verdict": "Supported"}', "stop").verdict
    'supported'
    """

    def read(content: dict[str, Any]) -> ClaimCheck:
        items = content["checks"]
        if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
            raise ReplyProblem("wrong_form", f"it must be one JSON object with a verdict, got {items!r:.60}")
        checks = [_check(item) for item in items]
        if any(check != checks[0] for check in checks):
            raise ReplyProblem("ambiguous", "it gives two verdicts that differ; give one")
        return checks[0]

    return read_reply(text, finish_reason, CHECK_SHAPE, read)


def _check(item: dict[str, Any]) -> ClaimCheck:
    given = plain(str(item.get("verdict", "")))
    verdict = next((name for name in CLAIM_VERDICTS if plain(name) == given), None)
    if verdict is None:
        known = ", ".join(name.upper() for name in CLAIM_VERDICTS)
        raise ReplyProblem("wrong_form", f"verdict must be one of {known}, got {item.get('verdict')!r:.60}")
    return ClaimCheck(verdict, as_utf8(str(item.get("reason", ""))[:MAX_REASON]))
