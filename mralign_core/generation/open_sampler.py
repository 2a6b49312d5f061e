"""Opens the sampler that a config names; each one's libraries are imported when it is chosen, and not before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mralign_core.config import RunConfig
from mralign_core.generation import Sampler
from mralign_core.generation.control_tokens import end_token_ids
from mralign_core.generation.transformers_sampler import TransformersSampler
from mralign_core.llm.client import LLMClient
from mralign_core.models.families import family_of
from mralign_core.models.load import load_model_and_tokenizer, load_tokenizer, stored_configs
from mralign_core.models.locate import ModelLocation


def open_sampler(
    config: RunConfig,
    location: ModelLocation,
    *,
    stage: Literal["generate", "evaluate"] = "generate",
    device: str = "",
    adapter_dir: Path | None = None,
    open_client: Callable[[], LLMClient] | None = None,
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
        adapter_dir: PEFT adapter on top of the model; not for the endpoint.
        open_client: the client for the endpoint, asked for at the start of every ``draw``: the caller keeps one client
            for all shards of a run, as annotation does, and calls its ``reopen()`` here. Needed with the endpoint.

    Raises:
        ConfigError: vLLM is not installed; the model, its tokenizer or its device is not there; the endpoint can't be
            asked, or has no price.
    """
    section = config.generate if stage == "generate" else config.evaluate
    instruction = config.generate.instruction
    if section.sampler == "transformers":
        model, tokenizer = load_model_and_tokenizer(
            location.path,
            config.model.dtype,
            device or config.model.device,
            adapter_dir,
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

        engine, adapter = open_engine(location, config.model, config.vllm, adapter_dir)
        return VllmSampler(engine, tokenizer, adapter=adapter, **common)
    from mralign_core.generation.endpoint_sampler import EndpointSampler

    assert open_client is not None
    assert adapter_dir is None
    return EndpointSampler(config.generate.endpoint, tokenizer, open_client=open_client, **common)
