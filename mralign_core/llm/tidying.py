"""Chat completions with what servers get wrong put right, as far as a reply can still be made out.

What is wrong with a field that the reply does not need costs that field alone; a reply without text stays a reply
without text. A body that is not JSON, or not a chat completion, is left as it is.
"""

from __future__ import annotations

import json
import math
from typing import Any

MOST_DEPTH = 32
"""Levels of nesting that are kept; what lies deeper is null."""
MOST_TOKENS = 10**9
"""Of one request; a larger count is no count."""
TEXT_PARTS = ("text", "output_text")
UNASKED = ("tool_calls", "function_call", "audio", "images", "annotations", "thinking_blocks", "logprobs")
"""Fields of a choice or a message that nothing here asks for, or only in one form, and litellm reads."""


def tidied(body: bytes) -> bytes:
    """A body that litellm can read, where it is JSON; else the body itself.

    Raises:
        RecursionError: it is nested more deeply than can be read.

    >>> tidied(b'{"choices": [{"message": {"content": [{"type": "text", "text": "a"}]}}], "usage": {"x": -1}}')
    b'{"choices": [{"message": {"content": "a", "role": "assistant"}, "index": 0, "finish_reason": "stop"}]}'
    """
    text = body.decode("utf-8-sig", "replace")
    try:
        value = _loaded(text)
    except ValueError:
        return text.encode()
    return json.dumps(tidied_value(value)).encode()


def tidied_value(value: Any) -> Any:
    """The same for the values of a body."""
    value = storable(value, MOST_DEPTH)
    if isinstance(value, dict) and "choices" in value:
        return _tidied_chat(value)
    if isinstance(value, dict) and "data" in value:
        return value | {"usage": _tidied_usage({"completion_tokens": 0} | _dict(value.get("usage")))}
    return value


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # a number of thousands of digits
        return json.loads(text, parse_int=float)


def token_count(value: Any) -> int | None:
    """A number of tokens; None for what is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return int(value) if is_number and 0 <= value <= MOST_TOKENS else None


def text_of(content: Any) -> str:
    """The text of a message, whose content may come in parts, or as JSON values.

    >>> text_of([{"type": "text", "text": "a"}, {"type": "image_url"}, "b"]), text_of({"label": "x"}), text_of(None)
    ('ab', '{"label": "x"}', '')
    """
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(part, str) or _is_part(part) for part in content):
        return "".join(part if isinstance(part, str) else _text_of_part(part) for part in content)
    return json.dumps(content, ensure_ascii=False)


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("type"), str)


def _text_of_part(part: dict[str, Any]) -> str:
    return text_of(part.get("text")) if part["type"] in TEXT_PARTS else ""


def _tidied_chat(body: dict[str, Any]) -> dict[str, Any]:
    choices = body["choices"] if isinstance(body["choices"], list) else []
    body = _without_wrong(body, {"id": str, "object": str, "model": str, "created": int, "system_fingerprint": str})
    body["choices"] = [_tidied_choice(choice) for choice in choices[:1] if isinstance(choice, dict)]
    usage = _tidied_usage(body.pop("usage", None))
    return body | ({"usage": usage} if usage else {})


def _tidied_choice(choice: dict[str, Any]) -> dict[str, Any]:
    message = _dict(choice.get("message"))
    strings = ("reasoning_content", "reasoning", "refusal", "role", "name")
    message = _without_wrong(message, dict.fromkeys(strings, str) | dict.fromkeys(UNASKED, _Never))
    message = message | {"content": text_of(message.get("content")), "role": "assistant"}
    logprobs = _tidied_logprobs(choice.get("logprobs"))
    choice = _without_wrong(choice, {"finish_reason": str, "index": int} | dict.fromkeys(UNASKED, _Never))
    choice |= {"message": message, "index": 0, "finish_reason": choice.get("finish_reason") or "stop"}
    return choice | ({"logprobs": {"content": logprobs}} if logprobs else {})


def _tidied_logprobs(value: Any) -> list[dict[str, Any]]:
    """Each token of a reply with its log-probability; none where one of them can't be read."""
    content = _dict(value).get("content")
    tokens = [_dict(token) for token in content] if isinstance(content, list) else []
    if not all(
        isinstance(token.get("token"), str) and isinstance(token.get("logprob"), int | float) for token in tokens
    ):
        return []
    return [{"token": one["token"], "logprob": one["logprob"], "bytes": None, "top_logprobs": []} for one in tokens]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


class _Never:
    """The type of a field that nothing here asks for."""


def _without_wrong(value: dict[str, Any], types: dict[str, type]) -> dict[str, Any]:
    """The fields, but for those of another type than they should have."""
    return {name: part for name, part in value.items() if name not in types or isinstance(part, types[name])}


def _tidied_usage(usage: Any) -> dict[str, Any] | None:
    """The counts of a usage; None where they are no counts."""
    if not isinstance(usage, dict):
        return None
    counts = {name: token_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")}
    if any(count is None for count in counts.values()):
        return None
    prompt, completion = counts["prompt_tokens"] or 0, counts["completion_tokens"] or 0
    total = max(token_count(usage.get("total_tokens")) or 0, prompt + completion)
    # Some servers count hidden reasoning in the total alone.
    sums = {"prompt_tokens": prompt, "completion_tokens": total - prompt, "total_tokens": total}
    return {name: part for name, part in usage.items() if _are_counts(part, _most_of(name, sums))} | sums


def _most_of(name: str, sums: dict[str, int]) -> int:
    """The sum that a count is a part of, by its name."""
    if "completion" in name:
        return sums["completion_tokens"]
    return sums["prompt_tokens" if "prompt" in name or "cache" in name else "total_tokens"]


def _are_counts(part: Any, most: int) -> bool:
    """Whether it is a count, or several, none larger than what it is a part of."""
    if isinstance(part, dict):
        return all(value is None or _are_counts(value, most) for value in part.values())
    count = token_count(part)
    return count is not None and count <= most


def storable(value: Any, depth: float = math.inf) -> Any:
    """JSON values with lone surrogates escaped, and null for numbers that JSON lacks and below so many levels."""
    if isinstance(value, str):
        return as_utf8(value)
    if isinstance(value, dict):
        return {as_utf8(name): storable(part, depth - 1) for name, part in value.items()} if depth else None
    if isinstance(value, list):
        return [storable(part, depth - 1) for part in value] if depth else None
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_utf8(text: str) -> str:
    """The text with lone surrogates escaped: JSON can bring them, but no table or request can hold them."""
    return text.encode("utf-8", "backslashreplace").decode()
