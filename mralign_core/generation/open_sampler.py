"""Opens the sampler that a config names; each one's libraries are imported when it is chosen, and not before."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from mralign_core.config import EndpointConfig, EvaluateConfig, RunConfig
from mralign_core.config.sampling import VLLM_PROVIDER
from mralign_core.generation import Sampler
from mralign_core.generation.control_tokens import end_token_ids
from mralign_core.generation.transformers_sampler import TransformersSampler
from mralign_core.llm.client import LLMClient
from mralign_core.llm.faults import with_last_words
from mralign_core.models.adapter_files import StoredAdapter, changes_nothing
from mralign_core.models.families import family_of
from mralign_core.models.load import load_model_and_tokenizer, load_tokenizer, stored_configs
from mralign_core.models.locate import ModelLocation

if TYPE_CHECKING:
    from mralign_core.generation.endpoint_sampler import EndpointSampler
    from mralign_core.serving.adapters import OwnServer


def open_sampler(
    config: RunConfig,
    location: ModelLocation,
    *,
    stage: Literal["generate", "evaluate"] = "generate",
    device: str = "",
    adapter: StoredAdapter | None = None,
    open_client: Callable[[], LLMClient] | None = None,
    own_server: OwnServer | None = None,
) -> Sampler:
    """Open the sampler of a stage: ``config.generate.sampler`` or ``config.evaluate.sampler``.

    A sampler may be kept for the life of the process and its ``draw`` called any number of times; the endpoint's from
    several threads at once, the others from one thread at a time. Prompts are the same in both stages: they are made
    with ``config.generate.instruction`` and the family of ``config.model``.

    Args:
        config: the run.
        location: where the model's weights and tokenizer are; the endpoint sampler reads its tokenizer alone.
        stage: whose sampler and batch size.
        device: where the transformers sampler puts the model, such as ``cuda:1``; empty for ``config.model.device``.
        adapter: PEFT adapter on top of the model, in evaluation; it is seen to that an endpoint uses it.
        open_client: the client for the endpoint, asked for at the start of every ``draw``: the caller keeps one client
            for all shards of a run, as annotation does, and calls its ``reopen()`` here. Needed with the endpoint.
        own_server: the endpoint's server, where the stage starts it.

    Raises:
        ConfigError: vLLM is not installed; the model, its tokenizer or its device is not there; the endpoint can't be
            asked, has no price, lacks the adapter or ignores it.
        EndpointUnavailableError: the server is out of reach, as that is asked.
    """
    section = config.generate if stage == "generate" else config.evaluate
    instruction = config.generate.instruction
    if section.sampler == "transformers":
        model, tokenizer = load_model_and_tokenizer(
            location.path,
            config.model.dtype,
            device or config.model.device,
            adapter and adapter.folder,
            revision=location.revision,
        )
        family = family_of(config.model, tokenizer)
        return TransformersSampler(
            model, tokenizer, batch_size=section.batch_size, instruction=instruction, family=family
        )
    tokenizer = load_tokenizer(location.path, location.revision)
    family = family_of(config.model, tokenizer)
    common: dict[str, Any] = {
        "family": family,
        "instruction": instruction,
        "end_ids": end_token_ids(tokenizer, family, *stored_configs(location.path, location.revision)),
    }
    if section.sampler == "vllm":
        from mralign_core.generation.vllm_sampler import VllmSampler, open_engine

        engine, lora = open_engine(location, config.model, config.vllm, adapter and adapter.folder)
        return VllmSampler(engine, tokenizer, adapter=lora, **common)
    from mralign_core.generation.endpoint_sampler import EndpointSampler

    assert open_client is not None
    endpoint = section.endpoint
    if own_server:
        endpoint = endpoint.model_copy(update={"model": f"{VLLM_PROVIDER}{own_server.name}"})

    def open_endpoint(endpoint: EndpointConfig, **options: Any) -> EndpointSampler:
        return EndpointSampler(endpoint, tokenizer, open_client=open_client, **options, **common)

    if stage == "generate":
        assert adapter is None
        return open_endpoint(endpoint, ready=own_server.reach if own_server else lambda: None)
    return _open_host(config.evaluate, endpoint, open_endpoint, adapter, own_server)


def _open_host(
    section: EvaluateConfig,
    endpoint: EndpointConfig,
    open_endpoint: Callable[..., EndpointSampler],
    adapter: StoredAdapter | None,
    own_server: OwnServer | None,
) -> EndpointSampler:
    """The sampler of a server for one adapter or the base model, which is found to answer with it."""
    from mralign_core.llm.endpoint import api_key_of
    from mralign_core.serving.adapters import AdapterHost
    from mralign_core.serving.ignored_adapters import refuse_ignored_adapter

    key, reach = api_key_of(endpoint.model), own_server and own_server.reach
    host = AdapterHost(endpoint, section, adapter, api_key=key, reach=reach)
    told: dict[str, Any] = {"ready": host.ready, "longest": lambda: host.longest, "field": "evaluate.endpoint"}
    base, sampler = (open_endpoint(one, **told) for one in (endpoint, host.endpoint))
    if adapter and not changes_nothing(adapter.folder):
        there = host.ready()
        with with_last_words(there):
            refuse_ignored_adapter(
                partial(base.chat_request, reach=there),
                partial(sampler.chat_request, reach=there),
                sampler.open_client(),
                name=adapter.name,
                policy=section.ignored_adapters,
            )
    return sampler
