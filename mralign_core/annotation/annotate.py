"""Label what each thinking segment does: two annotators, consolidation, an adjudicator (§3.1.2, App. B).

Decisions where the paper is silent:

* A reply that can't be used is sent back once with the reason. When the second one can't be used either, the
  trace is left out and listed among the failures; it gets no label.
* Segments are one step where both annotators merged them; consolidation and adjudication go by step.
* The adjudicator is asked once a trace, about the steps that the two annotators left open and no others.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.annotation import background, cue
from mralign_core.annotation.client import LLMClient, Received, Request
from mralign_core.annotation.prompts import (
    DisputedStep,
    Message,
    Trace,
    adjudicate_messages,
    annotate_messages,
    repair_messages,
)
from mralign_core.annotation.replies import ParsedReply, ReplyProblem, parse_reply, reply_schema
from mralign_core.annotation.store import ReplyStore
from mralign_core.config import AnnotateConfig
from mralign_core.errors import ConfigError
from mralign_core.method.consolidation import Consolidated, LabelVote, consolidate, merge_steps
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.schemas import ANNOTATIONS, RAW_ANNOTATIONS

logger = logging.getLogger("mralign_core.annotation")

MAX_LABELS = 2
ROLES = ("annotator_a", "annotator_b", "adjudicator")
FAILURE_COLUMNS = ["trace_id", "role", "problem"]


class ModelUsage(NamedTuple):
    """What one model was asked in this call: requests sent, their cost, and replies already there."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    cached: int = 0


class AnnotationResult(NamedTuple):
    """Annotations, every reply behind them, and the traces that could not be annotated.

    ``annotations`` and ``raw`` follow the contracts of :mod:`mralign_core.schemas`, in the order of the
    candidates; ``failures`` has ``FAILURE_COLUMNS``, a row for each role that failed on a trace. ``ledger``
    counts this call only, by model.
    """

    annotations: pd.DataFrame
    raw: pd.DataFrame
    failures: pd.DataFrame
    ledger: dict[str, ModelUsage]

    @property
    def cost_usd(self) -> float:
        """Dollars spent in this call, by all models."""
        return sum(usage.cost_usd for usage in self.ledger.values())


class _Answer(NamedTuple):
    """One role's replies on one trace, and what the last one says: either ``parsed`` or its problem."""

    role: str
    received: list[Received]
    problems: list[str]
    parsed: ParsedReply | None


class _TraceOutcome(NamedTuple):
    trace_id: str
    answers: list[_Answer]
    rows: list[dict[str, Any]]


def annotate_traces(
    candidates: pd.DataFrame,
    section: AnnotateConfig,
    *,
    seed: int,
    taxonomy: Taxonomy,
    replies: ReplyStore,
    on_progress: Callable[[int, int], None] | None = None,
) -> AnnotationResult:
    """Label every segment of every candidate trace.

    Implements §3.1.2 of arXiv 2510.24794. Each reply is kept before it is read, so a call that is repeated
    after an error sends only the requests that have no reply yet.

    Args:
        candidates: table ``candidates``.
        section: annotators, adjudicator, consolidation threshold, limits.
        seed: seed of the offline annotators' noise; models are not seeded.
        taxonomy: the closed label set.
        replies: where replies are kept and looked up.
        on_progress: called with (done, total) as traces finish, in the calling thread.

    Raises:
        ConfigError: an annotator is unknown, lacks its API key, or can't use this taxonomy.
        UserError: an endpoint refused a request in a way that repeating can't help.
        EndpointUnavailableError: an endpoint stayed out of reach.
    """
    panel = _Panel(section, seed, taxonomy)
    total = len(candidates)
    return background.run(
        lambda report_done: panel.annotate(candidates, replies, report_done),
        lambda done: on_progress(done, total) if on_progress else None,
    )


class _Panel:
    """The two annotators and the adjudicator."""

    def __init__(self, section: AnnotateConfig, seed: int, taxonomy: Taxonomy) -> None:
        self.section = section
        self.taxonomy = taxonomy
        self.models = {role: getattr(section, role) for role in ROLES}
        for model in set(self.models.values()):
            _check_model(model, section, taxonomy)
        if section.annotator_a == section.annotator_b:
            logger.warning("both annotators are %s: they will agree by construction", section.annotator_a)
        self.params = {model: _request_params(model, section, seed, taxonomy) for model in self.models.values()}

    async def annotate(
        self, candidates: pd.DataFrame, replies: ReplyStore, report_done: Callable[[int], None]
    ) -> AnnotationResult:
        """Annotate all traces at once, as far as the client lets requests through."""
        self.client = LLMClient(
            replies,
            concurrency=self.section.concurrency,
            requests_per_minute=self.section.requests_per_minute,
            timeout_s=self.section.timeout_s,
            max_attempts=self.section.max_attempts,
        )
        counter = itertools.count(1)

        async def counted(row: Any) -> _TraceOutcome:
            outcome = await self.annotate_trace(row)
            report_done(next(counter))
            return outcome

        return _result(await _all([counted(row) for row in candidates.itertuples(index=False)]))

    async def annotate_trace(self, row: Any) -> _TraceOutcome:
        """Annotate one row of the candidates."""
        texts = [row.completion[segment["start"] : segment["end"]] for segment in row.segments]
        trace = Trace(row.question, list(row.answers), texts)
        messages = annotate_messages(trace, max_labels=MAX_LABELS, taxonomy=self.taxonomy)
        asked = [[index] for index in range(len(texts))]
        answers = await _all([self.ask(role, messages, asked) for role in ROLES[:2]])
        a, b = (answer.parsed for answer in answers)
        if a is None or b is None:
            return _TraceOutcome(row.trace_id, answers, [])
        steps = _group(merge_steps(a.steps, b.steps))
        decided = [self.consolidate(a.votes[step[0]], b.votes[step[0]]) for step in steps]
        open_steps = [
            DisputedStep(tuple(step), a.votes[step[0]], b.votes[step[0]])
            for step, decision in zip(steps, decided, strict=True)
            if decision.rule == "adjudicate"
        ]
        if open_steps:
            answers.append(await self.adjudicate(trace, open_steps))
            verdict = answers[-1].parsed
            if verdict is None:
                return _TraceOutcome(row.trace_id, answers, [])
            decided = _put_in(decided, _settle(verdict, self.taxonomy))
        return _TraceOutcome(row.trace_id, answers, _rows(row.trace_id, steps, decided, a, b))

    async def adjudicate(self, trace: Trace, open_steps: Sequence[DisputedStep]) -> _Answer:
        """Ask the adjudicator about the open steps of a trace."""
        messages = adjudicate_messages(trace, open_steps, max_labels=MAX_LABELS, taxonomy=self.taxonomy)
        return await self.ask(ROLES[2], messages, [step.segments for step in open_steps])

    async def ask(self, role: str, messages: Sequence[Message], asked: Sequence[Sequence[int]]) -> _Answer:
        """Ask one role, and once more with the problem when its reply can't be used."""
        model = self.models[role]
        api_base = "" if cue.is_cue(model) else self.section.api_base
        answer = _Answer(role, [], [], None)
        for turn in range(2):
            received = await self.client.complete(Request(model, messages, self.params[model], api_base, turn))
            answer.received.append(received)
            try:
                parsed = self.parse(received, asked, may_merge=role != ROLES[2])
            except ReplyProblem as problem:
                answer.problems.append(str(problem))
                if problem.kind == "refused":
                    break
                messages = repair_messages(messages, received.reply, str(problem))
            else:
                answer.problems.append("")
                return answer._replace(parsed=parsed)
        return answer

    def parse(self, received: Received, asked: Sequence[Sequence[int]], *, may_merge: bool) -> ParsedReply:
        """Read a reply under this panel's taxonomy."""
        return parse_reply(
            received.reply,
            received.finish_reason,
            asked=asked,
            may_merge=may_merge,
            max_labels=MAX_LABELS,
            taxonomy=self.taxonomy,
        )

    def consolidate(self, vote_a: LabelVote, vote_b: LabelVote) -> Consolidated:
        """Consolidate two votes under this panel's threshold."""
        threshold = self.section.confidence_threshold
        return consolidate(vote_a, vote_b, threshold=threshold, max_labels=MAX_LABELS, taxonomy=self.taxonomy)


def _settle(verdict: ParsedReply, taxonomy: Taxonomy) -> list[Consolidated]:
    """The adjudicator's decision on each step it was asked about, its labels in canonical order."""
    vote_of_step = dict(zip(verdict.steps, verdict.votes, strict=True))
    settled = []
    for vote in vote_of_step.values():
        confidence = dict(zip(vote.labels, vote.confidences, strict=True))
        labels = tuple(sorted(confidence, key=taxonomy.state))
        rule = "adjudicate" if labels else "unlabelled"
        settled.append(Consolidated(labels, tuple(confidence[label] for label in labels), rule))
    return settled


def _put_in(decided: Sequence[Consolidated], settled: Sequence[Consolidated]) -> list[Consolidated]:
    """All decisions, the open ones replaced by those that settled them, in order."""
    replacements = iter(settled)
    return [next(replacements) if decision.rule == "adjudicate" else decision for decision in decided]


def _group(step_of_segment: Sequence[int]) -> list[list[int]]:
    """Segment indices of each step."""
    steps: list[list[int]] = [[] for _ in set(step_of_segment)]
    for segment, step in enumerate(step_of_segment):
        steps[step].append(segment)
    return steps


def _rows(
    trace_id: str,
    steps: Sequence[Sequence[int]],
    decided: Sequence[Consolidated],
    a: ParsedReply,
    b: ParsedReply,
) -> list[dict[str, Any]]:
    return [
        {
            "trace_id": trace_id,
            "segment": segment,
            "step": number,
            "labels": list(decision.labels),
            "confidences": [float(value) for value in decision.confidences],
            "rule": decision.rule,
            "labels_a": list(a.votes[segment].labels),
            "confidences_a": list(a.votes[segment].confidences),
            "labels_b": list(b.votes[segment].labels),
            "confidences_b": list(b.votes[segment].confidences),
        }
        for number, (step, decision) in enumerate(zip(steps, decided, strict=True))
        for segment in step
    ]


def _raw_rows(outcome: _TraceOutcome) -> list[dict[str, Any]]:
    return [
        {
            "trace_id": outcome.trace_id,
            "role": answer.role,
            "model": received.model,
            "attempt": attempt,
            "request_digest": received.request_digest,
            "reply": received.reply,
            "problem": problem,
            "prompt_tokens": received.prompt_tokens,
            "completion_tokens": received.completion_tokens,
            "cost_usd": received.cost_usd,
        }
        for answer in outcome.answers
        for attempt, (received, problem) in enumerate(zip(answer.received, answer.problems, strict=True))
    ]


def _result(outcomes: Sequence[_TraceOutcome]) -> AnnotationResult:
    failures = [
        {"trace_id": outcome.trace_id, "role": answer.role, "problem": answer.problems[-1]}
        for outcome in outcomes
        for answer in outcome.answers
        if answer.parsed is None
    ]
    for failure in failures:
        logger.warning("trace %(trace_id)s is left out: %(role)s: %(problem)s", failure)
    rows = [row for outcome in outcomes for row in outcome.rows]
    raw = [row for outcome in outcomes for row in _raw_rows(outcome)]
    return AnnotationResult(
        pd.DataFrame(rows, columns=list(ANNOTATIONS.columns)),
        pd.DataFrame(raw, columns=list(RAW_ANNOTATIONS.columns)),
        pd.DataFrame(failures, columns=FAILURE_COLUMNS),
        _ledger(received for outcome in outcomes for answer in outcome.answers for received in answer.received),
    )


def _ledger(replies: Iterable[Received]) -> dict[str, ModelUsage]:
    ledger: dict[str, ModelUsage] = {}
    for reply in replies:
        used = ledger.get(reply.model, ModelUsage())
        if reply.cached:
            used = used._replace(cached=used.cached + 1)
        else:
            used = used._replace(
                requests=used.requests + 1,
                prompt_tokens=used.prompt_tokens + reply.prompt_tokens,
                completion_tokens=used.completion_tokens + reply.completion_tokens,
                cost_usd=used.cost_usd + reply.cost_usd,
            )
        ledger[reply.model] = used
    return dict(sorted(ledger.items()))


def _check_model(model: str, section: AnnotateConfig, taxonomy: Taxonomy) -> None:
    from mralign_core.annotation import endpoint  # takes seconds: see its docstring

    endpoint.check_model(model, section.api_base)
    if cue.is_cue(model) and not set(taxonomy.labels) & set(cue.LEXICON):
        raise ConfigError(
            f"{model} knows none of the taxonomy's labels ({', '.join(taxonomy.labels)}); "
            "name a language model as annotator"
        )


def _request_params(model: str, section: AnnotateConfig, seed: int, taxonomy: Taxonomy) -> dict[str, Any]:
    from mralign_core.annotation import endpoint

    if cue.is_cue(model):
        noise = cue.Noise(list(taxonomy.labels), seed, section.cue_drop_prob, section.cue_flip_prob)
        return {cue.PARAMETER: noise._asdict()}
    temperature = {} if section.temperature is None else {"temperature": section.temperature}
    return endpoint.response_format(model, reply_schema(taxonomy)) | temperature


async def _all(work: Sequence[Awaitable[Any]]) -> list[Any]:
    """Results of all, once every one has ended, even if badly: a request under way is paid for, and kept."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
