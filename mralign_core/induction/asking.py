"""One question to a model, and once more with the reason when its reply can't be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from mralign_core.annotation.prompts import repair_messages
from mralign_core.annotation.replies import ReplyProblem
from mralign_core.config import EndpointConfig
from mralign_core.llm import Client, Message, Request

Parsed = TypeVar("Parsed")


class Answer(NamedTuple, Generic[Parsed]):
    """What the last reply says, or None and why it can't be used; ``cost_usd`` is what was paid just now."""

    parsed: Parsed | None
    problem: str
    cost_usd: float


async def ask(
    client: Client,
    endpoint: EndpointConfig,
    messages: Sequence[Message],
    params: dict[str, Any],
    parse: Callable[[str, str], Parsed],
) -> Answer[Parsed]:
    """Ask a model, with one repair turn.

    Args:
        client: what sends requests and keeps replies.
        endpoint: the model.
        messages: the question.
        params: the request's parameters.
        parse: from the reply's text and finish reason to what it says; raises ``ReplyProblem``.
    """
    cost_usd, problem = 0.0, ""
    for turn in range(2):
        received = await client.complete(Request(endpoint, messages, params, turn))
        cost_usd += 0.0 if received.cached else received.cost_usd
        try:
            return Answer(parse(received.reply, received.finish_reason), "", cost_usd)
        except ReplyProblem as error:
            problem = str(error)
            if error.kind == "refused":
                break
            messages = repair_messages(messages, received.reply, problem)
    return Answer(None, problem, cost_usd)
