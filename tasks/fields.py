"""Fields of the config that several artifacts depend on, as their keys have them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mralign_core.config import EndpointConfig, RunConfig, Section
from mralign_core.label_sets import label_set_of
from mralign_core.models.families import family_fingerprint


def pick(section: Section, *names: str) -> dict[str, Any]:
    """Some fields of a section."""
    values = section.fingerprint()
    return {name: values[name] for name in names}


def all_but(section: Section, *names: str) -> dict[str, Any]:
    """The fields of a section that can change a result, without some."""
    return {name: value for name, value in section.fingerprint().items() if name not in names}


def reading(config: RunConfig) -> dict[str, Any]:
    """How a completion is asked for, taken apart and compared with the gold answers."""
    return {"family": family_fingerprint(config.model), "match": config.match.fingerprint()}


def labels(config: RunConfig) -> dict[str, Any]:
    """The label set, by its contents."""
    return {"label_set": label_set_of(config).fingerprint()}


def unaltered_weights(config: RunConfig) -> dict[str, Any]:
    """What the weights are made of before a placebo or normalisation."""
    return all_but(config.reward, "placebo", "normalize")


def other_samplers(used: Callable[[RunConfig], str]) -> Callable[[RunConfig], tuple[str, ...]]:
    """The modules of the samplers that a config does not use, of which keys don't depend.

    Args:
        used: the sampler that a config uses.
    """

    def without(config: RunConfig) -> tuple[str, ...]:
        names = [name for name in ("transformers", "vllm", "endpoint") if name != used(config)]
        asking = unused_transport([config.generate.endpoint]) if used(config) == "endpoint" else ("mralign_core.llm",)
        return (*(f"mralign_core.generation.{name}_sampler" for name in names), *asking)

    return without


def unused_transport(endpoints: Iterable[EndpointConfig]) -> tuple[str, ...]:
    """The modules of the batch API, where none of these endpoints is asked through it: they decide no reply then."""
    if any(endpoint.use_batch_api for endpoint in endpoints):
        return ()
    return ("mralign_core.llm.batch", "mralign_core.llm.batch_endpoint", "mralign_core.llm.batch_store")
