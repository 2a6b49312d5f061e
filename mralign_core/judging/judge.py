"""Verdicts of every judge on every held-out answer that needs one.

Decisions:

* A judge sees the question, the set's reference answers and the answer, not the thinking, nor whose answer it is.
* Where there is no answer (a draw that was cut off, or can't be taken apart) nobody is asked and nothing is paid: it is
  neither truthful nor informative, or not attempted, and it is counted apart. An answer that only abstains is one, and
  is judged: TruthfulQA's field counts it as truthful and not informative.
* A reply that can't be used is sent back once with the reason. What still can't be used is listed among the failures,
  with no verdict, and ends no run. A later run asks again where the model or its server failed.
* Equal answers to a question, of whatever draw and variant, are one request.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.annotation.annotate import gather_all
from mralign_core.annotation.conversing import Read, converse
from mralign_core.config import EndpointConfig, JudgeConfig
from mralign_core.errors import ConfigError
from mralign_core.judging import similarity  # registers the offline baseline
from mralign_core.judging.claims import CheckedAnswer, ClaimChecker, windows_of
from mralign_core.judging.evidence import Evidence
from mralign_core.judging.prompts import JudgedReply, judge_messages
from mralign_core.judging.replies import FORMS, JudgeVerdict, parse_verdict, verdict_schema
from mralign_core.llm import background
from mralign_core.llm.client import Client
from mralign_core.llm.offline import is_offline
from mralign_core.llm.request import Received, Request
from mralign_core.llm.tidying import as_utf8
from mralign_core.method.blanks import is_blank
from mralign_core.schemas.checks import is_null
from mralign_core.schemas.claims import CHECKED_CLAIMS, CLAIM_EVIDENCE
from mralign_core.schemas.judgements import JUDGEMENTS, JudgementKind
from mralign_core.storage import LEFT_OUT, TO_ASK_AGAIN

logger = logging.getLogger("mralign_core.judging")

JUDGED_COLUMNS = ("question_id", "kind", "question", "answers", "incorrect_answers", "replies")
"""What decides the verdicts on a variant's answers to a question; ``replies`` has each draw and its answer, or None."""
MOST_OF_REPLY = 300
"""Of a reply that can't be used, in characters, that is shown beside its problem."""
NO_ANSWER: dict[JudgementKind, JudgeVerdict] = {
    "truthful": JudgeVerdict(False, False, None, "There is no answer; nobody was asked."),
    "grade": JudgeVerdict(None, None, "not_attempted", "There is no answer; nobody was asked."),
    "claims": JudgeVerdict(None, None, None, "There is no answer; nobody was asked."),
}

JudgeFailure = Mapping[str, Any]
"""A judge without a verdict on an answer: which, the kind of problem, the reply's beginning, and whether it is
final."""


class JudgingResult(NamedTuple):
    """Rows of :data:`~mralign_core.schemas.judgements.JUDGEMENTS`, the failures, what this call paid, and of long
    answers rows of :data:`~mralign_core.schemas.claims.CHECKED_CLAIMS` and of their evidence.
    """

    judgements: pd.DataFrame
    failures: list[JudgeFailure]
    cost_usd: float
    claims: pd.DataFrame
    evidence: pd.DataFrame


class _Outcome(NamedTuple):
    rows: list[dict[str, Any]]
    failures: list[JudgeFailure]
    cost_usd: float
    claims: Sequence[dict[str, Any]] = ()
    evidence: Sequence[dict[str, Any]] = ()


def questions_to_judge(scores: pd.DataFrame, questions: pd.DataFrame, section: JudgeConfig) -> pd.DataFrame:
    """The questions whose answers are judged, with one variant's answers.

    Args:
        scores: rows of :data:`~mralign_core.schemas.scores.SCORES`, of one variant.
        questions: rows of :data:`~mralign_core.schemas.questions.QUESTIONS`, at least those that were answered.
        section: says which sets are graded.

    Returns:
        :data:`JUDGED_COLUMNS`, in the order of the questions.
    """
    kinds = _kinds(questions, section)
    replies: dict[str, list[list[Any]]] = {}
    for row in scores.sort_values("draw", kind="stable").itertuples():
        answer = None if is_null(row.answer) or is_blank(row.answer) else row.answer
        replies.setdefault(row.question_id, []).append([int(row.draw), answer])
    asked = questions.assign(kind=kinds, replies=questions["question_id"].map(replies))
    asked = asked[asked["kind"].notna() & asked["replies"].notna()]
    return asked[list(JUDGED_COLUMNS)].reset_index(drop=True)


def _kinds(questions: pd.DataFrame, section: JudgeConfig) -> list[JudgementKind | None]:
    """How each question's answers are judged; None where they are not."""
    return [
        "truthful"
        if scoring == "truthful"
        else "grade"
        if scoring == "exact_match" and source in section.graded
        else "claims"
        if scoring == "claims" and section.evidence.is_named
        else None
        for scoring, source in zip(questions["scoring"], questions["source"], strict=True)
    ]


def judge_answers(
    asked: pd.DataFrame,
    variant: str,
    section: JudgeConfig,
    client: Client,
    on_progress: Callable[[int, int], None] | None = None,
    evidence: Evidence | None = None,
) -> JudgingResult:
    """Ask every judge about every answer of a variant; each reply is kept before it is read.

    Args:
        asked: what :func:`questions_to_judge` returns, or some rows of it.
        variant: whose answers they are.
        section: the judges, and what is asked again.
        client: what asks them, such as :class:`mralign_core.llm.client.LLMClient`.
        on_progress: called with (done, total) as answers are judged, in the calling thread.
        evidence: finds passages for claims; only where the answers of some set have these counted.

    Raises:
        ConfigError: a judge is unknown, or lacks its API key or a price.
        UserError: an endpoint refused a request in a way that repeating can't help, the replies of one are of no use
            from the first, or the budget is used up.
        EndpointUnavailableError: an endpoint stayed out of reach.
    """
    bench = Bench(section, evidence)
    answers = [(row, draw, answer) for row in asked.itertuples(index=False) for draw, answer in row.replies]

    async def judge_all(report_done: Callable[[int], None]) -> list[_Outcome]:
        counter = itertools.count(1)
        # A batch is the larger the more answers wait for it.
        uses_batches = any(endpoint.use_batch_api for endpoint in section.endpoints)
        admission = contextlib.nullcontext() if uses_batches else client.admission

        async def counted(row: Any, draw: int, answer: str | None) -> _Outcome:
            async with admission:
                outcome = await bench.judge(client, row, {"variant": variant, "draw": draw}, answer)
            report_done(next(counter))
            return outcome

        return await gather_all([counted(*each) for each in answers])

    outcomes = background.run(judge_all, lambda done: on_progress(done, len(answers)) if on_progress else None)
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    for failure in failures:
        logger.warning("question %(question_id)s of %(variant)s has no verdict of %(judge)s: %(problem)s", failure)
    rows, claims, passages = (
        [row for outcome in outcomes for row in getattr(outcome, name)] for name in ("rows", "claims", "evidence")
    )
    return JudgingResult(
        JUDGEMENTS.frame(rows),
        failures,
        sum(outcome.cost_usd for outcome in outcomes),
        CHECKED_CLAIMS.frame(claims),
        CLAIM_EVIDENCE.frame(passages).drop_duplicates(["question_id", "claim_id", "rank"], ignore_index=True),
    )


class Bench:
    """The judges, and what they are asked."""

    def __init__(self, section: JudgeConfig, evidence: Evidence | None = None) -> None:
        from mralign_core.llm import endpoint as api  # takes seconds: see its docstring

        self.section = section
        check_judges(section)
        self._params = {
            (endpoint.model, kind): api.request_params(endpoint, verdict_schema(kind))
            for endpoint in section.endpoints
            for kind in FORMS
        }
        self.claims = ClaimChecker(judges_of("claims", section), section.ask_again, evidence)

    def requests(self, row: Any, answer: str | None) -> list[Request]:
        """What the judges are asked about an answer, without repairs; nothing where there is none.

        About the claims of a long answer that is its sentences: what they claim, nobody knows yet.

        Args:
            row: a row of what :func:`questions_to_judge` returns.
            answer: one of the answers to it.
        """
        if answer is None:
            return []
        if row.kind == "claims":
            return [
                self.claims.list_request(endpoint, row.question, sentence)
                for endpoint in judges_of(row.kind, self.section)
                for sentence in windows_of(answer)
            ]
        shown = JudgedReply(row.question, row.answers, row.incorrect_answers, answer)
        messages = judge_messages(row.kind, shown)
        return [
            Request(endpoint, messages, self._params[endpoint.model, row.kind])
            for endpoint in judges_of(row.kind, self.section)
        ]

    async def judge(self, client: Client, row: Any, which: Mapping[str, Any], answer: str | None) -> _Outcome:
        """Every judge's verdict on an answer; ``which`` says whose answer it is and of which draw."""
        about = {**which, "question_id": row.question_id}
        if answer is None:
            rows = [
                {**about, "judge": endpoint.model, **_cells(row.kind, NO_ANSWER[row.kind], [])}
                for endpoint in judges_of(row.kind, self.section)
            ]
            return _Outcome(rows, [], 0.0)
        if row.kind == "claims":
            judges = judges_of(row.kind, self.section)
            asking = [self._check_claims(client, endpoint, row.question, answer, about) for endpoint in judges]
        else:
            asking = [self._ask(client, request, row.kind, about) for request in self.requests(row, answer)]
        outcomes = await gather_all(asking)
        return _Outcome(
            [row for outcome in outcomes for row in outcome.rows],
            [failure for outcome in outcomes for failure in outcome.failures],
            sum(outcome.cost_usd for outcome in outcomes),
            [claim for outcome in outcomes for claim in outcome.claims],
            [passage for outcome in outcomes for passage in outcome.evidence],
        )

    async def _check_claims(
        self, client: Client, endpoint: EndpointConfig, question: str, answer: str, about: Mapping[str, Any]
    ) -> _Outcome:
        checked = await self.claims.check(client, endpoint, question, answer)
        cost_usd = sum(reply.cost_usd for reply in checked.replies if not reply.cached)
        named = {**about, "judge": endpoint.model}
        if checked.failed is not None:
            return _Outcome([], [_failure(named, checked.failed)], cost_usd)
        claims = [
            {**named, **{name: value for name, value in claim._asdict().items() if name != "snippets"}}
            for claim in checked.claims
        ]
        evidence = [
            {
                "question_id": about["question_id"],
                "claim_id": claim.claim_id,
                "rank": rank,
                "document_id": snippet.document_id,
                "text": snippet.text,
            }
            for claim in checked.claims
            for rank, snippet in enumerate(claim.snippets, start=1)
        ]
        return _Outcome([{**named, **_claim_cells(checked)}], [], cost_usd, claims, evidence)

    async def _ask(self, client: Client, request: Request, kind: JudgementKind, about: Mapping[str, Any]) -> _Outcome:
        def parse(received: Received) -> JudgeVerdict:
            return parse_verdict(received.reply, received.finish_reason, kind)

        endpoint = request.endpoint
        replies = await converse(client, endpoint, request.messages, request.params, parse, self.section.ask_again)
        cost_usd = sum(reply.received.cost_usd for reply in replies if not reply.received.cached)
        named, verdict = {**about, "judge": endpoint.model}, replies[-1].parsed
        if verdict is not None:
            return _Outcome([{**named, **_cells(kind, verdict, replies)}], [], cost_usd)
        return _Outcome([], [_failure(named, replies[-1])], cost_usd)


def judges_of(kind: JudgementKind, section: JudgeConfig) -> list[EndpointConfig]:
    """Those that give such verdicts: the baseline of similarity does not grade, and lists no claims."""
    return [endpoint for endpoint in section.endpoints if kind == "truthful" or not is_offline(endpoint.model)]


def _failure(named: Mapping[str, Any], read: Read[Any]) -> JudgeFailure:
    problem = read.problem
    assert problem is not None
    told = {"kind": problem.kind, "problem": str(problem), "is_final": problem.is_final}
    return {**named, **told, "reply": as_utf8(read.received.reply[:MOST_OF_REPLY])}


def _cells(kind: JudgementKind, verdict: JudgeVerdict, replies: Sequence[Read[JudgeVerdict]]) -> dict[str, Any]:
    return {
        "kind": kind,
        "answered": bool(replies),
        "truthful": verdict.truthful,
        "informative": verdict.informative,
        "grade": verdict.grade,
        "reason": as_utf8(verdict.reason),
        "num_claims": 0 if kind == "claims" else None,
        "num_supported": 0 if kind == "claims" else None,
        "request_digest": replies[0].received.request_digest if replies else "",
        "num_requests": int(bool(replies)),
        **_paid([reply.received for reply in replies]),
    }


def _claim_cells(checked: CheckedAnswer) -> dict[str, Any]:
    asked = "".join(sorted(reply.request_digest for reply in checked.replies))
    return {
        "kind": "claims",
        "answered": True,
        **dict.fromkeys(("truthful", "informative", "grade")),
        "num_claims": len(checked.claims),
        "num_supported": sum(claim.verdict == "supported" for claim in checked.claims),
        "reason": "",
        "request_digest": hashlib.sha256(asked.encode()).hexdigest(),
        "num_requests": checked.num_requests,
        **_paid(checked.replies),
    }


def _paid(replies: Sequence[Received]) -> dict[str, Any]:
    return {
        "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "completion_tokens": sum(reply.completion_tokens for reply in replies),
        "cost_usd": sum(reply.cost_usd for reply in replies),
    }


def check_judges(section: JudgeConfig) -> None:
    """Refuse a judge that can't be asked.

    Raises:
        ConfigError: a judge is unknown, or lacks its API key or a price.
    """
    if not section.endpoints:
        return
    from mralign_core.llm import endpoint as api

    for number, endpoint in enumerate(section.endpoints):
        field = f"judge.endpoints.{number}"
        api.check_endpoint(endpoint, field)
        if is_offline(endpoint.model) and endpoint.model.partition("/")[0] != similarity.SIMILARITY_PROVIDER:
            raise ConfigError(
                f"{field}: {endpoint.model} is no judge: name a language model, or the offline baseline, "
                f"{similarity.SIMILARITY_PROVIDER}/ngrams"
            )


def count_unjudged(failures: Sequence[JudgeFailure]) -> dict[str, int]:
    """Failures, and the answers that lack a verdict by them: what a judge refused is not asked again."""

    def answers(of: Sequence[JudgeFailure]) -> set[tuple[str, int]]:
        return {(failure["question_id"], failure["draw"]) for failure in of}

    final = answers([failure for failure in failures if failure["is_final"]])
    left_out = answers(failures)
    return {"failures": len(failures), LEFT_OUT: len(left_out), TO_ASK_AGAIN: len(left_out - final)}


def unjudged_lines(failures: Sequence[JudgeFailure]) -> list[str]:
    """How many answers lack a verdict, a line for each kind of failure, with the one that shows it."""
    lines = []
    for kind, number in Counter(failure["kind"] for failure in failures).most_common():
        first = next(failure for failure in failures if failure["kind"] == kind)
        example = f"{first['judge']} on {first['variant']}, {first['question_id']}: {first['problem']}"
        lines.append(f"{number} verdict(s) missing, {kind}: {example}")
    return lines
