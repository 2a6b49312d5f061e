"""One question to a model, and what it costs; see :mod:`mralign_core.annotation.conversing`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from mralign_core.annotation.conversing import converse
from mralign_core.config import AskAgain, EndpointConfig
from mralign_core.llm.client import Client
from mralign_core.llm.offline import Message
from mralign_core.llm.request import Received

Parsed = TypeVar("Parsed")


class Answer(NamedTuple, Generic[Parsed]):
    """What the last reply says, or None and why it can't be used; ``cost_usd`` is what was paid just now.

    ``is_final`` tells that asking again is of no use.
    """

    parsed: Parsed | None
    problem: str
    cost_usd: float
    is_final: bool = False


async def ask(
    client: Client,
    endpoint: EndpointConfig,
    messages: Sequence[Message],
    params: dict[str, Any],
    parse: Callable[[str, str], Parsed],
    ask_again: AskAgain = "auto",
) -> Answer[Parsed]:
    """Ask a model, with one repair turn, and again where an earlier run got nothing of use.

    Args:
        client: what sends requests and keeps replies.
        endpoint: the model.
        messages: the question.
        params: the request's parameters.
        parse: from the reply's text and finish reason to what it says; raises ``ReplyProblem``.
        ask_again: what is asked again of what an earlier run left out.
    """

    def read(received: Received) -> Parsed:
        return parse(received.reply, received.finish_reason)

    replies = await converse(client, endpoint, messages, params, read, ask_again)
    cost_usd = sum(0.0 if reply.received.cached else reply.received.cost_usd for reply in replies)
    *_, (_, parsed, problem) = replies
    return Answer(parsed, str(problem or ""), cost_usd, problem is not None and problem.is_final)
