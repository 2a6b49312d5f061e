"""Embeddings of texts from an endpoint, through litellm: paced, paid, retried and kept like chat requests.

:class:`mralign_core.induction.embedding.EmbeddingClient` is the chat client with this module in place of
:mod:`mralign_core.llm.endpoint`: texts travel as the messages of a request, and the reply that is kept is their vectors
as JSON. Importing it imports litellm, which takes seconds.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

import litellm
from litellm.types.utils import EmbeddingResponse

from mralign_core.annotation.replies import ReplyProblem
from mralign_core.config import EndpointConfig
from mralign_core.llm.endpoint import (
    address,
    can_pass,
    check_endpoint,
    count_tokens,
    is_offline,
    is_refusal,
    may_be_billed,
    price_of,
    retry_after_s,
    tokens_of,
    user_error,
)
from mralign_core.llm.offline import Message

__all__ = [
    "PARAMS",
    "can_pass",
    "check_endpoint",
    "count_tokens",
    "is_offline",
    "is_refusal",
    "may_be_billed",
    "parse_vectors",
    "price_of",
    "read",
    "retry_after_s",
    "send",
    "text_messages",
    "tokens_of",
    "user_error",
]

# litellm 1.106 takes an embedding's max_retries=0 for "not given" and lets the client retry as often as this says.
litellm.DEFAULT_MAX_RETRIES = 0  # type: ignore[misc]

PARAMS = {"task": "embedding"}
"""Keeps the digest of a request for vectors apart from that of a chat about the same texts; it is not sent."""


def text_messages(texts: Sequence[str]) -> list[Message]:
    """Texts as the messages of a request."""
    return [{"role": "user", "content": text} for text in texts]


async def send(endpoint: EndpointConfig, messages: list[Any], params: dict[str, Any]) -> EmbeddingResponse:
    """Make exactly one attempt at a request for embeddings, and give up on it after ``timeout_s`` seconds in all."""
    assert params == PARAMS, params
    async with asyncio.timeout(endpoint.timeout_s):
        response: EmbeddingResponse = await litellm.aembedding(
            model=endpoint.model,
            input=[message["content"] for message in messages],
            timeout=endpoint.timeout_s,
            num_retries=0,
            max_retries=0,
            **address(endpoint),
        )
    return response


def read(endpoint: EndpointConfig, response: EmbeddingResponse, most_usd: float = 0.0) -> dict[str, Any]:
    """What a response says: the vectors in the order of the texts, as JSON, its tokens and its price.

    Where the endpoint does not say what it counted, the price is ``most_usd``.
    """
    usage = response.usage
    num_tokens = (usage.prompt_tokens or 0) if usage else 0
    vectors = sorted(response.data or [], key=lambda item: item["index"])
    return {
        "response": {"model": response.model, "usage": usage.model_dump(mode="json") if usage else None},
        "reply": json.dumps([item["embedding"] for item in vectors]),
        "finish_reason": "stop",
        "prompt_tokens": num_tokens,
        "completion_tokens": 0,
        "cost_usd": price_of(endpoint).cost_usd(num_tokens, 0) if num_tokens else most_usd,
    }


def parse_vectors(reply: str, num_texts: int) -> list[list[float]]:
    """The vectors of a reply.

    Raises:
        ReplyProblem: they are not one vector of finite numbers, not all zero, a text, all of the same length.
    """
    try:
        vectors = json.loads(reply)
    except ValueError as error:
        raise ReplyProblem("not_json", f"it holds no vectors ({error})") from None
    if not isinstance(vectors, list) or len(vectors) != num_texts:
        raise ReplyProblem("wrong_form", f"it must hold {num_texts} vectors, got {_count(vectors)}")
    for place, vector in enumerate(vectors):
        if not _is_vector(vector) or len(vector) != len(vectors[0]):
            detail = (
                f"vector {place} must hold {_count(vectors[0])} finite numbers that are not all 0, got {vector!r:.60}"
            )
            raise ReplyProblem("wrong_form", detail)
    return vectors


def _is_vector(vector: Any) -> bool:
    is_numbers = isinstance(vector, list) and all(isinstance(value, int | float) for value in vector)
    return is_numbers and all(map(math.isfinite, vector)) and any(vector)


def _count(values: Any) -> str:
    return str(len(values)) if isinstance(values, list) else f"{values!r:.40}"
