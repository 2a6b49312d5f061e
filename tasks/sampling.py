"""Samplers that outlive a shard: loading a model can take longer than sampling with it."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch

from mralign_core.config import EvaluateConfig, GenerateConfig, RunConfig
from mralign_core.generation import Sampler
from mralign_core.generation.open_sampler import open_sampler
from mralign_core.generation.transformers_sampler import TransformersSampler
from mralign_core.models.locate import limit_threads, locate_model, model_name
from mralign_core.processes.memory import return_freed_memory
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.clients import shared_client

logger = logging.getLogger("mralign_core.sampling")

_kept: dict[int, tuple[tuple[object, ...], Sampler]] = {}
"""The one sampler of each thread, with what it was opened for."""
_opening = threading.Lock()


def sampler_of(
    store: ArtifactStore,
    config: RunConfig,
    model: ArtifactRef,
    *,
    stage: Literal["generate", "evaluate"],
    adapter: ArtifactRef | None = None,
    ledger_name: str = "",
) -> Sampler:
    """The sampler of a stage in this thread: the one it used last where that fits, else a new one in its place.

    Args:
        store: where the model and the adapter are.
        config: the run config.
        model: artifact of the model.
        stage: whose sampler and batch size.
        adapter: artifact of a trained adapter, on top of the model.
        ledger_name: account of the endpoint's requests.
    """
    wanted = (store.root_uri, model.sha256, adapter and adapter.sha256, stage, ledger_name, config.model_dump_json())
    thread = threading.get_ident()
    with _opening:  # one after another: a model that is loaded needs its memory twice for a moment
        kept = _kept.pop(thread, None)
        if kept is None or kept[0] != wanted:
            kept = None  # frees its memory before the next one is loaded
            limit_threads(config.model)
            kept = (
                wanted,
                open_sampler(
                    config,
                    locate_model(store.open_directory(model), model_name(config.model)),
                    stage=stage,
                    device=_own_device(getattr(config, stage), config.model.device),
                    adapter_dir=store.open_directory(adapter) if adapter else None,
                    open_client=partial(shared_client, store, ledger_name, config.generate),
                ),
            )
        _kept[thread] = kept
    return kept[1]


@contextlib.contextmanager
def release_samplers() -> Iterator[None]:
    """Free the memory of all samplers at the end, for the stage that comes next."""
    try:
        yield
    finally:
        with _opening:
            _kept.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return_freed_memory()


def _own_device(section: GenerateConfig | EvaluateConfig, device: str) -> str:
    """Of several GPUs the one that fewest threads of this process sample on; empty leaves it to the config."""
    if section.where != "threads" or section.sampler != "transformers" or device == "cpu":
        return ""
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    in_use = [str(sampler.model.device) for _, sampler in _kept.values() if isinstance(sampler, TransformersSampler)]
    return min(devices, key=in_use.count, default="")
