"""litellm as this project uses it: a request is one attempt, silent, its errors sorted by what can be done.

Importing litellm takes seconds, so this module is imported where a client is made and not before.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import litellm
from litellm.exceptions import BadRequestError, ContentPolicyViolationError, ContextWindowExceededError, Timeout
from litellm.types.utils import OPENAI_COMPATIBLE_BATCH_AND_FILES_PROVIDERS, ModelResponse
from openai import OpenAIError

from mralign_core.config import EndpointConfig
from mralign_core.errors import ConfigError, UserError
from mralign_core.llm import offline
from mralign_core.llm.offline import Message, is_offline

litellm.telemetry = False
litellm.suppress_debug_info = True
for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
    logging.getLogger(name).setLevel(logging.ERROR)

NO_JSON_SCHEMA = ("deepseek",)
"""Providers that refuse a JSON schema though litellm says otherwise (its issue 7580): they get JSON mode."""
BATCH_PROVIDERS = frozenset({*OPENAI_COMPATIBLE_BATCH_AND_FILES_PROVIDERS, "azure"})
"""Providers whose whole batch protocol litellm speaks: for others it lacks a call, or needs a bucket of one's own."""
SELF_HOSTED = ("hosted_vllm", "llamafile", "lm_studio")
"""Providers that are servers of one's own: where no price is given, their tokens cost nothing."""
REFUSALS = (ContentPolicyViolationError, ContextWindowExceededError)
REFUSING_STATUS = (400, 413, 422)
REFUSING_WORDS = re.compile(
    r"content exists risk|content[ _](filter|policy|management)|invalid_prompt|usage polic|flagged"
    r"|context[ _]length|(prompt|input) is too long|longer than the model",
    re.IGNORECASE,
)
"""How providers word that they refuse one request for its content, where litellm takes it for a bad request."""
STATUS_REMEDIES = {
    401: "set the provider's API key in the environment",
    403: "the API key may not use this model: check its permissions",
    402: "the account has no credit left: top it up, and run again to go on",
    404: "no such model at this endpoint: check its name and api_base",
    429: "the account's quota is used up: raise it, and run again to go on",
}


class Price(NamedTuple):
    """Dollars for one token."""

    input_usd: float
    output_usd: float

    def cost_usd(self, num_input: int, num_output: int) -> float:
        """Dollars for so many tokens."""
        return num_input * self.input_usd + num_output * self.output_usd


async def send(endpoint: EndpointConfig, messages: list[Any], params: dict[str, Any]) -> ModelResponse:
    """Make exactly one attempt at a chat request, and give up on it after ``timeout_s`` seconds in all."""
    if is_offline(endpoint.model):
        return _offline_response(endpoint.model, messages, params)
    # litellm's time-out restarts with every byte that arrives; this one does not.
    async with asyncio.timeout(endpoint.timeout_s):
        response: ModelResponse = await litellm.acompletion(
            model=endpoint.model,
            messages=messages,
            timeout=endpoint.timeout_s,
            num_retries=0,
            max_retries=0,
            **address(endpoint),
            **params,
        )
    return response


def request_params(endpoint: EndpointConfig, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """The parameters of a request that its reply depends on, with a JSON schema as far as it can be kept."""
    if is_offline(endpoint.model):
        return {}
    temperature = {} if endpoint.temperature is None else {"temperature": endpoint.temperature}
    shape = response_format(endpoint.model, schema) if schema else {}
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
    try:
        provider = litellm.get_llm_provider(model=endpoint.model)[1]
    except BadRequestError:
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

    With a margin, as providers add some of their own.
    """
    num_tokens = litellm.token_counter(model=endpoint.model, messages=list(messages))
    if shape := params.get("response_format"):
        num_tokens += litellm.token_counter(model=endpoint.model, text=json.dumps(shape))
    return int(1.05 * num_tokens) + 16


def read(endpoint: EndpointConfig, response: ModelResponse, most_usd: float = 0.0) -> dict[str, Any]:
    """What a response says: text, why it ended, tokens, price, and the whole of it, raw.

    Args:
        endpoint: the model.
        response: what litellm made of its reply.
        most_usd: the price when the endpoint does not say what it counted.
    """
    choice = response.choices[0] if response.choices else None
    usage = getattr(response, "usage", None)
    prompt_tokens = max(0, usage.prompt_tokens or 0) if usage else 0
    completion_tokens = max(0, usage.completion_tokens or 0) if usage else 0
    is_metered = prompt_tokens + completion_tokens > 0
    return {
        "response": _finite(response.model_dump(mode="json", warnings=False)),
        "reply": _as_utf8((choice.message.content or "") if choice else ""),
        "finish_reason": (choice.finish_reason or "") if choice else "",
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cost_usd": _cost_usd(endpoint, response, prompt_tokens, completion_tokens) if is_metered else most_usd,
    }


def tokens_of(response: ModelResponse) -> int:
    """Tokens of a prompt and its reply, as the endpoint counts them; 0 where it does not say."""
    usage = getattr(response, "usage", None)
    return (usage.total_tokens or 0) if usage else 0


def _cost_usd(endpoint: EndpointConfig, response: ModelResponse, num_input: int, num_output: int) -> float:
    """Litellm knows of cached prompts and other rebates; a price in the config goes before it."""
    litellms: float | None = response._hidden_params.get("response_cost")
    if is_offline(endpoint.model):
        return 0.0
    if litellms is None or endpoint.input_usd_per_million is not None or endpoint.use_batch_api:
        return price_of(endpoint).cost_usd(num_input, num_output)
    return max(0.0, litellms)


def _offline_response(model: str, messages: Sequence[Message], params: dict[str, Any]) -> ModelResponse:
    """An offline model's reply as litellm would bring it; its tokens are words."""
    reply = offline.reply(model, messages, params)
    prompt_tokens, completion_tokens = sum(len(message["content"].split()) for message in messages), len(reply.split())
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
    return ModelResponse(model=model, choices=[choice], usage=usage)


def _finite(value: Any) -> Any:
    """JSON values with null in place of numbers that JSON has no form for."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_utf8(text: str) -> str:
    """The text with lone surrogates escaped: JSON can bring them, but no table or request can hold them."""
    return text.encode("utf-8", "backslashreplace").decode()


def address(endpoint: EndpointConfig) -> dict[str, str]:
    """The litellm arguments that say where a model of one's own is."""
    if not endpoint.api_base:
        return {}
    # A server of one's own needs no key, but the client library won't do without one.
    key = {"api_key": "unused"} if missing_keys(endpoint.model) else {}
    return {"api_base": endpoint.api_base} | key


def missing_keys(model: str) -> list[str]:
    """Names of the environment variables that would hold the API key of a model and don't."""
    return [key for key in litellm.validate_environment(model=model)["missing_keys"] if key.endswith("_API_KEY")]


def response_format(model: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The request parameters that make an endpoint keep to a JSON schema, as far as it can."""
    if not litellm.supports_response_schema(model=model):
        return {}
    if litellm.get_llm_provider(model=model)[1] in NO_JSON_SCHEMA:
        return {"response_format": {"type": "json_object"}}
    json_schema = {"name": "annotation", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": json_schema}}


def can_pass(error: BaseException) -> bool:
    """Whether an error is of a kind that can pass: time-out, lost connection, rate limit, server error."""
    if isinstance(error, TimeoutError):
        return True
    if not isinstance(error, OpenAIError):
        return False
    status = getattr(error, "status_code", None)
    if status == 429 and "insufficient_quota" in str(error):  # an account without credit is not a rate limit
        return False
    return isinstance(status, int) and (status in (408, 429) or status >= 500)


def is_refusal(error: BaseException) -> bool:
    """Whether an error is about one request's content, so that another request may well succeed."""
    if isinstance(error, REFUSALS) or getattr(error, "status_code", None) == 413:
        return True
    return getattr(error, "status_code", None) in REFUSING_STATUS and bool(REFUSING_WORDS.search(str(error)))


def may_be_billed(error: BaseException) -> bool:
    """Whether a request may have been answered, and billed, though no reply came: given up on, or cancelled."""
    return isinstance(error, TimeoutError | Timeout | asyncio.CancelledError)


def retry_after_s(error: BaseException | None, now: float) -> float:
    """Seconds that the endpoint asked to wait (header Retry-After, seconds or a date), 0 if it did not say.

    Args:
        error: what the attempt raised.
        now: seconds since the epoch.
    """
    headers = getattr(error, "litellm_response_headers", None) or {}
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return 0.0


def user_error(error: Exception, endpoint: EndpointConfig) -> UserError:
    """The error of a request that repeating can't help, with what to do about it."""
    status = getattr(error, "status_code", None)
    remedy = STATUS_REMEDIES.get(status or 0, "check the model's name, temperature, max_output_tokens and api_base")
    where = f" at {endpoint.api_base}" if endpoint.api_base else ""
    return UserError(f"model {endpoint.model!r}{where} refused the request (status {status}): {error}; {remedy}")
