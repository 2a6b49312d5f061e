"""Does a server answer with an adapter at all? One that ignores it gives every variant the base model's scores.

A server that lists the name may still know nothing of adapters: llama.cpp's answers to any name and lists those it is
given, and proxies pass several names on to one model. So a few prompts of our own, which are no questions of any set,
are continued greedily with the adapter and without. What tells is how probable the server says its tokens are: an
adapter that is used moves these, though it may change no word.

A server is not wholly exact: what it computes depends on what else it computes. So the base model is asked twice, and
the adapter is taken for ignored where it is no further from the base model than :data:`NOISE_FACTOR` times what that is
from itself, in its words and in its probabilities. One request goes at a time, so that there is little noise. Where a
server gives no probabilities, words must do, and more of them are compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mralign_core.errors import ConfigError
from mralign_core.generation import Decoding, SampleRequest
from mralign_core.llm import background
from mralign_core.llm.client import LLMClient
from mralign_core.llm.reasoning import read_reasoning
from mralign_core.llm.request import Received, Request

logger = logging.getLogger("mralign_core.serving")

PROMPTS = (
    "Tell me about the sea.",
    "Why is the sky blue?",
    "Write a line about winter.",
    "What is a good breakfast?",
    "How does a bicycle stay upright?",
    "Name three rivers and say where they flow.",
    "Explain what a prime number is.",
    "What did people eat in the Middle Ages?",
    "Describe a forest at night.",
    "How is paper made?",
    "Which planet would you visit, and why?",
    "What makes a good friend?",
    "Tell a story of two sentences about a fox.",
    "How do birds find their way?",
    "What is the use of a compass?",
    "Why do leaves change colour?",
)
NUM_WITH_LOGPROBS = 4
"""Prompts that are enough where a server says how probable its tokens are: hundreds of numbers."""
NUM_TOKENS = 64
NOISE_FACTOR = 2.0
DECODING = Decoding(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=NUM_TOKENS, seed=0)

AsksModel = Callable[[SampleRequest, Decoding], Request]
"""Makes the request for a draw, as a sampler sends it."""


class GreedyReply(NamedTuple):
    """What a server said to one prompt: the whole text, its tokens, and their log-probabilities (empty: not given)."""

    text: tuple[str, str]
    tokens: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()


class ReplyDistance(NamedTuple):
    """How far two models' replies to the same prompts are apart."""

    num_texts: int
    """Replies that read otherwise."""
    logprob: float
    """Mean absolute difference of a token's log-probability, in nats."""

    def __str__(self) -> str:
        return f"{self.num_texts} other replies and {self.logprob:.2g} nats a token"

    def exceeds(self, noise: ReplyDistance) -> bool:
        """Whether it is more than that of a model from itself."""
        return self.num_texts > NOISE_FACTOR * noise.num_texts or self.logprob > NOISE_FACTOR * noise.logprob


def refuse_ignored_adapter(
    ask_base: AsksModel, ask_adapter: AsksModel, client: LLMClient, *, name: str, policy: str
) -> None:
    """Refuse, or warn of, a server that answers with an adapter as without; every client asks it anew, and pays.

    Args:
        ask_base: asks the base model.
        ask_adapter: asks with the adapter.
        client: sends the requests, and pays for them.
        name: the adapter's at the server.
        policy: ``evaluate.ignored_adapters``.

    Raises:
        ConfigError: the adapter is ignored; or no prompt was answered, so that nothing can be said.
        UserError: the server refuses such requests, or the budget is used up.
        EndpointUnavailableError: it is out of reach.
    """
    noise, distance = background.run(lambda _: _measure(ask_base, ask_adapter, client, name))
    logger.info("adapter %s is %s away from the base model, which is %s away from itself", name, distance, noise)
    if distance.exceeds(noise):
        return
    text = (
        f"the server answers with adapter {name} as it does without: its replies to short prompts are {distance} away "
        f"from the base model's, and those {noise} away from its own. It may ignore the name of the model, or have "
        "other weights under it: look at its log. If the adapter was trained so little that this may be so, set "
        "evaluate.ignored_adapters to 'warn'"
    )
    if policy == "refuse":
        raise ConfigError(text)
    logger.warning("%s", text)


async def _measure(
    ask_base: AsksModel, ask_adapter: AsksModel, client: LLMClient, name: str
) -> tuple[ReplyDistance, ReplyDistance]:
    """How far the base model is from itself, and the adapter from it."""

    async def ask(ask_model: AsksModel, number: int, turn: int, *, logprobs: bool) -> GreedyReply | None:
        request = ask_model(SampleRequest(f"probe-{number}", PROMPTS[number], "on", 0), DECODING)
        if logprobs:
            body = {**request.params.get("extra_body", {}), "logprobs": True}
            request = request._replace(params={**request.params, "extra_body": body})
        # What was kept tells of the server as it was: it may have been mended since, or started anew without adapters.
        received = await client.complete(request._replace(turn=turn), ask_again=True)
        return None if received.failed else read_greedy(received)

    first = await ask(ask_base, 0, 0, logprobs=True)
    has_logprobs = first is not None and bool(first.logprobs)
    replies: list[tuple[GreedyReply, GreedyReply, GreedyReply]] = []
    for number in range(NUM_WITH_LOGPROBS if has_logprobs else len(PROMPTS)):
        base = await ask(ask_base, number, 0, logprobs=has_logprobs)
        again = await ask(ask_base, number, 1, logprobs=has_logprobs)
        adapted = await ask(ask_adapter, number, 0, logprobs=has_logprobs)
        if base and again and adapted:
            replies.append((base, again, adapted))
    if not replies:
        raise ConfigError(f"the server failed to answer all prompts that would show whether it uses adapter {name}")
    bases, again_bases, adapted_replies = zip(*replies, strict=True)
    return distance_between(bases, again_bases), distance_between(bases, adapted_replies)


def read_greedy(received: Received) -> GreedyReply:
    """What a reply says, with the log-probabilities that came with it."""
    choices: list[dict[str, Any]] = (received.response or {}).get("choices") or []
    logprobs = (choices[0].get("logprobs") if choices else None) or {}
    content = (logprobs.get("content") if isinstance(logprobs, dict) else None) or []
    return GreedyReply(
        (read_reasoning(received.response).thinking, received.reply),
        tuple(str(token["token"]) for token in content),
        tuple(float(token["logprob"]) for token in content),
    )


def distance_between(some: Sequence[GreedyReply], others: Sequence[GreedyReply]) -> ReplyDistance:
    """How far replies to the same prompts are apart; tokens are compared up to the first that differs.

    Example:
        >>> one = GreedyReply(("", "a b"), ("a", "b"), (-0.1, -0.2))
        >>> distance_between([one], [GreedyReply(("", "a c"), ("a", "c"), (-0.35, -0.9))])
        ReplyDistance(num_texts=1, logprob=0.25)
    """
    moved = [
        abs(one_logprob - other_logprob)
        for one, other in zip(some, others, strict=True)
        for one_logprob, other_logprob in zip(*_shared(one, other), strict=True)
    ]
    num_texts = sum(one.text != other.text for one, other in zip(some, others, strict=True))
    return ReplyDistance(num_texts, float(np.mean(moved)) if moved else 0.0)


def _shared(one: GreedyReply, other: GreedyReply) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The log-probabilities of the tokens with which both begin."""
    pairs = list(zip(one.tokens, other.tokens, strict=False))
    length = next((number for number, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return one.logprobs[:length], other.logprobs[:length]
