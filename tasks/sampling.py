"""Samplers that outlive a shard: loading a model can take longer than sampling with it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import Literal

from mralign_core.config import EvaluateConfig, GenerateConfig, RunConfig
from mralign_core.generation import Sampler
from mralign_core.generation.sampling import Tally
from mralign_core.models.adapter_files import StoredAdapter
from mralign_core.models.locate import limit_threads, locate_model
from mralign_core.processes.memory import return_freed_memory
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.clients import shared_client
from tasks.engine.session import session
from tasks.servers import own_server

logger = logging.getLogger("mralign_core.sampling")

Kept = tuple[tuple[object, ...], Sampler]
"""A sampler, with what it was opened for."""


def sampler_of(
    store: ArtifactStore,
    config: RunConfig,
    model: ArtifactRef,
    *,
    stage: Literal["generate", "evaluate"],
    adapter: ArtifactRef | None = None,
    variant: str = "",
    ledger_name: str = "",
) -> Sampler:
    """The sampler of a stage in this thread: the one it used last where that fits, else a new one in its place.

    Args:
        store: where the model and the adapter are.
        config: the run config.
        model: artifact of the model.
        stage: whose sampler and batch size.
        adapter: artifact of a trained adapter, on top of the model.
        variant: which one was trained; a server has it in its name for the adapter.
        ledger_name: account of the endpoint's requests.
    """
    from mralign_core.generation.open_sampler import open_sampler

    wanted = (store.root_uri, model.sha256, adapter and adapter.sha256, stage, ledger_name, config.model_dump_json())
    thread = threading.get_ident()
    with session() as shared, shared.lock:  # one after another: loading a model needs its memory twice for a moment
        samplers: dict[int, Kept] = shared.kept("samplers", at_end=_free_memory)
        kept = samplers.pop(thread, None)
        if kept is None or kept[0] != wanted:
            kept = None  # frees its memory before the next one is loaded
            limit_threads(config.model)
            kept = (
                wanted,
                open_sampler(
                    config,
                    locate_model(store.open_directory(model)),
                    stage=stage,
                    device=_own_device(getattr(config, stage), config.model.device, samplers.values()),
                    adapter=StoredAdapter(variant, adapter.sha256, store.open_directory(adapter)) if adapter else None,
                    open_client=partial(shared_client, store, ledger_name, getattr(config, stage)),
                    own_server=own_server(store, config, model, stage),
                ),
            )
        samplers[thread] = kept
    return kept[1]


def _free_memory() -> None:
    """Free what the samplers used, for the stage that comes next."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return_freed_memory()


def _own_device(section: GenerateConfig | EvaluateConfig, device: str, others: Iterable[Kept]) -> str:
    """Of several GPUs the one that fewest threads of this process sample on; empty leaves it to the config."""
    if section.where != "threads" or section.sampler != "transformers" or device == "cpu":
        return ""
    import torch

    from mralign_core.generation.transformers_sampler import TransformersSampler

    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    in_use = [str(sampler.model.device) for _, sampler in others if isinstance(sampler, TransformersSampler)]
    return min(devices, key=in_use.count, default="")


class Sampled:
    """How far the shards are that this process samples, and how fast it is."""

    def __init__(self) -> None:
        self.shards: dict[int, Tally] = {}
        """First row of a shard → its tally."""
        self._started = 0.0
        self._tokens_before = 0

    def update(self, start: int, tally: Tally) -> Tally:
        """Note how far a shard is; returns the sum over all shards."""
        if not self._started:  # not before the model is loaded, so that what is there by now tells no speed
            self._started, self._tokens_before = time.monotonic(), tally.tokens
        self.shards[start] = tally
        return sum(list(self.shards.values()), Tally())  # a copy: other threads add shards meanwhile

    def note(self, total: Tally, num_questions: int) -> str:
        """Speed, yield and time left, in words."""
        seconds = time.monotonic() - self._started
        speed = (total.tokens - self._tokens_before) / max(seconds, 1e-9)
        parts = [f"{speed:,.0f} tokens/s"] if speed else []
        parts.append(f"{total.positive:,} positive and {total.negative:,} negative questions")
        if total.questions:
            left = seconds / total.questions * (num_questions - total.questions)
            parts.append(f"{timedelta(seconds=round(left))} left")
        return " · ".join(parts)


def sampled_so_far(line: str) -> Sampled:
    """What the shards of one line of this session share to tell how far they are."""
    with session() as shared, shared.lock:
        sampled: Sampled = shared.kept("sampled").setdefault(line, Sampled())
    return sampled
