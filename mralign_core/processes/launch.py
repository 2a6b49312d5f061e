"""Train in the processes that ``accelerate launch`` starts, as if it were in this one.

The job goes to them as files (:mod:`.job_folder`), the results come back as a table and an adapter directory; in
between they report over a socket (:mod:`~.supervise`): log records, progress, the memory of each GPU, and
what went wrong. A user's error is raised here as it was there. All else, such as a process that was killed, is a
``ChildProcessError``, an ``OSError`` that is worth another attempt: that goes on from the last checkpoint.
"""

from __future__ import annotations

import logging
import secrets
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

from mralign_core import errors
from mralign_core.config import TrainConfig
from mralign_core.errors import ConfigError, OutOfMemory, UserError
from mralign_core.models.out_of_memory import with_less_memory
from mralign_core.processes.job_folder import read_result, write_job
from mralign_core.processes.machines import MACHINE_RANK, HelpedElsewhere, machine_rank
from mralign_core.processes.supervise import STARTER, ChildMessage, Supervisor
from mralign_core.storage import scratch_folder
from mralign_core.training.fit import TrainingResult, Watch
from mralign_core.training.job import ReferenceJob, TrainingJob
from mralign_core.training.policy_logps import PolicyJob
from mralign_core.training.reference import OnRows
from mralign_core.yaml_files import read_yaml

logger = logging.getLogger("mralign_core.training")

LAST_LINES = 20
"""Of the processes' output, in the message of an error."""
CAUSE_S = 2.0
"""How long a failure may come before its cause. Where one process dies, the others fail by the connection that it
closed, and may be heard first."""
LOOPBACK_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"
WITHOUT_SERVER = {"PREFECT_API_AUTH_STRING": ""}
"""For processes that talk to each other, and to no server."""
SHUT_IN = {"GLOO_SOCKET_IFNAME": LOOPBACK_INTERFACE, "NCCL_SOCKET_IFNAME": LOOPBACK_INTERFACE, **WITHOUT_SERVER}
"""For those of one host."""


def launch_reference(job: ReferenceJob, on_progress: OnRows | None = None) -> pd.DataFrame:
    """:func:`~mralign_core.training.reference.compute_reference` in the processes of ``train.accelerate_config``.

    Raises:
        ConfigError: that file can't be used; see :func:`read_accelerate_config`.
        OutOfMemory: and there is no smaller way to compute it.
        ChildProcessError: a process ended, or failed by no fault of the user.
    """
    table, _ = _launch_until_it_fits(job, on_progress)
    return table


def launch_policy_logps(job: PolicyJob, on_progress: OnRows | None = None) -> pd.DataFrame:
    """:func:`~mralign_core.training.policy_logps.compute_policy_logps` in the processes of ``train.accelerate_config``.

    Raises:
        ConfigError: that file can't be used; see :func:`read_accelerate_config`.
        OutOfMemory: and there is no smaller way to compute it.
        ChildProcessError: a process ended, or failed by no fault of the user.
    """
    table, _ = _launch_until_it_fits(job, on_progress)
    return table


def launch_adapter(job: TrainingJob, watch: Watch | None = None) -> TrainingResult:
    """:func:`~mralign_core.training.fit.train_adapter` in the processes of ``train.accelerate_config``.

    Raises:
        ConfigError: that file can't be used; see :func:`read_accelerate_config`.
        OutOfMemory: and ``train.on_out_of_memory`` is ``stop``, or there is no smaller way to train.
        ChildProcessError: a process ended, or failed by no fault of the user.
    """
    return TrainingResult(*_launch_until_it_fits(job, (watch or Watch()).report))


def read_accelerate_config(path: str) -> ClusterConfig:
    """The settings of ``accelerate launch``, refused where training would not follow them.

    Args:
        path: a YAML file as ``accelerate config`` writes it.

    Raises:
        ConfigError: it is missing, is no such file, or asks for something other than several processes, on this host or
            on machines that find the first of them, each with a copy of the model or (FSDP2) with a share of it.
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
    if settings.num_machines > 1 and not (settings.main_process_ip and settings.main_process_port):
        wanted.append("main_process_ip and main_process_port, by which the other machines find the first one")
    if settings.num_machines > 1 and settings.num_processes % settings.num_machines:
        wanted.append(
            f"as many processes on each of {settings.num_machines} machines, not {settings.num_processes} in all"
        )
    if not machine_rank() < settings.num_machines:
        wanted.append(f"num_machines above {machine_rank()}, which {MACHINE_RANK} says, not {settings.num_machines}")
    if settings.mixed_precision not in (None, "no"):
        wanted.append(f"no mixed_precision {settings.mixed_precision}: model.dtype decides")
    if wanted:
        raise ConfigError(
            f"train.accelerate_config {path!r} asks for what training does not do: write {'; '.join(wanted)}; "
            "deployments/accelerate/ has examples"
        )
    return settings


def smaller_section(section: TrainConfig, error: Exception) -> TrainConfig:
    """The train section with which the processes start again from the last checkpoint, after one ran out of memory.

    Raises:
        OutOfMemory: the error names no smaller way.
    """
    smaller = error.smaller if isinstance(error, OutOfMemory) else {}
    if not smaller:
        raise error
    logger.warning("%s. Starting again from the last checkpoint with %s", error, smaller)
    return section.model_copy(update=smaller)


def _launch_until_it_fits(
    job: ReferenceJob, on_progress: Callable[..., None] | None
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The table and the counts that a job gave, in the first attempt that had memory enough."""
    with scratch_folder() as folder:

        def attempt(section: TrainConfig) -> dict[str, int]:
            write_job(job.model_copy(update={"train": section}), folder)
            return _launch(section.accelerate_config, folder, on_progress)

        counts = with_less_memory(job.train, attempt, smaller_section)
        if machine_rank():
            raise HelpedElsewhere
        return read_result(folder), counts


def _launch(accelerate_config: str, folder: Path, on_progress: Callable[..., None] | None) -> dict[str, int]:
    """Run the job in a folder to its end and return the counts that it reports."""
    settings = read_accelerate_config(accelerate_config)
    # Of this attempt alone: a process of one before it that only now connects must not be heard in this one.
    address = folder / f"socket-{secrets.token_hex(4)}"
    child = ["-m", "mralign_core.processes.child", str(address)]
    launcher = [sys.executable, *child, "mralign_core.processes.launcher", "--config_file", accelerate_config]
    worker = [*child, "mralign_core.processes.worker", str(folder)]
    logger.info("training in %d processes (%s)", settings.num_processes, accelerate_config)
    environment = WITHOUT_SERVER if settings.num_machines > 1 else SHUT_IN
    if settings.num_machines > 1:
        launcher += ["--machine_rank", str(machine_rank())]
    # accelerate itself tells only a single process of use_cpu.
    environment = {**environment, "ACCELERATE_USE_CPU": str(settings.use_cpu).lower()}
    with Supervisor([*launcher, *worker], address, environment) as supervisor:
        return _follow(supervisor, on_progress)


def _follow(supervisor: Supervisor, on_progress: Callable[..., None] | None) -> dict[str, int]:
    """Pass on what the processes say; returns the counts that they report at the end."""
    last_lines: deque[str] = deque(maxlen=LAST_LINES)
    counts, failure = None, None
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
                error = _error(message)
                if isinstance(error, UserError):
                    raise error
                if failure is None:
                    failure = error
                    supervisor.stop_listening_in(CAUSE_S)
            case "lost":
                raise ChildProcessError(f"{_lost(message['rank'])}{_quote(last_lines)}") from failure
    if failure is not None:
        raise failure
    if counts is None:
        raise ChildProcessError(f"`accelerate launch` ended with code {supervisor.exit_code()}{_quote(last_lines)}")
    return counts


def _lost(rank: int) -> str:
    who = "`accelerate launch`" if rank == STARTER else f"training process {rank}"
    return f"{who} ended without a word, as one does that is killed (by the system, for want of host memory perhaps)"


def _error(message: ChildMessage) -> Exception:
    kind = getattr(errors, message["type"], None)
    if kind is OutOfMemory:
        return OutOfMemory(message["text"], message["smaller"])
    if isinstance(kind, type) and issubclass(kind, UserError):
        return kind(message["text"])
    return ChildProcessError(f"training process {message['rank']} failed:\n{message['traceback']}")


def _quote(lines: deque[str]) -> str:
    return "".join(["; its last lines:", *(f"\n  {line}" for line in lines)]) if lines else ""
