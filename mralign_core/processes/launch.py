"""Train in the processes that ``accelerate launch`` starts, as if it were in this one.

The work goes to them as a JSON file and Parquet tables, the results come back as tables and an adapter directory; in
between they report over a socket (:mod:`~.supervise`): log records, progress, the memory of each GPU, and
what went wrong. A user's error is raised here as it was there. All else, such as a process that was killed, is a
``ChildProcessError``, an ``OSError`` that is worth another attempt: that goes on from the last checkpoint.
"""

from __future__ import annotations

import logging
import secrets
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

from mralign_core import errors
from mralign_core.config import ModelConfig, Section, StorageConfig, TrainConfig, Variant
from mralign_core.errors import ConfigError, OutOfMemory, UserError
from mralign_core.processes.supervise import STARTER, Message, Supervisor
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.reference_logps import REFERENCE_LOGPS
from mralign_core.schemas.rewards import REWARDS
from mralign_core.storage import scratch_folder
from mralign_core.storage.tables import read_table, write_table
from mralign_core.training.fit import TrainingResult
from mralign_core.training.reference import OnRows
from mralign_core.training.trainer import Progress
from mralign_core.yaml_files import read_yaml

logger = logging.getLogger("mralign_core.training")

LAST_LINES = 20
"""Of the processes' output, in the message of an error."""
CANDIDATES_FILE, REWARDS_FILE, REFERENCE_FILE = "candidates.parquet", "rewards.parquet", "reference.parquet"
RESULT_FILE = "result.parquet"
LOOPBACK_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"
SHUT_IN = {
    "GLOO_SOCKET_IFNAME": LOOPBACK_INTERFACE,
    "NCCL_SOCKET_IFNAME": LOOPBACK_INTERFACE,
    "PREFECT_API_AUTH_STRING": "",
}
"""For processes of one host that talk to each other, and to no server."""


class AdapterJob(Section):
    """What training an adapter needs beyond what its reference needs."""

    variant: Variant
    seed: int
    directory: Path
    """Where the adapter goes."""
    card: dict[str, Any]
    """Facts for the model card."""
    storage: StorageConfig
    """The store that keeps the checkpoints."""
    key: str
    """Cache key of the adapter, under which they are kept."""


class Job(Section):
    """What the processes are to do: an adapter, or without one the table of reference log-probabilities."""

    folder: Path
    """Tables that go in, the table that comes out, and the sockets."""
    model_path: str
    revision: str
    section: TrainConfig
    model_section: ModelConfig
    adapter: AdapterJob | None = None


def launch_reference(
    model_path: str | Path,
    candidates: pd.DataFrame,
    *,
    section: TrainConfig,
    model_section: ModelConfig,
    on_progress: OnRows | None = None,
    revision: str = "",
) -> pd.DataFrame:
    """:func:`~mralign_core.training.reference.compute_reference` in the processes of ``train.accelerate_config``.

    Raises:
        ConfigError: that file can't be used; see :func:`read_accelerate_config`.
        ChildProcessError: a process ended, or failed by no fault of the user.
    """
    with scratch_folder() as folder:
        write_table(folder, CANDIDATES_FILE, candidates, CANDIDATES)
        job = Job(
            folder=folder,
            model_path=str(model_path),
            revision=revision,
            section=section,
            model_section=model_section,
        )
        with_less_memory(section, lambda smaller: _launch(job.model_copy(update={"section": smaller}), on_progress))
        return read_table(folder / RESULT_FILE)


def launch_adapter(
    model_path: str | Path,
    candidates: pd.DataFrame,
    rewards: pd.DataFrame | None,
    *,
    variant: Variant,
    section: TrainConfig,
    model_section: ModelConfig,
    seed: int,
    directory: Path,
    card: Mapping[str, Any],
    storage: StorageConfig,
    key: str,
    reference: pd.DataFrame | None = None,
    on_progress: Progress | None = None,
    revision: str = "",
) -> TrainingResult:
    """:func:`~mralign_core.training.fit.train_adapter` in the processes of ``train.accelerate_config``.

    Takes the same arguments but two: ``storage`` is the store that keeps the checkpoints, and ``key`` the cache key of
    the adapter, under which they are kept.

    Raises:
        ConfigError: that file can't be used; see :func:`read_accelerate_config`.
        OutOfMemory: and ``train.on_out_of_memory`` is ``stop``, or there is no smaller way to train.
        ChildProcessError: a process ended, or failed by no fault of the user.
    """
    tables = ((CANDIDATES_FILE, candidates, CANDIDATES), (REWARDS_FILE, rewards, REWARDS))
    with scratch_folder() as folder:
        for name, frame, table in (*tables, (REFERENCE_FILE, reference, REFERENCE_LOGPS)):
            if frame is not None:
                write_table(folder, name, frame, table)
        job = Job(
            folder=folder,
            model_path=str(model_path),
            revision=revision,
            section=section,
            model_section=model_section,
            adapter=AdapterJob(
                variant=variant, seed=seed, directory=directory, card=dict(card), storage=storage, key=key
            ),
        )
        counts = with_less_memory(
            section, lambda smaller: _launch(job.model_copy(update={"section": smaller}), on_progress)
        )
        return TrainingResult(read_table(folder / RESULT_FILE), counts)


def read_accelerate_config(path: str) -> ClusterConfig:
    """The settings of ``accelerate launch``, refused where training would not follow them.

    Args:
        path: a YAML file as ``accelerate config`` writes it.

    Raises:
        ConfigError: it is missing, is no such file, or asks for something other than several processes on this host,
            each with a copy of the model or (FSDP2) with a share of it.
    """
    read_yaml(path, "train.accelerate_config")
    try:
        settings = load_config_from_file(path)
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"train.accelerate_config {path!r} is no file for `accelerate launch`: {error}") from error
    kind, fsdp = settings.distributed_type, settings.fsdp_config or {}
    wanted = []
    if kind not in (DistributedType.MULTI_GPU, DistributedType.FSDP):
        wanted.append(f"distributed_type MULTI_GPU or FSDP, not {kind.value}")
    if kind == DistributedType.FSDP and fsdp != {"fsdp_version": 2}:
        wanted.append(f"fsdp_config with fsdp_version 2 and nothing else, not {fsdp}")
    if settings.num_machines != 1:
        wanted.append(f"num_machines 1, not {settings.num_machines}")
    if settings.mixed_precision not in (None, "no"):
        wanted.append(f"no mixed_precision {settings.mixed_precision}: model.dtype decides")
    if wanted:
        raise ConfigError(
            f"train.accelerate_config {path!r} asks for what training does not do: write {'; '.join(wanted)}; "
            "deployments/accelerate/ has examples"
        )
    return settings


def with_less_memory(section: TrainConfig, attempt: Callable[[TrainConfig], Any]) -> Any:
    """What an attempt returns; where a device ran out of memory, attempt it again in a smaller way.

    Args:
        section: the train section of the config.
        attempt: trains with a section, from the last checkpoint.

    Raises:
        OutOfMemory: and there is no smaller way.
    """
    while True:
        try:
            return attempt(section)
        except OutOfMemory as error:
            if not error.smaller:
                raise
            section = section.model_copy(update=error.smaller)
            logger.warning("%s. Starting again from the last checkpoint with %s", error, error.smaller)


def _launch(job: Job, on_progress: Callable[..., None] | None) -> dict[str, int]:
    """Run a job to its end and return the counts that it reports."""
    settings = read_accelerate_config(job.section.accelerate_config)
    file = job.folder / "job.json"
    file.write_text(job.model_dump_json())
    # Of this attempt alone: a process of one before it that only now connects must not be heard in this one.
    address = job.folder / f"socket-{secrets.token_hex(4)}"
    child = ["-m", "mralign_core.processes.child", str(address)]
    launcher = [sys.executable, *child, "mralign_core.processes.launcher"]
    launcher += ["--config_file", job.section.accelerate_config]
    worker = [*child, "mralign_core.processes.worker", str(file)]
    logger.info("training in %d processes (%s)", settings.num_processes, job.section.accelerate_config)
    # accelerate itself tells only a single process of use_cpu.
    environment = {**SHUT_IN, "ACCELERATE_USE_CPU": str(settings.use_cpu).lower()}
    with Supervisor([*launcher, *worker], address, environment) as supervisor:
        return _follow(supervisor, on_progress)


def _follow(supervisor: Supervisor, on_progress: Callable[..., None] | None) -> dict[str, int]:
    """Pass on what the processes say; returns the counts that they report at the end."""
    last_lines: deque[str] = deque(maxlen=LAST_LINES)
    counts = None
    for message in supervisor.messages():
        match message["kind"]:
            case "output":
                logger.info("%s", message["text"])
                last_lines.append(message["text"])
            case "log":
                who = f"process {message['rank']}: " if message["rank"] else ""
                logging.getLogger(message["name"]).log(message["level"], "%s%s", who, message["text"])
            case "progress" if on_progress:
                on_progress(*message["values"])
            case "result":
                counts = message["counts"]
            case "error":
                raise _error(message)
            case "lost":
                raise ChildProcessError(f"{_lost(message['rank'])}{_quote(last_lines)}")
    if counts is None:
        raise ChildProcessError(f"`accelerate launch` ended with code {supervisor.exit_code()}{_quote(last_lines)}")
    return counts


def _lost(rank: int) -> str:
    who = "`accelerate launch`" if rank == STARTER else f"training process {rank}"
    return f"{who} ended without a word, as one does that is killed (by the system, for want of host memory perhaps)"


def _error(message: Message) -> Exception:
    kind = getattr(errors, message["type"], None)
    if kind is OutOfMemory:
        return OutOfMemory(message["text"], message["smaller"])
    if isinstance(kind, type) and issubclass(kind, UserError):
        return kind(message["text"])
    return ChildProcessError(f"training process {message['rank']} failed:\n{message['traceback']}")


def _quote(lines: deque[str]) -> str:
    return "".join(["; its last lines:", *(f"\n  {line}" for line in lines)]) if lines else ""
