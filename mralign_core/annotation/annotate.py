"""Label what each thinking segment does: two annotators, consolidation, an adjudicator (§3.1.2, App. B).

Decisions where the paper is silent:

* A reply that can't be used is sent back once with the reason. When the second one can't be used either, or a request
  fails, the trace is left out and listed among the failures; it gets no label.
* What failed by the other side's fault is asked once more by the next run, from the first request on; a refusal is not,
  unless ``annotate.ask_again`` says so. Replies that can be used are never asked for again.
* Segments are one step where both annotators merged them; consolidation and adjudication go by step.
* The adjudicator is asked once a trace, about the steps that the two annotators left open and no others.

An addition to the paper: where annotator A is a distilled one, it decides by itself where it is sure enough, and
annotator B and the adjudicator are asked about the rest and nothing else. Nothing is merged then.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.annotation import cue
from mralign_core.annotation.conversing import converse, gather_all
from mralign_core.annotation.excerpts import ExcerptAsking
from mralign_core.annotation.labeller import Labeller, require_labelled
from mralign_core.annotation.prompts import (
    DisputedStep,
    ShownTrace,
    adjudicate_messages,
    annotate_messages,
    annotate_some_messages,
)
from mralign_core.annotation.replies import ParsedReply, parse_reply, reply_schema, reply_schema_of
from mralign_core.config import AnnotateConfig, EndpointConfig
from mralign_core.config.annotate import ROLES
from mralign_core.errors import ConfigError
from mralign_core.label_sets import LabelSet
from mralign_core.llm import background
from mralign_core.llm.client import Client
from mralign_core.llm.json_reply import ReplyProblem
from mralign_core.llm.offline import Message
from mralign_core.llm.request import OFFERED, Received, Request
from mralign_core.llm.tidying import as_utf8
from mralign_core.method.consolidation import Consolidated, LabelVote, accept, consolidate, merge_steps
from mralign_core.method.taxonomy import MAX_LABELS, Taxonomy
from mralign_core.schemas.annotations import ANNOTATIONS, RAW_ANNOTATIONS

logger = logging.getLogger("mralign_core.annotation")

FAILURE_COLUMNS = ["trace_id", "role", "kind", "problem", "reply", "is_final"]
NOBODY: Mapping[str, Labeller] = MappingProxyType({})
"""No annotator's labels are at hand."""
SAID_NOTHING = LabelVote((), ())
MAX_BEGINNING = 300
"""Most characters of a reply that are shown beside its problem."""


class AnnotationResult(NamedTuple):
    """Annotations, every reply behind them, and the traces that could not be annotated.

    ``annotations`` and ``raw`` follow the contracts of :mod:`mralign_core.schemas`, in the order of the
    candidates; ``failures`` has ``FAILURE_COLUMNS``, a row for each role that failed on a trace: the kind of its
    problem, the beginning of its last reply, and whether asking again is of no use. ``cost_usd`` is what this call
    paid; replies that were there already cost nothing.
    """

    annotations: pd.DataFrame
    raw: pd.DataFrame
    failures: pd.DataFrame
    cost_usd: float


class RoleAnswer(NamedTuple):
    """One role's replies on one trace, and what the last one says: either ``parsed`` or its problem."""

    role: str
    received: list[Received]
    problems: list[ReplyProblem | None]
    parsed: ParsedReply | None


class TraceOutcome(NamedTuple):
    """The answers about a trace, and its rows of the annotations; none where it is left out."""

    trace_id: str
    answers: Sequence[RoleAnswer]
    rows: list[dict[str, Any]]


class Draft(NamedTuple):
    """A trace, and what is said of it so far, in the order of the roles.

    ``steps`` are what is decided on, each the indices of its segments; ``asked_of_b`` the segments that annotator B
    labels.
    """

    trace_id: str
    trace: ShownTrace
    answers: tuple[RoleAnswer, ...]
    steps: Sequence[Sequence[int]]
    asked_of_b: Sequence[int]

    @property
    def is_left_out(self) -> bool:
        """Whether somebody's answer can't be used."""
        return any(answer.parsed is None for answer in self.answers)

    def with_answer(self, answer: RoleAnswer) -> Draft:
        """The same with one more answer."""
        return self._replace(answers=(*self.answers, answer))

    def votes(self) -> tuple[Sequence[LabelVote], Mapping[int, LabelVote]]:
        """What annotator A says of every segment, and annotator B of those it was asked about."""
        a, *others = (answer.parsed for answer in self.answers)
        assert a is not None
        votes_b = others[0].votes if others and others[0] else []
        return a.votes, dict(zip(self.asked_of_b, votes_b, strict=True)) if votes_b else {}


def together(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Traces that stand in several places of a table."""
    return pd.concat(parts, ignore_index=True)


def annotate_traces(
    candidates: pd.DataFrame,
    section: AnnotateConfig,
    *,
    seed: int,
    label_set: LabelSet,
    client: Client,
    labellers: Mapping[str, Labeller] = NOBODY,
    on_progress: Callable[[int, int], None] | None = None,
) -> AnnotationResult:
    """Label every segment of every candidate trace.

    Implements §3.1.2 of arXiv 2510.24794. Each reply is kept before it is read, so a call that is repeated
    after an error sends only the requests that have no reply yet. Calls at the same time, from several threads,
    may share a client and with it its limits and its budget.

    Args:
        candidates: table ``candidates``.
        section: annotators, adjudicator, consolidation threshold.
        seed: seed of the offline annotators' noise; models are not seeded.
        label_set: the closed label set.
        client: what asks the models, such as :class:`mralign_core.llm.client.LLMClient`.
        labellers: role → the person or the distilled annotator that the section names for it.
        on_progress: called with (done, total) as traces finish, in the calling thread.

    Raises:
        ConfigError: an annotator is unknown, lacks its API key or a price, or can't use this label set.
        DataError: a person who is an annotator did not label all of these traces.
        UserError: an endpoint refused a request in a way that repeating can't help, or the budget is used up.
        EndpointUnavailableError: an endpoint stayed out of reach.
    """
    require_labelled(labellers, candidates)
    panel = Panel(section, seed, label_set, client, labellers)
    total = len(candidates)
    return background.run(
        lambda report_done: panel.annotate(candidates, report_done),
        lambda done: on_progress(done, total) if on_progress else None,
    )


class Panel:
    """The two annotators and the adjudicator."""

    def __init__(
        self,
        section: AnnotateConfig,
        seed: int,
        label_set: LabelSet,
        client: Client,
        labellers: Mapping[str, Labeller] = NOBODY,
    ) -> None:
        self.section = section
        self.may_merge = section.may_merge and not section.is_distilled
        self.labellers = labellers
        self.taxonomy = label_set.taxonomy
        self.client = client
        self.endpoints = section.endpoints
        asked = {role: endpoint for role, endpoint in self.endpoints.items() if role not in labellers}
        for role, endpoint in asked.items():
            _check(role, endpoint, label_set)
        if section.annotator_a.model == section.annotator_b.model:
            logger.warning("both annotators are %s: they will agree by construction", section.annotator_a.model)
        self.params = {role: self._params(endpoint, seed, label_set) for role, endpoint in asked.items()}

    async def annotate(self, candidates: pd.DataFrame, report_done: Callable[[int], None]) -> AnnotationResult:
        """Annotate all traces at once, as far as the client lets requests through."""
        counter = itertools.count(1)
        rows = list(candidates.itertuples(index=False))
        if self.section.escalate_context is not None:
            outcomes = await ExcerptAsking(self).annotate(rows)
            report_done(len(rows))
            return _result(outcomes)

        async def counted(row: Any) -> TraceOutcome:
            async with self.admission:
                outcome = await self.annotate_trace(row)
            report_done(next(counter))
            return outcome

        return _result(await gather_all([counted(row) for row in rows]))

    @property
    def admission(self) -> contextlib.AbstractAsyncContextManager[None]:
        """What a piece of work takes a place in; none with a batch API: a batch is larger the more wait for it."""
        uses_batches = any(endpoint.use_batch_api for endpoint in self.endpoints.values())
        return contextlib.nullcontext() if uses_batches else self.client.admission

    async def annotate_trace(self, row: Any) -> TraceOutcome:
        """Annotate one row of the candidates."""
        draft = await (self._asked_unsure(row) if self.section.is_distilled else self._asked_both(row))
        if open_steps := self.open_steps(draft):
            draft = draft.with_answer(await self.adjudicate(draft.trace, open_steps))
        return self.outcome(draft)

    async def _asked_both(self, row: Any) -> Draft:
        """Have both annotators label a trace."""
        trace = self.shown(row)
        segments = range(len(trace.segments))
        messages, asked = self.about_all(trace), [[index] for index in segments]
        answers = await gather_all([self.annotator(role, row, messages, asked) for role in ROLES[:2]])
        a, b = (answer.parsed for answer in answers)
        steps = _group(merge_steps(a.steps, b.steps)) if a and b else []
        return Draft(row.trace_id, trace, tuple(answers), steps, segments)

    async def _asked_unsure(self, row: Any) -> Draft:
        """Have annotator B label what a distilled annotator A is not sure of."""
        draft = await asyncio.to_thread(self.said_first, row)  # may take a while, and others are waiting for replies
        if unsure := draft.asked_of_b:
            is_all = len(unsure) == len(draft.steps)
            messages = self.about_all(draft.trace) if is_all else self.about_some(draft.trace, unsure)
            asked = [[index] for index in unsure]
            draft = draft.with_answer(await self.ask(ROLES[1], messages, asked, may_merge=False))
        return draft

    def said_first(self, row: Any) -> Draft:
        """What a distilled annotator A says of a trace, and which segments it leaves to annotator B."""
        trace = self.shown(row)
        steps = [[index] for index in range(len(trace.segments))]
        answer = self.said(ROLES[0], row, steps)
        unsure = unsure_segments(answer.parsed.votes, self.section) if answer.parsed else []
        return Draft(row.trace_id, trace, (answer,), steps, unsure)

    def consolidated(self, draft: Draft) -> list[Consolidated]:
        """What the annotators' votes decide of each step."""
        votes_a, votes_b = draft.votes()
        return [self.consolidate(votes_a[step[0]], votes_b.get(step[0])) for step in draft.steps]

    def open_steps(self, draft: Draft) -> list[DisputedStep]:
        """The steps that the annotators leave open."""
        if draft.is_left_out:
            return []
        votes_a, votes_b = draft.votes()
        return [
            DisputedStep(tuple(step), votes_a[step[0]], votes_b[step[0]])
            for step, decision in zip(draft.steps, self.consolidated(draft), strict=True)
            if decision.rule == "adjudicate"
        ]

    def outcome(self, draft: Draft) -> TraceOutcome:
        """The rows of a trace of which everyone has said what they were asked; none where an answer can't be used."""
        if draft.is_left_out:
            return TraceOutcome(draft.trace_id, draft.answers, [])
        decided = self.consolidated(draft)
        if draft.answers[-1].role == ROLES[2] and (verdict := draft.answers[-1].parsed):
            decided = _put_in(decided, _settle(verdict, self.taxonomy))
        return TraceOutcome(draft.trace_id, draft.answers, _rows(draft.trace_id, draft.steps, decided, *draft.votes()))

    async def annotator(
        self, role: str, row: Any, messages: Sequence[Message], asked: Sequence[Sequence[int]]
    ) -> RoleAnswer:
        """What an annotator says of a trace: a labeller's labels are here, a model is asked."""
        return self.said(role, row, asked) if role in self.labellers else await self.ask(role, messages, asked)

    def said(self, role: str, row: Any, asked: Sequence[Sequence[int]]) -> RoleAnswer:
        """What a labeller says of a trace."""
        return self.read(role, self.labellers[role].reply(row), asked)

    def read(self, role: str, received: Received, asked: Sequence[Sequence[int]]) -> RoleAnswer:
        """A reply that is at hand, as an answer."""
        try:
            return RoleAnswer(role, [received], [None], self.parse(received, asked, may_merge=False))
        except ReplyProblem as problem:  # such as of more segments than a reply may have
            return RoleAnswer(role, [received], [problem], None)

    def about_all(self, trace: ShownTrace) -> list[Message]:
        """The question for the labels of a whole trace."""
        return annotate_messages(trace, max_labels=MAX_LABELS, taxonomy=self.taxonomy, may_merge=self.may_merge)

    def about_some(self, trace: ShownTrace, segments: Sequence[int]) -> list[Message]:
        """The question for the labels of some segments."""
        return annotate_some_messages(trace, segments, max_labels=MAX_LABELS, taxonomy=self.taxonomy)

    def about_steps(self, trace: ShownTrace, open_steps: Sequence[DisputedStep]) -> list[Message]:
        """The question for a decision on the open steps of a trace."""
        return adjudicate_messages(trace, open_steps, max_labels=MAX_LABELS, taxonomy=self.taxonomy)

    def shown(self, row: Any) -> ShownTrace:
        """What annotators and adjudicator see of a row of the candidates."""
        trace = trace_of(row)
        return trace if self.section.show_gold_answers else trace._replace(gold_answers=None)

    async def adjudicate(self, trace: ShownTrace, open_steps: Sequence[DisputedStep]) -> RoleAnswer:
        """Ask the adjudicator about the open steps of a trace."""
        return await self.ask(ROLES[2], self.about_steps(trace, open_steps), [step.segments for step in open_steps])

    async def ask(
        self,
        role: str,
        messages: Sequence[Message],
        asked: Sequence[Sequence[int]],
        *,
        may_merge: bool = True,
        tells: bool = True,
    ) -> RoleAnswer:
        """Ask one role; where what is kept from an earlier run is of no use, ask again.

        ``tells`` is whether a reply that can't be used tells something of the endpoint.
        """
        endpoint, _, params, *_ = self.request(role, messages, asked)

        def parse(received: Received) -> ParsedReply:
            return self.parse(received, asked, may_merge=may_merge and role != ROLES[2])

        replies = await converse(self.client, endpoint, messages, params, parse, self.section.ask_again, tells=tells)
        last = replies[-1]
        problems = [reply.problem for reply in replies]
        return RoleAnswer(role, [reply.received for reply in replies], problems, last.parsed)

    def request(self, role: str, messages: Sequence[Message], asked: Sequence[Sequence[int]]) -> Request:
        """The request that asks one role."""
        return Request(self.endpoints[role], messages, self._params_for(role, asked))

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

    def _params(self, endpoint: EndpointConfig, seed: int, label_set: LabelSet) -> dict[str, Any]:
        from mralign_core.llm import endpoint as api  # takes seconds: see its docstring

        if endpoint.model.startswith(f"{cue.PROVIDER}/"):
            section = self.section
            lexicon = cue.LEXICON if label_set.lexicon is None else label_set.lexicon
            labels = list(self.taxonomy.labels)
            noise = cue.Noise(labels, seed, section.cue_drop_prob, section.cue_flip_prob, lexicon)
            return {cue.PARAMETER: noise._asdict()}
        return api.request_params(endpoint, reply_schema(self.taxonomy))

    def _params_for(self, role: str, asked: Sequence[Sequence[int]]) -> dict[str, Any]:
        """The role's parameters; where nothing may be merged, an offered schema says which steps there are."""
        from mralign_core.llm import endpoint as api

        params = self.params[role]
        if self.may_merge or OFFERED not in params:
            return params
        return params | {OFFERED: api.schema_format(reply_schema_of(self.taxonomy, asked, MAX_LABELS))}

    def consolidate(self, vote_a: LabelVote, vote_b: LabelVote | None) -> Consolidated:
        """Consolidate two votes under this panel's threshold; of one that is alone, take its labels."""
        if vote_b is None:
            return accept(vote_a, self.taxonomy)
        threshold = self.section.confidence_threshold
        return consolidate(vote_a, vote_b, threshold=threshold, max_labels=MAX_LABELS, taxonomy=self.taxonomy)


def unsure_segments(votes: Sequence[LabelVote], section: AnnotateConfig) -> list[int]:
    """Segments of a trace that a distilled annotator leaves to the others.

    >>> section = AnnotateConfig(annotator_a="local/paid", escalate_below=8.0)
    >>> unsure_segments([LabelVote(("retrieval",), (9.0,)), LabelVote(("analogy",), (4.0,))], section)
    [1]
    """
    sure = [max(vote.confidences) for vote in votes]
    if section.escalate == "traces":
        is_unsure = bool(sure) and sum(sure) / len(sure) < section.escalate_below
        return list(range(len(sure))) if is_unsure else []
    return [index for index, confidence in enumerate(sure) if confidence < section.escalate_below]


def trace_of(row: Any) -> ShownTrace:
    """What is shown of a row of the candidates."""
    texts = [row.completion[segment["start"] : segment["end"]] for segment in row.segments]
    return ShownTrace(row.question, list(row.answers), texts)


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
    votes_a: Sequence[LabelVote],
    votes_b: Mapping[int, LabelVote],
) -> list[dict[str, Any]]:
    return [
        {
            "trace_id": trace_id,
            "segment": segment,
            "step": number,
            "labels": list(decision.labels),
            "confidences": [float(value) for value in decision.confidences],
            "rule": decision.rule,
            "labels_a": list(votes_a[segment].labels),
            "confidences_a": list(votes_a[segment].confidences),
            "labels_b": list(votes_b.get(segment, SAID_NOTHING).labels),
            "confidences_b": list(votes_b.get(segment, SAID_NOTHING).confidences),
        }
        for number, (step, decision) in enumerate(zip(steps, decided, strict=True))
        for segment in step
    ]


def _raw_rows(outcome: TraceOutcome) -> list[dict[str, Any]]:
    return [
        {
            "trace_id": outcome.trace_id,
            "role": answer.role,
            "model": received.model,
            "attempt": attempt,
            "request_digest": received.request_digest,
            "prompt_digest": received.prompt_digest,
            "reply": as_utf8(received.reply),
            "problem": str(problem or ""),
            "prompt_tokens": received.prompt_tokens,
            "completion_tokens": received.completion_tokens,
            "cost_usd": received.cost_usd,
        }
        for answer in outcome.answers
        for attempt, (received, problem) in enumerate(zip(answer.received, answer.problems, strict=True))
    ]


def _result(outcomes: Sequence[TraceOutcome]) -> AnnotationResult:
    failures = [
        _failure(outcome.trace_id, answer, problem)
        for outcome in outcomes
        for answer in outcome.answers
        if (problem := answer.problems[-1]) is not None
    ]
    for failure in failures:
        logger.warning("trace %(trace_id)s is left out: %(role)s: %(problem)s", failure)
    rows = [row for outcome in outcomes for row in outcome.rows]
    raw = [row for outcome in outcomes for row in _raw_rows(outcome)]
    return AnnotationResult(
        pd.DataFrame(rows, columns=list(ANNOTATIONS.columns)),
        pd.DataFrame(raw, columns=list(RAW_ANNOTATIONS.columns)),
        pd.DataFrame(failures, columns=FAILURE_COLUMNS),
        sum(
            received.cost_usd
            for outcome in outcomes
            for answer in outcome.answers
            for received in answer.received
            if not received.cached
        ),
    )


def _failure(trace_id: str, answer: RoleAnswer, problem: ReplyProblem) -> dict[str, Any]:
    beginning = as_utf8(answer.received[-1].reply[:MAX_BEGINNING])
    about = {"kind": problem.kind, "problem": str(problem), "reply": beginning, "is_final": problem.is_final}
    return {"trace_id": trace_id, "role": answer.role, **about}


def _check(role: str, endpoint: EndpointConfig, label_set: LabelSet) -> None:
    from mralign_core.llm import endpoint as api

    api.check_endpoint(endpoint, f"annotate.{role}")
    lexicon = cue.LEXICON if label_set.lexicon is None else label_set.lexicon
    labels = label_set.taxonomy.labels
    if endpoint.model.startswith(f"{cue.PROVIDER}/") and not set(labels) & set(lexicon):
        raise ConfigError(
            f"annotate.{role}: {endpoint.model} knows no cue of the labels {', '.join(labels)}: give the labels of "
            "annotate.label_set cues, or name a language model"
        )
