"""What a model's name at an endpoint stands for, as far as anyone says.

A name such as ``openai/gpt-4o`` is an alias that its provider may move. It is known what it stands for where the name
itself has a date, where a server of one's own lists it as another model (``root`` at ``/models``, as vLLM does), or
where replies name another model than was asked for; else the record says that it is not known, and nothing is guessed.
What is found is recorded and never sent: requests, and with them kept replies and keys, go by the config's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import httpx

from mralign_core.config import EndpointConfig, RunConfig
from mralign_core.config.annotate import OFFLINE_PREFIXES
from mralign_core.intake.resolution import ConfigReference
from mralign_core.schemas.judgements import SIMILARITY_PROVIDER

DATED = re.compile(r"20\d\d-?[01]\d-?[0-3]\d")
"""A date in a model's name, such as ``gpt-4o-2024-08-06``."""
LISTING_TIMEOUT_S = 5.0
WITHOUT_NETWORK = (*OFFLINE_PREFIXES, f"{SIMILARITY_PROVIDER}/")
"""What names of models begin with that are part of this program."""
NOT_SAID = "what the name stands for is not known: it is an alias that its provider may move"


def asked_endpoints(config: RunConfig) -> dict[str, EndpointConfig]:
    """Config field → endpoint, of all that a run may ask over the network."""
    everything = {f"annotate.{role}": one for role, one in config.annotate.endpoints.items()}
    everything |= {f"judge.endpoints.{number}": one for number, one in enumerate(config.judge.endpoints)}
    for name in ("generate", "evaluate"):
        section = getattr(config, name)
        if section.sampler == "endpoint" and not config.vllm.starts_for(section):
            everything[f"{name}.endpoint"] = section.endpoint
    return {field: one for field, one in everything.items() if not one.model.startswith(WITHOUT_NETWORK)}


def ask_aliases(config: RunConfig) -> list[ConfigReference]:
    """What the models of a run stand for, by the fields that name them; a server of the user's own is asked once."""
    told: dict[tuple[str, str], ConfigReference] = {}
    references = []
    for field, one in asked_endpoints(config).items():
        if (one.model, one.api_base) not in told:
            told[one.model, one.api_base] = _ask_alias(field, one)
        references.append(told[one.model, one.api_base].model_copy(update={"field": field}))
    return references


def _ask_alias(field: str, endpoint: EndpointConfig) -> ConfigReference:
    asked = f"{endpoint.model} at {endpoint.api_base}" if endpoint.api_base else endpoint.model
    reference = ConfigReference(field=field, kind="endpoint", asked=asked)
    name = endpoint.model.partition("/")[2] or endpoint.model
    if DATED.search(name):
        return reference.model_copy(update={"pinned": name, "source": "the name itself, which has a date"})
    if endpoint.api_base:
        root, problem = _listed_root(endpoint, name)
        if root:
            return reference.model_copy(update={"pinned": root, "source": f"{endpoint.api_base}/models"})
        return reference.model_copy(update={"note": f"{NOT_SAID}; {problem}"})
    return reference.model_copy(update={"note": f"{NOT_SAID}; replies may name it"})


def _listed_root(endpoint: EndpointConfig, name: str) -> tuple[str, str]:
    """What a server lists a name as, or empty and why that is not known."""
    try:
        answer = _models_page(endpoint)
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            from mralign_core.llm.endpoint import api_key_of  # takes seconds

            answer = _models_page(endpoint, {"Authorization": f"Bearer {api_key_of(endpoint.model)}"})
        listed = answer.raise_for_status().json()["data"]
        roots = [str(one.get("root") or "") for one in listed if one.get("id") == name]
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        return "", f"the server's list of models can't be read ({type(error).__name__})"
    root = next((root for root in roots if root and root != name), "")
    return root, "" if root else "the server does not list it as another model"


def _models_page(endpoint: EndpointConfig, headers: Mapping[str, str] = MappingProxyType({})) -> httpx.Response:
    return httpx.get(f"{endpoint.api_base.rstrip('/')}/models", headers=dict(headers), timeout=LISTING_TIMEOUT_S)


def with_replies(references: Iterable[ConfigReference], named: Mapping[str, Iterable[str]]) -> list[ConfigReference]:
    """The references, with what replies named as their model.

    Args:
        references: of a run.
        named: config field of an endpoint → the models that its replies named.
    """
    return [
        _as_replied(one, sorted(set(named[one.field]) - {""})) if one.kind == "endpoint" and one.field in named else one
        for one in references
    ]


def _as_replied(reference: ConfigReference, models: list[str]) -> ConfigReference:
    own = reference.asked.partition(" at ")[0]
    others = [model for model in models if model not in (own, own.partition("/")[2])]
    if not models or reference.pinned in models:
        return reference
    if reference.pinned:
        told = f"its replies name {', '.join(models)}"
        return reference.model_copy(update={"note": told}) if others else reference
    if not others:
        return reference.model_copy(update={"note": f"{NOT_SAID}; its replies name no other model than was asked for"})
    if len(others) > 1:
        return reference.model_copy(update={"note": f"its replies name several models: {', '.join(others)}"})
    return reference.model_copy(update={"pinned": others[0], "source": "the model that its replies name", "note": ""})


def model_in_reply(record: Mapping[str, Any] | None) -> str:
    """The model that a kept reply names; empty where it names none."""
    response = (record or {}).get("response")
    named = response.get("model") if isinstance(response, Mapping) else None
    return named if isinstance(named, str) else ""
