"""litellm's batch calls as this project uses them: one attempt each, errors sorted like those of direct requests.

The protocol is OpenAI's: a file of requests is uploaded, a batch is made from it, polled, and its output and
error files are fetched. Importing litellm takes seconds, so this module is imported where a client is made.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from litellm.llms.openai.common_utils import OpenAIError
from litellm.types.utils import LlmProviders
from litellm.utils import ProviderConfigManager, get_optional_params

from mralign_core.config import EndpointConfig
from mralign_core.llm.endpoint import BASE_BYTES, BYTES_PER_TOKEN, address
from mralign_core.llm.exchange import Exchange
from mralign_core.llm.offline import Message
from mralign_core.llm.silent import litellm

CHAT_URL = "/v1/chat/completions"
TOKEN_KEY = "mralign"
"""Name, in a batch's metadata, of the token by which its maker finds it again."""
PAGE_SIZE = 100
CLOCK_SKEW_S = 3600.0
SLOWEST_S_PER_REQUEST = 0.05
"""A file may take so many seconds a request longer than ``timeout_s``: about 80 kB/s for requests of 4 kB."""


class BatchStatus(NamedTuple):
    """What the provider says of a batch; ``problems`` are (code, message) of a batch that failed as a whole."""

    status: str
    num_done: int
    num_failed: int
    output_file_ids: tuple[str, ...]
    problems: tuple[tuple[str, str], ...]

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ("completed", "failed", "expired", "cancelled")


def request_line(
    endpoint: EndpointConfig, custom_id: str, messages: Sequence[Message], params: dict[str, Any]
) -> bytes:
    """One line of a batch's input file; its body is what a direct request would send.

    Raises:
        litellm.UnsupportedParamsError: the model does not take one of the parameters.
    """
    name, provider, _, _ = litellm.get_llm_provider(model=endpoint.model)
    settings = ProviderConfigManager.get_provider_chat_config(model=name, provider=LlmProviders(provider))
    assert settings is not None, provider
    shown: list[Any] = [dict(message) for message in messages]
    arguments = get_optional_params(model=name, custom_llm_provider=provider, messages=shown, **params)
    body = settings.transform_request(name, shown, arguments, litellm_params={}, headers={})
    body |= body.pop("extra_body", {})
    body.pop("stream", None)
    line = {"custom_id": custom_id, "method": "POST", "url": CHAT_URL, "body": body}
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


async def upload(endpoint: EndpointConfig, lines: Sequence[bytes]) -> str:
    """Upload a file of requests; its id."""
    file = ("requests.jsonl", b"".join(lines), "application/jsonl")
    made = await _call(
        endpoint, litellm.acreate_file, _file_timeout_s(endpoint, len(lines)), file=file, purpose="batch"
    )
    return str(made.id)


async def create(endpoint: EndpointConfig, file_id: str, token: str) -> str:
    """Make a batch of an uploaded file; its id."""
    made = await _call(
        endpoint,
        litellm.acreate_batch,
        completion_window="24h",
        endpoint=CHAT_URL,
        input_file_id=file_id,
        metadata={TOKEN_KEY: token},
    )
    return str(made.id)


async def find(endpoint: EndpointConfig, token: str, intended_at: float) -> str | None:
    """The id of the batch that carries a token, or None when the provider has none.

    Args:
        endpoint: where it would be.
        token: what :func:`create` was given.
        intended_at: seconds since the epoch before which it can't have been made.
    """
    async for batch in _batches(endpoint):
        if (batch.metadata or {}).get(TOKEN_KEY) == token:
            return str(batch.id)
        if batch.created_at < intended_at - CLOCK_SKEW_S:
            return None
    return None


async def _batches(endpoint: EndpointConfig) -> AsyncIterator[Any]:
    """All batches of the account, newest first."""
    after = None
    while True:
        page = await _call(endpoint, litellm.alist_batches, after=after, limit=PAGE_SIZE)
        for batch in page.data:
            yield batch
        if not page.data or not getattr(page, "has_more", False):
            return
        after = page.data[-1].id


async def retrieve(endpoint: EndpointConfig, batch_id: str) -> BatchStatus:
    """Where a batch stands."""
    # Without this litellm fetches and reads the output file of a completed batch by itself, to log its cost.
    silent = {"batch_ignore_default_logging": True}
    batch = await _call(endpoint, litellm.aretrieve_batch, batch_id=batch_id, litellm_metadata=silent)
    counts, errors = batch.request_counts, batch.errors
    return BatchStatus(
        batch.status,
        counts.completed if counts else 0,
        counts.failed if counts else 0,
        tuple(file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id),
        tuple((problem.code or "", problem.message or "") for problem in (errors.data or [] if errors else [])),
    )


async def download(endpoint: EndpointConfig, file_id: str, num_requests: int) -> bytes:
    """The content of a file."""
    most_bytes = BASE_BYTES + num_requests * (BASE_BYTES // 16 + BYTES_PER_TOKEN * endpoint.max_output_tokens)
    limit_s = _file_timeout_s(endpoint, num_requests)
    content = await _call(endpoint, litellm.afile_content, limit_s, most_bytes, file_id=file_id)
    return bytes(content.content)


def raise_as_direct(endpoint: EndpointConfig, error: Exception) -> NoReturn:
    """Raise an error of a batch call as a direct request's would have been: by its HTTP status, 500 without one."""
    response = getattr(error, "response", None)
    plain = OpenAIError(
        getattr(error, "status_code", 500),
        str(error) or repr(error),
        headers=getattr(response, "headers", None),
        body=getattr(error, "body", None),
    )
    provider = litellm.get_llm_provider(model=endpoint.model)[1]
    litellm.exception_type(model=endpoint.model, original_exception=plain, custom_llm_provider=provider)
    raise error  # exception_type always raises; this tells the type checker


async def _call(
    endpoint: EndpointConfig,
    call: Callable[..., Awaitable[Any]],
    /,
    timeout_s: float | None = None,
    most_bytes: int = 16 * BASE_BYTES,
    **arguments: Any,
) -> Any:
    """One attempt at a batch call, given up after ``timeout_s`` seconds in all (the endpoint's, when None)."""
    where = address(endpoint)
    _, provider, key, api_base = litellm.get_llm_provider(model=endpoint.model, api_base=where.get("api_base"))
    limit_s = endpoint.timeout_s if timeout_s is None else timeout_s
    found = {name: value for name, value in (("api_key", key), ("api_base", api_base)) if value}
    try:
        async with asyncio.timeout(limit_s):
            with Exchange(most_bytes, is_tidied=False).observed():
                return await call(
                    custom_llm_provider=provider, timeout=limit_s, max_retries=0, **(found | where), **arguments
                )
    except TimeoutError:
        raise
    except Exception as error:  # lost connections and bodies that aren't JSON come as many kinds
        raise_as_direct(endpoint, error)


def _file_timeout_s(endpoint: EndpointConfig, num_requests: int) -> float:
    return endpoint.timeout_s + SLOWEST_S_PER_REQUEST * num_requests
