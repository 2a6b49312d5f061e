"""A few segments of each trace, asked about by excerpts, and by excerpts of several traces in one request.

A distilled annotator leaves a few segments of most traces to the others. If each few brings a whole trace, the
instructions and all labels with it, they cost nearly as much as labelling everything. ``annotate.escalate_context`` has
only what is near them shown; ``annotate.escalate_together`` has instructions paid once for several traces.

* A reply is used whole or not at all. One about several traces that can't be used, nor its repair, is given up, and
  each of its traces is asked about alone.
* What is said of a trace is kept under the request that asks about this trace alone, marked as said in company. So it
  is found again if traces come or go, if shards are cut otherwise, or if a request may hold more of them.
* What a request cost is shared out among its traces by the segments that they ask about.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import accumulate, compress, pairwise
from typing import TYPE_CHECKING, Any

from mralign_core.annotation.conversing import gather_all
from mralign_core.annotation.prompts import DisputedStep, Excerpt, excerpts_messages, numbers_of, ratings
from mralign_core.config.annotate import ROLES
from mralign_core.llm.offline import Message, is_offline
from mralign_core.llm.request import Received, Request, kept_record, prompt_digest, received, reply_record
from mralign_core.method.taxonomy import MAX_LABELS
from mralign_core.storage.digests import key_of

if TYPE_CHECKING:
    from mralign_core.annotation.annotate import Draft, Panel, RoleAnswer, TraceOutcome


class ExcerptAsking:
    """Has a panel label what a distilled annotator A is not sure of, for many traces at a time."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.context, self.most = panel.section.escalate_context or 0, panel.section.escalate_together

    async def annotate(self, rows: Sequence[Any]) -> list[TraceOutcome]:
        """Annotate rows of the candidates: annotator B is asked about all of them, and then the adjudicator."""
        # In a thread, since a language model may take a while, and other shards are waiting for replies.
        drafts = [await asyncio.to_thread(self.panel.said_first, row) for row in rows]
        drafts = await self._answered(ROLES[1], drafts, self.about_unsure)
        drafts = await self._answered(ROLES[2], drafts, self.about_disputed)
        return [self.panel.outcome(draft) for draft in drafts]

    def about_unsure(self, draft: Draft) -> Excerpt | None:
        """What annotator B is asked about a trace."""
        return Excerpt(draft.trace, draft.asked_of_b, self.context) if draft.asked_of_b else None

    def about_disputed(self, draft: Draft) -> Excerpt | None:
        """What the adjudicator is asked about a trace."""
        open_steps = self.panel.open_steps(draft)
        return self.about_steps(draft.trace, open_steps) if open_steps else None

    def about_steps(self, trace: Any, open_steps: Sequence[DisputedStep]) -> Excerpt:
        """The question for a decision on some steps, each of one segment."""
        votes = [(step.vote_a, step.vote_b) for step in open_steps]
        return Excerpt(trace, [step.segments[0] for step in open_steps], self.context, votes)

    async def _answered(
        self, role: str, drafts: Sequence[Draft], about: Callable[[Draft], Excerpt | None]
    ) -> list[Draft]:
        """The drafts, with a role's answer wherever it is asked anything."""
        excerpts = {number: excerpt for number, draft in enumerate(drafts) if (excerpt := about(draft))}
        answers = dict(zip(excerpts, await self.ask(role, list(excerpts.values())), strict=True))
        return [draft.with_answer(answers[n]) if n in answers else draft for n, draft in enumerate(drafts)]

    async def ask(self, role: str, excerpts: Sequence[Excerpt]) -> list[RoleAnswer]:
        """A role's answer about each of some traces; equal questions, of equal draws, are asked once."""
        requests = [await asyncio.to_thread(self.request_about, role, [each]) for each in excerpts]
        digests, first = [request.digest for request in requests], dict[str, int]()
        for number, digest in enumerate(digests):
            first.setdefault(digest, number)
        once = {number: (excerpts[number], requests[number]) for number in first.values()}
        answers = dict(zip(once, await self._ask_once(role, list(once.values())), strict=True))
        return [answers[n] if n in answers else _again(answers[first[digest]]) for n, digest in enumerate(digests)]

    async def _ask_once(self, role: str, asked: Sequence[tuple[Excerpt, Request]]) -> list[RoleAnswer]:
        excerpts = [excerpt for excerpt, _ in asked]
        earlier = [await asyncio.to_thread(self._earlier, role, *each) for each in asked]
        answers = {number: answer for number, (answer, _) in enumerate(earlier) if answer}
        alone = [number for number, (_, is_alone) in enumerate(earlier) if is_alone]
        missing = set(range(len(excerpts))) - set(answers) - set(alone)
        kept = await asyncio.to_thread(self._kept_groups, role, excerpts, missing)
        sizes = {n: len(excerpts[n].asked) for n in sorted(missing - set().union(*kept))}
        groups = [[number] for number in alone] + kept + self.groups(role, sizes)

        async def admitted(group: Sequence[int]) -> list[RoleAnswer]:
            async with self.panel.admission:
                return await self.ask_together(role, [excerpts[number] for number in group])

        for group, found in zip(groups, await gather_all([admitted(group) for group in groups]), strict=True):
            answers |= zip(group, found, strict=True)
        return [answers[number] for number in range(len(excerpts))]

    async def ask_together(self, role: str, excerpts: Sequence[Excerpt]) -> list[RoleAnswer]:
        """A role's answers to one request about some traces; to one about each alone, where that can't be used."""
        asked = [[number] for number in numbers_of(excerpts)]
        is_alone = len(excerpts) == 1
        answer = await self.panel.ask(role, self.messages(role, excerpts), asked, may_merge=False, tells=is_alone)
        if is_alone:
            return [answer]
        if answer.parsed is None:
            first, *others = await gather_all([self.ask_together(role, [each]) for each in excerpts])
            received, problems = [*answer.received, *first[0].received], [*answer.problems, *first[0].problems]
            return [first[0]._replace(received=received, problems=problems), *(each for (each,) in others)]
        return await asyncio.to_thread(self._parted, excerpts, answer)

    def messages(self, role: str, excerpts: Sequence[Excerpt]) -> list[Message]:
        """The question about some traces; an offline annotator is asked about one, as ever, since it costs nothing."""
        panel = self.panel
        if not is_offline(panel.endpoints[role].model):
            return excerpts_messages(excerpts, max_labels=MAX_LABELS, taxonomy=panel.taxonomy)
        (excerpt,) = excerpts
        if not excerpt.votes:
            return panel.about_some(excerpt.trace, excerpt.asked)
        steps = [DisputedStep((place,), *votes) for place, votes in zip(excerpt.asked, excerpt.votes, strict=True)]
        return panel.about_steps(excerpt.trace, steps)

    def request_about(self, role: str, excerpts: Sequence[Excerpt]) -> Request:
        """The request that asks a role about some traces."""
        return self.panel.request(role, self.messages(role, excerpts), [[number] for number in numbers_of(excerpts)])

    def groups(self, role: str, sizes: Mapping[int, int]) -> list[list[int]]:
        """Which traces share a request, given how many segments each asks about."""
        return grouped(sizes, 1 if is_offline(self.panel.endpoints[role].model) else self.most)

    def _kept_groups(self, role: str, excerpts: Sequence[Excerpt], missing: Set[int]) -> list[list[int]]:
        """Groups with a missing answer whose reply is kept, from a run that was stopped before it was shared out."""
        groups = self.groups(role, {n: len(each.asked) for n, each in enumerate(excerpts)}) if missing else []
        touched = [group for group in groups if len(group) > 1 and not missing.isdisjoint(group)]
        digests = [self.request_about(role, [excerpts[n] for n in group]).digest for group in touched]
        is_kept = [kept_record(self.panel.client.replies, digest) is not None for digest in digests]
        return list(compress(touched, is_kept))

    def _earlier(self, role: str, excerpt: Excerpt, request: Request) -> tuple[RoleAnswer | None, bool]:
        """What was said of a trace in company, if it was; and whether it was asked about alone, which counts more."""
        if self.most == 1 or is_offline(self.panel.endpoints[role].model):
            return None, True
        if kept_record(self.panel.client.replies, request.digest) is not None:
            return None, True
        record = kept_record(self.panel.client.replies, _in_company(request))
        answer = self._read(role, excerpt, received(record, cached=True)) if record else None
        return answer if answer and answer.parsed else None, False

    def _parted(self, excerpts: Sequence[Excerpt], answer: RoleAnswer) -> list[RoleAnswer]:
        """The answer about each trace, of one about them all; each is kept."""
        assert answer.parsed is not None
        votes, last, parts = iter(answer.parsed.votes), answer.received[-1], []
        for excerpt, paid in zip(excerpts, _shared_out(answer.received, excerpts), strict=True):
            steps = [{"thinking_step": [place], "labels": ratings(next(votes))} for place in excerpt.asked]
            text = json.dumps({"steps": steps, "overall_confidence": answer.parsed.overall_confidence})
            request = self.request_about(answer.role, [excerpt])
            response = {
                "part_of": [each.request_digest for each in answer.received],
                "model": last.response.get("model"),
            }
            reading = {"reply": text, "finish_reason": last.finish_reason, "response": response, **paid}
            digest = _in_company(request)
            record = reply_record(last.model, digest, prompt_digest(request), reading, latency_s=0.0)
            self.panel.client.replies.put(digest, record)
            parts.append(self._read(answer.role, excerpt, received(record, cached=last.cached)))
        return parts

    def _read(self, role: str, excerpt: Excerpt, said: Received) -> RoleAnswer:
        return self.panel.read(role, said, [[place] for place in excerpt.asked])


def _again(answer: RoleAnswer) -> RoleAnswer:
    """The answer to an equal question, for which nothing was paid."""
    return answer._replace(received=[each._replace(cached=True) for each in answer.received])


def grouped(sizes: Mapping[int, int], most: int) -> list[list[int]]:
    """Neighbours that come to no more than a sum together; what is larger is alone.

    >>> grouped({0: 2, 1: 1, 4: 3, 5: 1}, most=3)
    [[0, 1], [4], [5]]
    """
    groups: list[list[int]] = []
    room = 0
    for name, size in sizes.items():
        if size > room or not groups:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= size
    return groups


def _in_company(request: Request) -> str:
    """What the reply to a request is kept under where it was given together with others."""
    return key_of(said_in_company=request.digest)


def _shared_out(replies: Sequence[Received], excerpts: Sequence[Excerpt]) -> Iterator[dict[str, Any]]:
    """Each trace's share of what was paid, by the segments asked about; tokens are whole, and sum up."""
    ends = list(accumulate(len(each.asked) for each in excerpts))
    for start, end in pairwise([0, *ends]):
        tokens = {
            name: round(total * end / ends[-1]) - round(total * start / ends[-1])
            for name in ("prompt_tokens", "completion_tokens")
            for total in [sum(getattr(reply, name) for reply in replies)]
        }
        yield {**tokens, "cost_usd": sum(reply.cost_usd for reply in replies) * (end - start) / ends[-1]}
