"""What annotation will ask and cost, before anything is asked.

Prompts are counted exactly as far as they are known; replies are estimated by the number of steps they label.
Whether a trace needs the adjudicator shows only when both annotators have replied, so what is not known yet is
given as a range: none of those traces, or all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.annotation.annotate import NOBODY, Panel, RoleAnswer
from mralign_core.annotation.excerpts import ExcerptAsking
from mralign_core.annotation.labeller import Labeller, require_labelled
from mralign_core.annotation.prompts import DisputedStep, Excerpt, ShownTrace, read_payload
from mralign_core.config import AnnotateConfig, EndpointConfig
from mralign_core.label_sets import LabelSet
from mralign_core.llm import background
from mralign_core.llm.request import UNANSWERED, Received, Request, kept_record, received
from mralign_core.llm.store import KeepsReplies
from mralign_core.method.consolidation import LabelVote

REPLY_TOKENS = 16
"""Tokens of a reply beside its steps."""
STEP_TOKENS = 32
"""Tokens of a step with one or two labels, in the JSON that is asked for."""
QUOTED_TRACES, QUOTED_TOGETHER = 500, 25
"""A quote looks at about so many traces, so many neighbours at a time."""


class Quote(NamedTuple):
    """What one model will be asked.

    ``requests`` and ``cost_usd`` are certain, up to the length of replies; ``most_requests`` and ``most_cost_usd``
    hold the adjudications too that may turn out to be needed. ``again`` counts those of the ``requests`` that an
    earlier run has asked, and got nothing of use. Repair turns, and reasoning that a model hides and bills, are not
    foreseen.
    """

    model: str
    kept: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    most_requests: int = 0
    most_cost_usd: float = 0.0
    again: int = 0


def evenly_spaced(read: Callable[[int, int], pd.DataFrame], num_traces: int) -> pd.DataFrame:
    """About ``QUOTED_TRACES`` of many traces, in groups of neighbours with even spaces between.

    Args:
        read: gives the rows from one number to before another.
        num_traces: how many there are.
    """
    step = max(QUOTED_TOGETHER, num_traces // (QUOTED_TRACES // QUOTED_TOGETHER))
    parts = [
        read(start, start + QUOTED_TOGETHER) for start in range(0, max(1, num_traces), step)
    ]  # of none, its columns
    return pd.concat(parts, ignore_index=True)


def rows_beside(ids: Sequence[str], others: Sequence[str]) -> list[int]:
    """Numbers of the rows whose ids are not among others, which are quoted already.

    >>> rows_beside(["a", "b", "c"], ["b"])
    [0, 2]
    """
    quoted = set(others)
    return [row for row, name in enumerate(ids) if name not in quoted]


def spent_usd(ledger: pd.DataFrame) -> float:
    """Dollars that an account's requests cost, or may have cost.

    Args:
        ledger: a row a run and model, with the fields of :class:`mralign_core.llm.ledger.Usage`.
    """
    return float(ledger[["cost_usd", "set_aside_usd", "lost_usd"]].to_numpy().sum())


def quote_annotation(
    candidates: pd.DataFrame,
    section: AnnotateConfig,
    *,
    seed: int,
    label_set: LabelSet,
    replies: KeepsReplies,
    num_traces: int | None = None,
    labellers: Mapping[str, Labeller] = NOBODY,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Quote]:
    """Requests, tokens and dollars by model; nothing is sent. Of no traces, nothing.

    Args:
        candidates: table ``candidates``, or a part of it.
        section: annotators and adjudicator, with their prices.
        seed: seed of the offline annotators' noise.
        label_set: the closed label set.
        replies: where replies are kept; those there are not asked for again.
        num_traces: rows of the whole table, to which the part is scaled; those given when None.
        labellers: as for :func:`~mralign_core.annotation.annotate.annotate_traces`.
        on_progress: called with (done, total).

    Raises:
        ConfigError: an annotator is unknown, lacks its API key or a price.
        DataError: a person who is an annotator did not label all of these traces.
    """
    require_labelled(labellers, candidates)
    if candidates.empty:
        return []
    client = _QuotingClient(replies, section)
    panel = Panel(section, seed, label_set, client, labellers)

    async def look(report: Callable[[int], None]) -> None:
        if section.escalate_context is not None:
            await _QuotedExcerpts(panel, client).annotate(list(candidates.itertuples(index=False)))
            report(len(candidates))
            return
        for done, row in enumerate(candidates.itertuples(index=False), start=1):
            try:
                await panel.annotate_trace(row)
            except _NotKeptError as error:
                if not error.is_adjudication:
                    client.note_possible(_adjudication_of_all(panel, panel.shown(row), error.segments))
            report(done)

    background.run(look, lambda done: on_progress(done, len(candidates)) if on_progress else None)
    scale = (num_traces or len(candidates)) / max(1, len(candidates))
    return [_scaled(quote, scale) for quote in client.quotes.values()]


class NothingKept:
    """Replies of which there is none: to quote all that would be asked anew."""

    def get(self, request_digest: str) -> dict[str, Any] | None:
        """None."""
        return None

    def put(self, request_digest: str, record: dict[str, Any]) -> None:
        """Nothing is asked, so there is nothing to keep."""


class _NotKeptError(Exception):
    """A request has no reply yet."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.endpoint.model)
        self.is_adjudication = "disputed" in read_payload(request.messages)
        self.segments = _labelled_by(request)


class _QuotedExcerpts(ExcerptAsking):
    """Goes on where a request has no reply yet, so that all of them are counted."""

    def __init__(self, panel: Panel, client: _QuotingClient) -> None:
        super().__init__(panel)
        self._client = client

    async def ask_together(self, role: str, excerpts: Sequence[Excerpt]) -> list[RoleAnswer]:
        """The kept answers; where there are none, what the adjudicator may be asked is counted too."""
        try:
            return await super().ask_together(role, excerpts)
        except _NotKeptError as error:
            if not error.is_adjudication:
                self._note_adjudication_of_all(excerpts)
            return [RoleAnswer(role, [], [], None) for _ in excerpts]

    def _note_adjudication_of_all(self, excerpts: Sequence[Excerpt]) -> None:
        disputed = [self.about_steps(each.trace, _all_disputed(self.panel, each.asked)) for each in excerpts]
        sizes = {number: len(each.asked) for number, each in enumerate(disputed)}
        for group in self.groups("adjudicator", sizes):
            self._client.note_possible(self.request_about("adjudicator", [disputed[number] for number in group]))


def _labelled_by(request: Request) -> list[int]:
    """Numbers of the steps or segments that a reply labels."""
    payload = read_payload(request.messages)
    steps = next(payload[name] for name in ("disputed", "asked", "segments") if name in payload)
    return [step if isinstance(step, int) else number for number, step in enumerate(steps)]


class _Unchanged:
    """Kept replies that a quote looks at, and adds nothing to."""

    def __init__(self, replies: KeepsReplies) -> None:
        self._replies = replies

    def get(self, request_digest: str, /) -> dict[str, Any] | None:
        """The record kept for a request, or None."""
        return self._replies.get(request_digest)

    def put(self, request_digest: str, record: dict[str, Any], /) -> None:
        """Nothing is put."""


class _QuotingClient:
    """Has the kept replies, and adds up the requests that have none."""

    def __init__(self, replies: KeepsReplies, section: AnnotateConfig) -> None:
        from mralign_core.llm import endpoint  # takes seconds: see its docstring

        self._count_tokens, self._price_of = endpoint.count_tokens, endpoint.price_of
        self.replies: KeepsReplies = _Unchanged(replies)
        self._noted: set[str] = set()
        self.admission = asyncio.Semaphore()
        self.quotes = {endpoint.model: Quote(endpoint.model) for endpoint in section.endpoints.values()}

    async def complete(self, request: Request, *, ask_again: bool = False) -> Received:
        """The kept reply to a request."""
        record = kept_record(self.replies, request.digest)
        is_again = record is not None and (ask_again or record["finish_reason"] == UNANSWERED)
        if record is None or is_again:
            self._note(request, is_certain=True)
            self._add(request, again=int(is_again))
            raise _NotKeptError(request)
        self._add(request, kept=1)
        return received(record, cached=True)

    def report_readable(self, endpoint: EndpointConfig) -> None:
        """Nothing is asked, so nothing is counted."""

    def report_unreadable(self, endpoint: EndpointConfig, way: str, beginning: str) -> None:
        """Nothing is asked, so nothing is counted."""

    def note_possible(self, request: Request) -> None:
        """Count a request that may turn out to be needed."""
        self._note(request, is_certain=False)

    def _note(self, request: Request, *, is_certain: bool) -> None:
        if request.digest in self._noted:  # of equal draws, which are asked about once
            return
        self._noted.add(request.digest)
        num_prompt = self._count_tokens(request.endpoint, request.messages, request.params)
        num_reply = REPLY_TOKENS + STEP_TOKENS * len(_labelled_by(request))
        cost_usd = self._price_of(request.endpoint).cost_usd(num_prompt, num_reply)
        self._add(request, most_requests=1, most_cost_usd=cost_usd)
        if is_certain:
            tokens = {"prompt_tokens": num_prompt, "completion_tokens": num_reply}
            self._add(request, requests=1, cost_usd=cost_usd, **tokens)

    def _add(self, request: Request, **amounts: float) -> None:
        quote = self.quotes[request.endpoint.model]
        sums = {name: getattr(quote, name) + amount for name, amount in amounts.items()}
        self.quotes[quote.model] = quote._replace(**sums)


def _adjudication_of_all(panel: Panel, trace: ShownTrace, segments: Sequence[int]) -> Request:
    """The request that a trace needs if every one of these segments is disputed."""
    messages = panel.about_steps(trace, _all_disputed(panel, segments))
    return Request(panel.endpoints["adjudicator"], messages, panel.params["adjudicator"])


def _all_disputed(panel: Panel, segments: Sequence[int]) -> list[DisputedStep]:
    vote = LabelVote(panel.taxonomy.labels[:1], (5.0,))
    return [DisputedStep((index,), vote, vote) for index in segments]


def _scaled(quote: Quote, scale: float) -> Quote:
    whole = ("kept", "requests", "prompt_tokens", "completion_tokens", "most_requests", "again")
    dollars = ("cost_usd", "most_cost_usd")
    return quote._replace(
        **{name: round(scale * getattr(quote, name)) for name in whole},
        **{name: scale * getattr(quote, name) for name in dollars},
    )
