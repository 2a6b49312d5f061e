"""litellm as this project uses it: a request is one attempt, silent, its errors sorted by what can be done.

Importing litellm takes seconds, so functions that need it do: an offline model is asked without it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from mralign_core.config import EndpointConfig
from mralign_core.errors import ConfigError
from mralign_core.llm import offline
from mralign_core.llm.offline import Message, is_offline
from mralign_core.llm.request import OFFERED, Reach, Request
from mralign_core.llm.tidying import MOST_TOKENS, as_utf8, storable, text_of, token_count

if TYPE_CHECKING:
    from litellm.types.utils import ModelResponse

    from mralign_core.llm.exchange import Exchange

NO_JSON_SCHEMA = ("deepseek",)
"""Providers that refuse a JSON schema though litellm says otherwise (its issue 7580): they get JSON mode."""
SELF_HOSTED = ("hosted_vllm", "llamafile", "lm_studio")
"""Providers that are servers of one's own: where no price is given, their tokens cost nothing."""
BASE_BYTES = 1_048_576
"""A reply may be so long, and longer by what its tokens take up."""
BYTES_PER_TOKEN = 64
"""Of a reply: most bytes of a token's text, escaped, and of its id."""
CONNECT_SHARE = 0.8
"""Of the time for a reply, the longest part for the connection."""
MESSAGE_TOKENS = 16
"""Most tokens that a chat template puts around one message."""
TEMPLATE_TOKENS = 500
"""Most tokens that it puts before them, such as a system prompt of its own."""
PLAUSIBLE_FACTOR = 4
"""A count, or a cost, above so many times the bound is none: what was asked can't come to that."""


class Price(NamedTuple):
    """Dollars for one token."""

    input_usd: float
    output_usd: float

    def cost_usd(self, num_input: int, num_output: int) -> float:
        """Dollars for so many tokens."""
        return num_input * self.input_usd + num_output * self.output_usd


class Bounds(NamedTuple):
    """The most that one attempt at a request can take."""

    prompt_tokens: int
    completion_tokens: int
    usd: float


NO_BOUNDS = Bounds(MOST_TOKENS, MOST_TOKENS, 0.0)


class ChatCompletions:
    """Chat requests, one attempt at a time; a :class:`~mralign_core.llm.client.Service`."""

    def count_tokens(self, request: Request) -> int:
        """Tokens of the prompt, by estimate."""
        return count_tokens(request.endpoint, request.messages, request.params)

    def bounds_of(self, request: Request, longest: int = 0) -> Bounds:
        """Bounds of what an attempt takes, for the account: no tokenizer makes more tokens of a text than it has bytes.

        Args:
            request: what is to be asked.
            longest: tokens of the longest reply so far, as some servers don't keep to ``max_output_tokens``.
        """
        endpoint, messages, params, *_ = request
        num_bytes = sum(len(message["content"].encode("utf-8", "backslashreplace")) for message in messages)
        shape = sum(len(json.dumps(params[name])) for name in ("response_format", OFFERED) if name in params)
        num_prompt = num_bytes + shape + MESSAGE_TOKENS * len(messages) + TEMPLATE_TOKENS
        num_completion = max(endpoint.max_output_tokens, longest)
        return Bounds(num_prompt, num_completion, price_of(endpoint).cost_usd(num_prompt, num_completion))

    def exchange_for(self, request: Request, bounds: Bounds) -> Exchange | None:
        """What watches one attempt, with a bound for its reply; None where nothing is sent."""
        if is_offline(request.endpoint.model):
            return None
        from mralign_core.llm.exchange import Exchange

        return Exchange(BASE_BYTES + BYTES_PER_TOKEN * (bounds.prompt_tokens + bounds.completion_tokens))

    async def attempt(
        self, request: Request, params: Mapping[str, Any], bounds: Bounds, exchange: Exchange | None
    ) -> dict[str, Any]:
        """Make exactly one attempt, and read what came; given up on after ``timeout_s`` seconds in all.

        Args:
            request: what is asked.
            params: the parameters to send, which may be fewer than the request's.
            bounds: of what the reply takes.
            exchange: watches the attempt; see :meth:`exchange_for`.

        Raises:
            AttemptError: no reply came, or none that can be read.
        """
        endpoint, messages = request.endpoint, list(request.messages)
        if exchange is None:
            return _offline_reading(endpoint.model, messages, params)
        from mralign_core.llm.silent import litellm

        call = partial(litellm.acompletion, model=endpoint.model, messages=messages, **params)
        where = address(endpoint, request.reach)
        return await watched(
            endpoint, call, lambda response: read_completion(endpoint, response, bounds), exchange, where
        )


async def watched(
    endpoint: EndpointConfig,
    call: Callable[..., Awaitable[Any]],
    read_response: Callable[[Any], dict[str, Any]],
    exchange: Exchange,
    where: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a call of litellm brings, read, within ``timeout_s`` seconds in all; ``where`` is its :func:`address`.

    Raises:
        AttemptError: no reply came, or none that can be read.
    """
    from mralign_core.llm.exchange import attempt_error

    try:
        # litellm's time-out restarts with every byte that arrives; this one does not.
        async with asyncio.timeout(endpoint.timeout_s):
            # A connection that is not made in time must show as such, and not as a request that may be billed.
            limits = httpx.Timeout(endpoint.timeout_s, connect=CONNECT_SHARE * endpoint.timeout_s)
            with exchange.observed():
                response = await call(timeout=limits, num_retries=0, max_retries=0, **(where or address(endpoint)))
        return read_response(response)
    except Exception as error:
        raise attempt_error(error, time.time(), exchange) from error


def request_params(endpoint: EndpointConfig, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """The parameters of a request that its reply depends on, with a JSON schema as far as it can be kept."""
    if is_offline(endpoint.model):
        return {}
    temperature = {} if endpoint.temperature is None else {"temperature": endpoint.temperature}
    shape = shape_of(endpoint, schema) if schema else {}
    return {"max_tokens": endpoint.max_output_tokens} | temperature | shape


def check_endpoint(endpoint: EndpointConfig, field: str) -> None:
    """Fail early on a model that can't be asked, or whose bill can't be known.

    Args:
        endpoint: the model.
        field: the config field that names it, for the message.

    Raises:
        ConfigError: litellm knows no such provider, the API key for it is missing, it has no price or no batch API
            though the config asks for it, or there is no such offline model.
    """
    provider, _, name = endpoint.model.partition("/")
    if is_offline(endpoint.model):
        if endpoint.use_batch_api:
            raise ConfigError(f"{field}: use_batch_api has no effect on offline model {endpoint.model!r}: remove it")
        if name not in offline.PROVIDERS[provider].models:
            known = ", ".join(offline.names(provider))
            raise ConfigError(f"{field}: there is no offline model {endpoint.model!r}; there are {known}")
        return
    from mralign_core.llm.silent import BATCH_PROVIDERS, litellm

    try:
        provider = litellm.get_llm_provider(model=endpoint.model)[1]
    except litellm.BadRequestError:
        remedy = "write it as provider/model, such as openai/gpt-4o, or cue/a for the offline annotator"
        raise ConfigError(f"{field}: model {endpoint.model!r} has no provider litellm knows: {remedy}") from None
    if endpoint.use_batch_api and provider not in BATCH_PROVIDERS:
        raise ConfigError(
            f"{field}: no batch API of provider {provider!r} can be used for model {endpoint.model!r}: remove "
            f"use_batch_api, or name a model of {', '.join(sorted(BATCH_PROVIDERS))}"
        )
    if not endpoint.api_base and (missing := missing_keys(endpoint.model)):
        # Without this check litellm reports a missing key as a server error, which looks worth repeating.
        keys = " or ".join(missing)
        raise ConfigError(f"{field}: no API key for model {endpoint.model!r}: set {keys} in the environment")
    if known_price(endpoint) is None:
        raise ConfigError(
            f"{field}: no price is known for model {endpoint.model!r}: set input_usd_per_million and "
            "output_usd_per_million beside it (0 for a server of your own)"
        )


def known_price(endpoint: EndpointConfig) -> Price | None:
    """Price of a token: the config's, else litellm's, else None.

    Through the batch API it is litellm's batch price; where litellm knows none it is the full one, so that a ceiling
    holds: a rebate that the provider gives is then to be put into the config.
    """
    if is_offline(endpoint.model):
        return Price(0.0, 0.0)
    if endpoint.input_usd_per_million is not None and endpoint.output_usd_per_million is not None:
        return Price(endpoint.input_usd_per_million / 1e6, endpoint.output_usd_per_million / 1e6)
    from mralign_core.llm.silent import litellm

    try:
        info: dict[str, Any] = dict(litellm.get_model_info(endpoint.model))
    except Exception:  # litellm raises bare Exceptions of several kinds for a model it has no entry for
        return Price(0.0, 0.0) if endpoint.model.startswith(tuple(f"{name}/" for name in SELF_HOSTED)) else None
    suffix = "_batches" if endpoint.use_batch_api and info.get("input_cost_per_token_batches") else ""
    price_in, price_out = (info.get(f"{side}_cost_per_token{suffix}") for side in ("input", "output"))
    return None if price_in is None or price_out is None else Price(float(price_in), float(price_out))


@functools.cache
def price_of(endpoint: EndpointConfig) -> Price:
    """Price of a token of a model that :func:`check_endpoint` passed."""
    price = known_price(endpoint)
    assert price is not None, endpoint.model
    return price


def count_tokens(endpoint: EndpointConfig, messages: Sequence[Message], params: Mapping[str, Any]) -> int:
    """Tokens of a prompt and its JSON schema, by litellm's tokenizer for the model.

    With a margin, as providers add some of their own. A schema that is only offered costs nothing: a server of one's
    own constrains its reply by it, and does not read it.
    """
    from mralign_core.llm.silent import litellm

    num_tokens = litellm.token_counter(model=endpoint.model, messages=list(messages))
    if shape := params.get("response_format"):
        num_tokens += litellm.token_counter(model=endpoint.model, text=json.dumps(shape))
    return int(1.05 * num_tokens) + 16


def read_completion(endpoint: EndpointConfig, response: ModelResponse, bounds: Bounds) -> dict[str, Any]:
    """What a response says: text, why it ended, tokens, price, and the whole of it, raw.

    Args:
        endpoint: the model.
        response: what litellm made of its reply.
        bounds: of its tokens, and the price when the endpoint does not say what it counted, or can't have.
    """
    choice = response.choices[0] if response.choices else None
    usage = getattr(response, "usage", None)
    prompt_tokens, completion_tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    text = as_utf8(text_of(choice.message.content) if choice else "")
    is_metered = is_plausible(prompt_tokens, bounds.prompt_tokens) and is_plausible(
        completion_tokens, bounds.completion_tokens, least=1 if text else 0
    )
    cost_usd = _cost_usd(endpoint, response, prompt_tokens, completion_tokens) if is_metered else bounds.usd
    if not is_metered or (bounds.usd and cost_usd > PLAUSIBLE_FACTOR * bounds.usd):
        prompt_tokens, completion_tokens, cost_usd = 0, 0, bounds.usd
    return {
        "response": storable(response.model_dump(mode="json", warnings=False)),
        "reply": text,
        "finish_reason": (choice.finish_reason or "") if choice else "",
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cost_usd": cost_usd,
    }


def is_plausible(num_tokens: Any, most_tokens: int, least: int = 1) -> bool:
    """Whether a server can have counted so many tokens."""
    count = token_count(num_tokens)
    return count is not None and count == num_tokens and least <= count <= PLAUSIBLE_FACTOR * most_tokens


def _cost_usd(endpoint: EndpointConfig, response: ModelResponse, num_input: int, num_output: int) -> float:
    """Litellm knows of cached prompts and other rebates; a price in the config goes before it."""
    litellms: float | None = response._hidden_params.get("response_cost")
    if litellms is None or endpoint.input_usd_per_million is not None or endpoint.use_batch_api:
        return price_of(endpoint).cost_usd(num_input, num_output)
    return litellms if litellms > 0 and math.isfinite(litellms) else price_of(endpoint).cost_usd(num_input, num_output)


def _offline_reading(model: str, messages: Sequence[Message], params: Mapping[str, Any]) -> dict[str, Any]:
    """What an offline model says, as :func:`read_completion` has it; its tokens are words."""
    reply = as_utf8(offline.reply(model, messages, params))
    return {
        "response": {"model": model, "choices": [{"message": {"role": "assistant", "content": reply}}]},
        "reply": reply,
        "finish_reason": "stop",
        "prompt_tokens": sum(len(message["content"].split()) for message in messages),
        "completion_tokens": len(reply.split()),
        "cost_usd": 0.0,
    }


def address(endpoint: EndpointConfig, reach: Reach | None = None) -> dict[str, str]:
    """The litellm arguments that say where a model of one's own is."""
    if reach:
        return {"api_base": reach.api_base, "api_key": reach.api_key}
    if not endpoint.api_base:
        return {}
    # A server of one's own needs no key, but the client library won't do without one.
    key = {"api_key": "unused"} if missing_keys(endpoint.model) else {}
    return {"api_base": endpoint.api_base} | key


def api_key_of(model: str) -> str:
    """The API key in the environment that litellm sends to a server of a model's provider; empty where none is set."""
    return os.environ.get(f"{model.partition('/')[0].upper()}_API_KEY", "")


def missing_keys(model: str) -> list[str]:
    """Names of the environment variables that would hold the API key of a model and don't."""
    from mralign_core.llm.silent import litellm

    return [key for key in litellm.validate_environment(model=model)["missing_keys"] if key.endswith("_API_KEY")]


def shape_of(endpoint: EndpointConfig, schema: dict[str, Any]) -> dict[str, Any]:
    """The request parameters that make an endpoint keep to a JSON schema, as its config says."""
    if endpoint.response_format == "auto":
        known = response_format(endpoint.model, schema)
        return known if known or not endpoint.api_base else {OFFERED: schema_format(schema)}
    if endpoint.response_format == "json_schema":
        return {"response_format": schema_format(schema)}
    return {"response_format": {"type": "json_object"}} if endpoint.response_format == "json_object" else {}


def response_format(model: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The request parameters that make a model keep to a JSON schema, as far as it is known to."""
    from mralign_core.llm.silent import litellm

    if not litellm.supports_response_schema(model=model):
        return {}
    if litellm.get_llm_provider(model=model)[1] in NO_JSON_SCHEMA:
        return {"response_format": {"type": "json_object"}}
    return {"response_format": schema_format(schema)}


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    """The request parameter ``response_format`` that asks for a reply of this JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "annotation", "strict": True, "schema": schema}}
