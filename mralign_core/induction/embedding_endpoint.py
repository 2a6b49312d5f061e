"""Embeddings of texts from an endpoint, through litellm: paced, paid, retried and kept like chat requests.

A client with :class:`Embeddings` for its service asks for them: texts travel as the messages of a request, and the
reply that is kept is their vectors as JSON. Importing this imports litellm, which takes seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from litellm.types.utils import EmbeddingResponse

from mralign_core.annotation.replies import ReplyProblem
from mralign_core.config import EndpointConfig
from mralign_core.llm.endpoint import MESSAGE_TOKENS, Bounds, count_tokens, is_plausible, price_of, watched
from mralign_core.llm.exchange import Exchange
from mralign_core.llm.offline import Message
from mralign_core.llm.request import Request
from mralign_core.llm.silent import litellm

MOST_WIDTH = 16_384
"""Numbers in the longest vector that a reply may bring."""
BYTES_PER_NUMBER = 32

# litellm 1.106 takes an embedding's max_retries=0 for "not given" and lets the client retry as often as this says.
litellm.DEFAULT_MAX_RETRIES = 0

PARAMS = {"task": "embedding"}
"""Keeps the digest of a request for vectors apart from that of a chat about the same texts; it is not sent."""


def text_messages(texts: Sequence[str]) -> list[Message]:
    """Texts as the messages of a request."""
    return [{"role": "user", "content": text} for text in texts]


class Embeddings:
    """Requests for vectors, one attempt at a time; a :class:`~mralign_core.llm.client.Service`."""

    def count_tokens(self, request: Request) -> int:
        """Tokens of the texts, by estimate."""
        return count_tokens(request.endpoint, request.messages, request.params)

    def bounds_of(self, request: Request, longest: int = 0) -> Bounds:
        """Bounds of what an attempt takes: no more tokens than the texts have bytes, and none of a reply."""
        num_bytes = sum(len(message["content"].encode("utf-8", "backslashreplace")) for message in request.messages)
        num_tokens = num_bytes + MESSAGE_TOKENS * len(request.messages)
        return Bounds(num_tokens, 0, price_of(request.endpoint).cost_usd(num_tokens, 0))

    def exchange_for(self, request: Request, bounds: Bounds) -> Exchange:
        """What watches one attempt, with a bound for its reply."""
        return Exchange(MOST_WIDTH * BYTES_PER_NUMBER * len(request.messages))

    async def attempt(
        self, request: Request, params: Mapping[str, Any], bounds: Bounds, exchange: Exchange | None
    ) -> dict[str, Any]:
        """Make exactly one attempt, and read what came.

        Raises:
            AttemptError: no reply came, or none that can be read.
        """
        assert params == PARAMS, params
        assert exchange is not None
        endpoint, texts = request.endpoint, [message["content"] for message in request.messages]
        call = partial(litellm.aembedding, model=endpoint.model, input=texts)
        return await watched(endpoint, call, lambda response: read_embeddings(endpoint, response, bounds), exchange)


def read_embeddings(endpoint: EndpointConfig, response: EmbeddingResponse, bounds: Bounds) -> dict[str, Any]:
    """What a response says: the vectors in the order of the texts, as JSON, its tokens and its price.

    Where the endpoint does not say what it counted, or can't have, the price is the most that it can be.
    """
    num_tokens = response.usage.prompt_tokens if response.usage else 0
    is_metered = is_plausible(num_tokens, bounds.prompt_tokens)
    vectors = sorted(response.data or [], key=lambda item: item["index"])
    return {
        "response": {"model": str(response.model), "usage": {"prompt_tokens": num_tokens} if is_metered else None},
        "reply": json.dumps([item["embedding"] for item in vectors]),
        "finish_reason": "stop",
        "prompt_tokens": num_tokens if is_metered else 0,
        "completion_tokens": 0,
        "cost_usd": price_of(endpoint).cost_usd(num_tokens, 0) if is_metered else bounds.usd,
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
