"""Refuse to train where the processes that met have not all come with the same job.

Processes of several machines find each other by an address alone. Gradients of two variants, or of two checkouts, add
up without an error, and what comes of them would be published under the first machine's key. What they are compared
by travels as JSON, which unlike pickle runs nothing of what another machine sends.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mralign_core.config import TrainConfig
from mralign_core.errors import ConfigError
from mralign_core.models.locate import folder_digest
from mralign_core.processes.job_folder import TABLES
from mralign_core.processes.machines import MACHINE_RANK
from mralign_core.storage.digests import file_sha256, source_digest
from mralign_core.training.job import ReferenceJob, TrainingJob
from mralign_core.training.workers import Workers

SHOWN_OF_DIGEST = 12
"""Characters of a digest in a message."""
RECOMPUTATION = ("always", "auto", "never")
"""Values of ``train.gradient_checkpointing``, from the one that takes least memory."""
Identity = dict[str, Any]
"""What must be the same in all processes: name → JSON value."""


def require_same_job(job: ReferenceJob, folder: Path, workers: Workers) -> None:
    """Pass where all processes have come with the same job, code, base model and tables.

    Args:
        job: this process's.
        folder: which it was read from.
        workers: the processes that met; each of them has to call this.

    Raises:
        ConfigError: in each of them, where they differ.
    """
    if workers.size == 1:
        return
    everywhere = _gather({"host": platform.node(), **identity(job, folder, workers)}, workers)
    names = dict.fromkeys(name for each in everywhere for name in each if name != "host")
    differing = [name for name in names if any(each.get(name) != everywhere[0].get(name) for each in everywhere)]
    if differing:
        raise ConfigError(_refusal(everywhere, differing))


def identity(job: ReferenceJob, folder: Path, workers: Workers) -> Identity:
    """What a job is known by, on whatever machine: no path of this one is in it.

    Args:
        job: the job.
        folder: which it was read from.
        workers: the processes that train together.
    """
    model = Path(job.model_path)
    tables = {name: folder / f"{name}.parquet" for name in TABLES}
    return {
        **_of_kind(job),
        "code": source_digest("mralign_core.processes.worker")[:SHOWN_OF_DIGEST],
        "base model": folder_digest(model)[:SHOWN_OF_DIGEST] if model.is_dir() else f"{job.model_path} {job.revision}",
        "model.dtype": job.model.dtype,
        "weights shared out (FSDP)": workers.is_sharded,
        **{f"table {name}": file_sha256(path)[:SHOWN_OF_DIGEST] for name, path in tables.items() if path.exists()},
    }


def with_common_passes(section: TrainConfig, workers: Workers) -> TrainConfig:
    """The train section with the smallest passes that a process asks for.

    Machines may differ in it, as after one of them ran out of memory; but who computes which row follows from it.

    Args:
        section: this process's.
        workers: the processes that train together.
    """
    tokens, recomputation = workers.lowest(
        section.tokens_per_forward, RECOMPUTATION.index(section.gradient_checkpointing)
    )
    return section.model_copy(
        update={"tokens_per_forward": tokens, "gradient_checkpointing": RECOMPUTATION[recomputation]}
    )


def _of_kind(job: ReferenceJob) -> Identity:
    """What decides an adapter, or the reference log-probabilities, which trainings of other settings share."""
    if isinstance(job, TrainingJob):
        settings = job.train.settings_of(job.variant)
        own = {"job": f"adapter {job.variant}", "adapter's key": job.key[:SHOWN_OF_DIGEST], "seed": job.seed}
    else:
        settings = {"max_length": job.train.max_length, "load_in_4bit": job.train.load_in_4bit}
        own = {"job": "reference log-probabilities"}
    return {**own, **{f"train.{name}": value for name, value in settings.items()}}


def _gather(here: Identity, workers: Workers) -> list[Identity]:
    """What each process says, in the order of their ranks."""
    text = json.dumps(here).encode()
    (longest,) = workers.lowest(-len(text))
    row = torch.tensor(list(text.ljust(-longest)), dtype=torch.uint8, device=workers.device)
    rows = [torch.empty_like(row) for _ in range(workers.size)]
    dist.all_gather(rows, row)
    return [json.loads(bytes(each.tolist())) for each in rows]


def _refusal(everywhere: Sequence[Identity], differing: Sequence[str]) -> str:
    """Say what the first process has, and each that differs from it, and what to do."""
    shown = [name for name in everywhere[0] if name in ("host", "job", *differing)]
    shown += [name for name in differing if name not in shown]

    def describe(rank: int) -> str:
        values = [f"{name} {everywhere[rank].get(name, 'none')}" for name in shown]
        return f"process {rank} has {', '.join(values)}"

    others = {
        json.dumps([each.get(name) for name in differing]): rank for rank, each in reversed(list(enumerate(everywhere)))
    }
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return (
        f"the processes that met at {address} (train.accelerate_config) have not come with the same job: "
        f"{'; '.join(describe(rank) for rank in sorted(others.values()))}. They differ in {', '.join(differing)}; "
        "nothing was trained. Give all machines the same checkout, config and variant, one command a variant in the "
        f"same order: `mralign task train --variant …` on the first, the same with {MACHINE_RANK}=1 on the second. "
        "Trainings at one time need different ports"
    )
