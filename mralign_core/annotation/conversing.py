"""One question to a model, once more with the reason when its reply can't be used, and anew in the next run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from mralign_core.annotation.prompts import repair_messages
from mralign_core.config import AskAgain, EndpointConfig
from mralign_core.llm.client import Client
from mralign_core.llm.json_reply import ReplyProblem
from mralign_core.llm.offline import Message
from mralign_core.llm.request import Received, Request

Parsed = TypeVar("Parsed")
NUM_TURNS = 2


class Read(NamedTuple, Generic[Parsed]):
    """A reply and what it says: ``parsed``, or why it can't be used."""

    received: Received
    parsed: Parsed | None
    problem: ReplyProblem | None


async def converse(
    client: Client,
    endpoint: EndpointConfig,
    messages: Sequence[Message],
    params: dict[str, Any],
    parse: Callable[[Received], Parsed],
    ask_again: AskAgain,
    *,
    tells: bool = True,
) -> list[Read[Parsed]]:
    """Ask a model, with one repair turn; the last of the replies counts.

    Replies that are kept are read first, so one that a better reader can use costs nothing. Where those of an
    earlier run are of no use, the question is asked again as a whole, once a run.

    Args:
        client: what sends requests and keeps replies.
        endpoint: the model.
        messages: the question.
        params: the request's parameters.
        parse: says what a reply says, or raises ``ReplyProblem``.
        ask_again: what is asked again.
        tells: whether replies of no use tell something of the endpoint; not where the question is put otherwise next.

    Raises:
        UserError: the endpoint's first replies, or many in a row, were all of no use, those to questions that are
            asked again aside; or as ``Client.complete`` raises.
    """
    replies = await _two_turns(client, endpoint, messages, params, parse, is_again=False)
    problem = replies[-1].problem
    is_again = bool(problem and all(reply.received.cached for reply in replies) and _is_asked_again(problem, ask_again))
    if is_again:
        replies = await _two_turns(client, endpoint, messages, params, parse, is_again=True)
    received, _, problem = replies[-1]
    if received.cached or received.failed:  # the client counts failed requests itself
        return replies
    if problem is None:
        client.report_readable(endpoint)
    elif tells and not problem.is_final and not is_again:
        # What an earlier run failed on tells nothing of the endpoint: it is the hardest of many questions.
        client.report_unreadable(endpoint, problem.kind, received.reply)
    return replies


async def _two_turns(
    client: Client,
    endpoint: EndpointConfig,
    messages: Sequence[Message],
    params: dict[str, Any],
    parse: Callable[[Received], Parsed],
    *,
    is_again: bool,
) -> list[Read[Parsed]]:
    replies: list[Read[Parsed]] = []
    for turn in range(NUM_TURNS):
        received = await client.complete(Request(endpoint, messages, params, turn), ask_again=is_again)
        try:
            if received.failed:
                raise ReplyProblem("failed", received.problem)
            return [*replies, Read(received, parse(received), None)]
        except ReplyProblem as problem:
            replies.append(Read(received, None, problem))
            if problem.is_final or received.failed:
                break
            messages = repair_messages(messages, received.reply, str(problem))
    return replies


def _is_asked_again(problem: ReplyProblem, ask_again: AskAgain) -> bool:
    return ask_again == "failed" or (ask_again == "auto" and not problem.is_final)


async def gather_all(work: Sequence[Awaitable[Any]]) -> list[Any]:
    """Results of all, once every one has ended, even if badly: a request under way is paid for, and kept."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
