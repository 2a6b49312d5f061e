"""Whether a server of one's own says that it keeps replies to a JSON schema."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import httpx

TIMEOUT_S = 2.0
MOST_BYTES = 4 * 1024 * 1024


def _is_version(least: tuple[int, int], below: tuple[int, int] = (999, 0)) -> Callable[[Any], bool]:
    def check(answer: Any) -> bool:
        version = answer.get("version") if isinstance(answer, dict) else None
        found = re.match(r"v?(\d+)\.(\d+)", version) if isinstance(version, str) else None
        return found is not None and least <= (int(found[1]), int(found[2])) < below

    return check


SAYINGS: dict[str, Callable[[Any], bool]] = {
    "/openapi.json": lambda answer: "json_schema" in json.dumps(answer.get("components", answer)),  # vLLM, SGLang
    "/version": _is_version((0, 6), below=(1, 0)),  # vLLM, which is no other in this way
    "/props": lambda answer: "default_generation_settings" in answer,  # llama.cpp
    "/api/version": _is_version((0, 5)),  # Ollama
    "/api/v0/models": lambda answer: "compatibility_type" in json.dumps(answer),  # LM Studio
    "/get_model_info": lambda answer: "model_path" in answer,  # SGLang
}
"""Path of a server, below its root → whether its answer is that of a server that knows JSON schemas."""


async def says_it_knows_schemas(api_base: str) -> bool:
    """Ask a server, by what it says of itself; no key is sent, and nothing is asked of any other host.

    Args:
        api_base: base URL of its OpenAI-compatible part, such as ``http://127.0.0.1:8000/v1``.
    """
    root = re.sub(r"(/openai)?(/v1)?/*$", "", api_base)
    limits = httpx.Timeout(TIMEOUT_S)
    try:
        async with asyncio.timeout(TIMEOUT_S), httpx.AsyncClient(timeout=limits, follow_redirects=False) as client:
            answers = await asyncio.gather(*(_says(client, root + path, says) for path, says in SAYINGS.items()))
    except TimeoutError:
        return False
    return any(answers)


async def _says(client: httpx.AsyncClient, url: str, says: Callable[[Any], bool]) -> bool:
    try:
        async with client.stream("GET", url, headers={"accept-encoding": "identity"}) as response:
            body = b""
            async for chunk in response.aiter_raw():
                body += chunk
                if response.status_code != 200 or len(body) > MOST_BYTES:
                    return False
        return bool(says(json.loads(body)))
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, TypeError, AttributeError, RecursionError):
        return False  # whatever it is, it does not say so
