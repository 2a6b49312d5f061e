"""What the reply of a reasoning model holds besides its text: the thinking, and its tokens.

litellm gives the thinking as ``reasoning_content``, under whichever name the server sent it (``reasoning`` with newer
versions of vLLM), and takes it out of a text that begins with a think block. Fields that it does not know, such as
vLLM's token ids, it leaves among ``provider_specific_fields``.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class ReasoningReply(NamedTuple):
    """Thinking, empty where it is part of the text; token ids of prompt and completion, empty where the server hides
    them, the completion's with its end token.
    """

    thinking: str
    prompt_ids: list[int]
    completion_ids: list[int]


def read_reasoning(response: Any) -> ReasoningReply:
    """Read them from the ``response`` of a :class:`~.request.Received`; one without any gives empty fields.

    >>> message = {"content": "Tehran", "reasoning_content": "The seat of Iran."}
    >>> read_reasoning({"choices": [{"message": message}]}).thinking
    'The seat of Iran.'
    """
    if not isinstance(response, dict) or not response.get("choices"):
        return ReasoningReply("", [], [])
    choice = response["choices"][0]
    others = choice.get("provider_specific_fields") or {}
    return ReasoningReply(
        choice["message"].get("reasoning_content") or "",
        response.get("prompt_token_ids") or [],
        others.get("token_ids") or [],
    )
