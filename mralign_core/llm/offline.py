"""Models that answer without a network, by litellm names of their own such as ``cue/a``.

They take the same requests, through the same client, as any other model, so that everything around a model
can be run and tested with none at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


Responder = Callable[[str, Sequence[Message], Mapping[str, Any]], str]
"""From a model's name (without the provider), messages and request parameters to the text of the reply."""


class OfflineProvider(NamedTuple):
    """A family of offline models."""

    models: tuple[str, ...]
    reply: Responder


PROVIDERS: dict[str, OfflineProvider] = {}


def register(provider: str, models: Sequence[str], reply: Responder) -> None:
    """Make ``provider/model`` an offline model."""
    PROVIDERS[provider] = OfflineProvider(tuple(models), reply)


def is_offline(model: str) -> bool:
    """Whether a model name means an offline model."""
    return model.partition("/")[0] in PROVIDERS


def names(provider: str) -> list[str]:
    """The full names of a provider's models."""
    return [f"{provider}/{model}" for model in PROVIDERS[provider].models]


def reply(model: str, messages: Sequence[Message], params: Mapping[str, Any]) -> str:
    """The reply of an offline model, given its full name."""
    provider, _, name = model.partition("/")
    return PROVIDERS[provider].reply(name, messages, params)
