"""Claims of a long answer, sentence by sentence, and whether evidence supports them (VeriScore, Song et al. 2024).

Decisions and departures:

* An answer is cut into sentences by :func:`split_answer`. Of each a judge lists the claims that can be looked up; it is
  shown the question, three sentences before it and one after, as in VeriScore. The prompts are our own.
* Claims that are alike but for case and punctuation are one claim of the answer.
* For every claim passages are found (:mod:`~mralign_core.judging.evidence`), and the same judge says whether they
  support it. Contradicted and inconclusive both count as not supported. Where nothing is found nobody is asked.
* An answer of which any sentence or claim has no usable reply has no verdict.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from mralign_core.annotation.annotate import gather_all
from mralign_core.annotation.conversing import Read, converse
from mralign_core.config import AskAgain, EndpointConfig
from mralign_core.judging.claim_replies import (
    CHECK_SCHEMA,
    CLAIMS_SCHEMA,
    ClaimCheck,
    parse_check,
    parse_claims,
)
from mralign_core.judging.evidence import Evidence
from mralign_core.judging.prompts import ShownSentence, check_messages, claims_messages
from mralign_core.llm.client import Client
from mralign_core.llm.json_reply import ReplyProblem
from mralign_core.llm.offline import Message
from mralign_core.llm.request import Received, Request
from mralign_core.retrieval import Snippet

NUM_BEFORE, NUM_AFTER = 3, 1
"""Sentences that are shown around one."""
NOTHING_FOUND = ClaimCheck("inconclusive", "The search found nothing; nobody was asked.")
_ABBREVIATIONS = (
    "Dr|Mr|Mrs|Ms|Prof|St|Sr|Jr|Gen|Col|Lt|Sgt|Gov|Sen|Rep|Rev|No|Vol|vs|etc|ca|approx|e\\.g|i\\.e|al|Inc|Ltd|Co"
)
_END = re.compile(r"(?<=[.!?])[\"'”’)\]*]*\s+(?=[\"'“‘(\[*]*[^\W_a-z])|(?<=[。！？])|\n")
"""A full stop, question or exclamation mark, then a blank and no small letter; or the end of a line."""
_NO_END = re.compile(rf"(?:\b(?:{_ABBREVIATIONS})|(?<![^\W_])[^\W\d_a-z])\.$|^\W*\d+\.$")
"""What ends in a full stop and is no sentence's end: an abbreviation, an initial, a number of a list."""
Parsed = TypeVar("Parsed")


class CheckedClaim(NamedTuple):
    """A claim of the sentence with this number, what was found for it, and the verdict."""

    claim_id: str
    sentence: int
    claim: str
    snippets: Sequence[Snippet]
    verdict: str
    reason: str
    request_digest: str


class CheckedAnswer(NamedTuple):
    """The claims of an answer, every reply to what was asked, and if one can't be used, that one."""

    claims: list[CheckedClaim]
    replies: list[Received]
    num_requests: int
    failed: Read[Any] | None


class _Answered(NamedTuple, Generic[Parsed]):
    parsed: Parsed | None
    replies: Sequence[Read[Any]]


def split_answer(answer: str) -> list[str]:
    r"""The sentences of an answer that have a letter in them, in order.

    >>> split_answer("Dr. E. Bell was born in 1901. She\n1. Painted; 2. wrote.\n---\n\"Why?\" It is open, e.g. here.")
    ['Dr. E. Bell was born in 1901.', 'She', '1. Painted; 2. wrote.', '"Why?"', 'It is open, e.g. here.']
    """
    sentences: list[str] = []
    start = 0
    for end in [*_END.finditer(answer), None]:
        part = answer[start : end.end() if end else None]
        if end and "\n" not in end.group() and _NO_END.search(part.rstrip()):
            continue
        sentences.append(" ".join(part.split()))
        start = end.end() if end else start
    return [sentence for sentence in sentences if re.search(r"[^\W\d_]", sentence)]


def windows_of(answer: str) -> list[ShownSentence]:
    """Each sentence with those around it.

    >>> windows_of("One. Two. Three.")[1]
    ShownSentence(number=1, before='One.', sentence='Two.', after='Three.')
    """
    all_of = split_answer(answer)
    return [
        ShownSentence(
            n, " ".join(all_of[max(0, n - NUM_BEFORE) : n]), each, " ".join(all_of[n + 1 : n + 1 + NUM_AFTER])
        )
        for n, each in enumerate(all_of)
    ]


class ClaimChecker:
    """Lists the claims of an answer and has them checked, by any of some judges.

    Args:
        endpoints: the judges.
        ask_again: what is asked again.
        evidence: finds passages; None where nothing is to be sent.
    """

    def __init__(self, endpoints: Sequence[EndpointConfig], ask_again: AskAgain, evidence: Evidence | None) -> None:
        from mralign_core.llm import endpoint as api  # takes seconds: see its docstring

        self._ask_again, self._evidence = ask_again, evidence
        self._list_params, self._check_params = (
            {endpoint.model: api.request_params(endpoint, schema) for endpoint in endpoints}
            for schema in (CLAIMS_SCHEMA, CHECK_SCHEMA)
        )

    def list_request(self, endpoint: EndpointConfig, question: str, window: ShownSentence) -> Request:
        """What is asked about a sentence."""
        return Request(endpoint, claims_messages(question, window), self._list_params[endpoint.model])

    def check_request(self, endpoint: EndpointConfig, claim: str, passages: Sequence[str]) -> Request:
        """What is asked about a claim."""
        return Request(endpoint, check_messages(claim, passages), self._check_params[endpoint.model])

    async def check(self, client: Client, endpoint: EndpointConfig, question: str, answer: str) -> CheckedAnswer:
        """The claims of an answer and their verdicts; without any where some reply can't be used."""
        windows = windows_of(answer)
        listing = [self.list_request(endpoint, question, window) for window in windows]
        listed = await gather_all([self._ask(client, request, parse_claims) for request in listing])
        if (failed := _first_failed(listed)) is not None:
            return _answer([], listed, failed)
        distinct = _distinct([(window.number, each.parsed or ()) for window, each in zip(windows, listed, strict=True)])
        found = await gather_all([self._look_up(client, endpoint, *each) for each in distinct])
        asked = [answered for _, answered in found if answered is not None]
        return _answer([claim for claim, _ in found], [*listed, *asked], _first_failed(asked))

    async def _look_up(
        self, client: Client, endpoint: EndpointConfig, sentence: int, claim: str
    ) -> tuple[CheckedClaim, _Answered[ClaimCheck] | None]:
        assert self._evidence is not None
        claim_id, snippets = claim_id_of(claim), await self._evidence.find(claim)
        if not snippets:
            return CheckedClaim(claim_id, sentence, claim, (), NOTHING_FOUND.verdict, NOTHING_FOUND.reason, ""), None
        request = self.check_request(endpoint, claim, [snippet.text for snippet in snippets])
        answered = await self._ask(client, request, parse_check)
        check = answered.parsed or ClaimCheck("inconclusive")  # of a reply that can't be used the answer has no verdict
        digest = answered.replies[0].received.request_digest
        return CheckedClaim(claim_id, sentence, claim, snippets, check.verdict, check.reason, digest), answered

    async def _ask(self, client: Client, request: Request, parse: Callable[[str, str], Parsed]) -> _Answered[Parsed]:
        def read(received: Received) -> Parsed:
            return parse(received.reply, received.finish_reason)

        messages: Sequence[Message] = request.messages
        replies = await converse(client, request.endpoint, messages, request.params, read, self._ask_again)
        return _Answered(replies[-1].parsed, replies)


def claim_id_of(claim: str) -> str:
    """The same for claims that are searched for alike."""
    return hashlib.sha256(" ".join(claim.split()).encode()).hexdigest()[:16]


def _distinct(listed: Sequence[tuple[int, Sequence[str]]]) -> list[tuple[int, str]]:
    """Each claim once, with the first sentence that it is of."""
    seen: dict[str, tuple[int, str]] = {}
    for number, claims in listed:
        for claim in claims:
            seen.setdefault(" ".join(re.findall(r"\w+", claim.casefold())), (number, claim))
    return list(seen.values())


def _first_failed(answered: Sequence[_Answered[Any]]) -> Read[Any] | None:
    """The reply that keeps an answer from its verdict: the first that a later run would ask for again, if any."""
    problems = [each.replies[-1] for each in answered if each.replies[-1].problem is not None]
    return next((read for read in problems if not _problem_of(read).is_final), problems[0] if problems else None)


def _problem_of(read: Read[Any]) -> ReplyProblem:
    assert read.problem is not None
    return read.problem


def _answer(claims: list[CheckedClaim], asked: Sequence[_Answered[Any]], failed: Read[Any] | None) -> CheckedAnswer:
    by_request = {each.replies[0].received.request_digest: each.replies for each in asked}
    replies = [read.received for reads in by_request.values() for read in reads]
    return CheckedAnswer([] if failed else claims, replies, len(by_request), failed)
