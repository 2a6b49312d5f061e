"""The vLLM server that a stage starts, one for all that ask it, and stops at the end of its session."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Literal

from mralign_core.config import RunConfig
from mralign_core.llm.request import Reach
from mralign_core.models.adapter_files import StoredAdapter, rank_for_vllm, served_name
from mralign_core.models.locate import locate_model, model_name
from mralign_core.serving.adapters import OwnServer, require_listed
from mralign_core.serving.vllm_server import ServedBase, VllmServer
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine.progress import progress
from tasks.engine.session import session


def own_server(
    store: ArtifactStore, config: RunConfig, model: ArtifactRef, stage: Literal["generate", "evaluate"]
) -> OwnServer | None:
    """The server that a stage starts when it is first asked, and anew where it ended; None where it starts none.

    Args:
        store: where the model is.
        config: the run config.
        model: artifact of the model.
        stage: which asks it.
    """
    if not config.vllm.starts_for(getattr(config, stage)):
        return None
    name = served_name(model_name(config.model), model.sha256)

    def reach() -> Reach:
        location = locate_model(store.open_directory(model))
        with session() as shared, shared.lock:
            ranks: dict[str, int] = shared.kept("lora ranks")
            rank = max(ranks.values(), default=config.train.lora_r) if stage == "evaluate" else None
            base = ServedBase(location, name, config.model.dtype, rank)
            servers: dict[ServedBase, VllmServer] = shared.kept("servers")
            server = servers.get(base)
            if server is None or not server.is_running:
                if server:
                    server.close()
                stack: contextlib.ExitStack = shared.once("stopping servers", None, contextlib.ExitStack)
                shared.kept("stopping servers", at_end=stack.close)
                with progress("starting vLLM", "vllm-server") as report:
                    server = servers[base] = stack.enter_context(VllmServer(config.vllm, base, report))
            return server.reach

    return OwnServer(name, reach)


def make_room_for(config: RunConfig, adapters: Mapping[str, ArtifactRef]) -> None:
    """Have a server that this session starts make room for adapters: arms of an ablation may differ in their rank.

    Args:
        config: the run config.
        adapters: variant → adapter, of those that are to be scored.

    Raises:
        ConfigError: vLLM loads no such adapter.
    """
    if not config.vllm.starts_for(config.evaluate):
        return
    store = ArtifactStore(config.storage)
    with session() as shared, shared.lock:
        ranks: dict[str, int] = shared.kept("lora ranks")
        ranks |= {ref.sha256: rank_for_vllm(store.open_directory(ref)) for ref in adapters.values()}


def check_listed(config: RunConfig, adapters: Mapping[str, ArtifactRef]) -> None:
    """Where the user's server is to have the adapters already, refuse one that lacks some, before anything is asked.

    Args:
        config: the run config.
        adapters: variant → adapter, of those that are to be scored.

    Raises:
        ConfigError: names all that are missing.
        EndpointUnavailableError: the server is out of reach.
    """
    section = config.evaluate
    if section.sampler != "endpoint" or section.adapters != "listed" or not adapters:
        return
    from mralign_core.llm.endpoint import api_key_of

    store = ArtifactStore(config.storage)
    stored = [StoredAdapter(variant, ref.sha256, store.open_directory(ref)) for variant, ref in adapters.items()]
    require_listed(section.endpoint, section, stored, api_key_of(section.endpoint.model))
