"""litellm as this project uses it: a request is one attempt, silent, its errors sorted by what can be done.

Importing litellm takes seconds, so this module is imported where a client is made and not before.
"""

from __future__ import annotations

import asyncio
import logging
import os
from email.utils import parsedate_to_datetime
from typing import Any

# Otherwise the import fetches a price map from the network.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import litellm
from litellm.exceptions import BadRequestError, ContentPolicyViolationError, ContextWindowExceededError
from litellm.llms.custom_llm import CustomLLM
from litellm.types.utils import Choices, ModelResponse, Usage
from litellm.types.utils import Message as ReplyMessage
from openai import OpenAIError

from mralign_core.annotation import cue
from mralign_core.errors import ConfigError, UserError

litellm.telemetry = False
litellm.suppress_debug_info = True
for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
    logging.getLogger(name).setLevel(logging.ERROR)

NO_JSON_SCHEMA = ("deepseek",)
"""Providers that refuse a JSON schema though litellm says otherwise (its issue 7580): they get JSON mode."""
REFUSALS = (ContentPolicyViolationError, ContextWindowExceededError)
"""Errors about one request's content: another request may well succeed."""
STATUS_REMEDIES = {
    401: "set the provider's API key in the environment",
    403: "the API key may not use this model: check its permissions",
    404: "no such model at this endpoint: check the annotator's name and annotate.api_base",
}


class CueProvider(CustomLLM):
    """litellm's way to the offline cue annotators, so that they answer through the same call as any model."""

    async def acompletion(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Answer one chat request."""
        messages = kwargs["messages"]
        reply = cue.reply(kwargs["model"], messages, cue.Noise(**kwargs["optional_params"][cue.PARAMETER]))
        prompt_tokens = sum(len(message["content"].split()) for message in messages)
        completion_tokens = len(reply.split())
        response: ModelResponse = kwargs["model_response"]
        response.model = kwargs["model"]
        response.choices = [
            Choices(index=0, finish_reason="stop", message=ReplyMessage(role="assistant", content=reply))
        ]
        usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )
        setattr(response, "usage", usage)  # noqa: B010  (a field that ModelResponse does not declare)
        return response


litellm.custom_provider_map = [{"provider": cue.PROVIDER, "custom_handler": CueProvider()}]


async def send(
    model: str, messages: list[Any], params: dict[str, Any], *, api_base: str, timeout_s: float
) -> ModelResponse:
    """Make exactly one attempt at a chat request, and give up on it after ``timeout_s`` seconds in all."""
    where = {"api_base": api_base} if api_base and not cue.is_cue(model) else {}
    if where and missing_keys(model):
        # A server of one's own needs no key, but the client library won't do without one.
        where["api_key"] = "unused"
    # litellm's time-out restarts with every byte that arrives; this one does not.
    async with asyncio.timeout(timeout_s):
        response: ModelResponse = await litellm.acompletion(
            model=model, messages=messages, timeout=timeout_s, num_retries=0, max_retries=0, **where, **params
        )
    return response


def check_model(model: str, api_base: str) -> None:
    """Fail early on a model that can't be asked.

    Raises:
        ConfigError: litellm knows no such provider, the API key for it is missing, or there is no such cue
        annotator.
    """
    if cue.is_cue(model):
        if model.split("/", 1)[1] not in cue.HABITS:
            known = ", ".join(f"{cue.PROVIDER}/{name}" for name in cue.HABITS)
            raise ConfigError(f"there is no offline annotator {model!r}; there are {known}")
        return
    try:
        litellm.get_llm_provider(model=model)
    except BadRequestError:
        remedy = "write it as provider/model, such as openai/gpt-4o, or cue/a for the offline annotator"
        raise ConfigError(f"annotator model {model!r} has no provider litellm knows: {remedy}") from None
    if not api_base and (missing := missing_keys(model)):
        # Without this check litellm reports a missing key as a server error, which looks worth repeating.
        raise ConfigError(f"no API key for annotator model {model!r}: set {' or '.join(missing)} in the environment")


def missing_keys(model: str) -> list[str]:
    """Names of the environment variables that would hold the API key of a model and don't."""
    return [key for key in litellm.validate_environment(model=model)["missing_keys"] if key.endswith("_API_KEY")]


def response_format(model: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The request parameters that make an endpoint keep to a JSON schema, as far as it can."""
    if cue.is_cue(model) or not litellm.supports_response_schema(model=model):
        return {}
    if litellm.get_llm_provider(model=model)[1] in NO_JSON_SCHEMA:
        return {"response_format": {"type": "json_object"}}
    json_schema = {"name": "annotation", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": json_schema}}


def cost_usd(response: ModelResponse) -> float | None:
    """Price of a reply in US dollars by litellm's table, or None when it has no price for the model."""
    cost: float | None = response._hidden_params.get("response_cost")
    return cost


def can_pass(error: BaseException) -> bool:
    """Whether an error is of a kind that can pass: time-out, lost connection, rate limit, server error."""
    if isinstance(error, TimeoutError):
        return True
    if not isinstance(error, OpenAIError):
        return False
    status = getattr(error, "status_code", None)
    return isinstance(status, int) and (status in (408, 429) or status >= 500)


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


def user_error(error: Exception, model: str, api_base: str) -> UserError:
    """The error of a request that repeating can't help, with what to do about it."""
    status = getattr(error, "status_code", None)
    remedy = STATUS_REMEDIES.get(status or 0, "check the model's name, annotate.temperature and annotate.api_base")
    where = f" at {api_base}" if api_base else ""
    return UserError(f"annotator model {model!r}{where} refused the request (status {status}): {error}; {remedy}")
