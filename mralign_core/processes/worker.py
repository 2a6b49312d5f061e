"""One of the processes that ``accelerate launch`` starts, by ``python -m mralign_core.processes.child``."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch

from mralign_core.config import ModelConfig
from mralign_core.errors import ConfigError, OutOfMemory
from mralign_core.models.locate import limit_threads
from mralign_core.processes.job_folder import read_job, write_result
from mralign_core.processes.same_job import require_same_job, with_common_passes
from mralign_core.processes.supervise import GRACE_S, Lifeline, LifelineHandler
from mralign_core.training.fit import Watch, train_adapter
from mralign_core.training.job import TrainingJob
from mralign_core.training.policy_logps import PolicyJob, compute_policy_logps
from mralign_core.training.reference import compute_reference
from mralign_core.training.workers import Workers

MEMORY_EVERY_S = 600.0
"""Between two reports of the memory of a GPU."""


def main(lifeline: Lifeline, folder: str) -> NoReturn:
    """Do this process's part of the job in a folder, tell how it went, and end the process."""
    _send_logs(lifeline)
    exit_code = 0
    try:
        counts = _work(Path(folder), Workers.from_environment(), lifeline)
        lifeline.send("result", counts=counts)
    except Exception as error:
        lifeline.send(
            "error",
            type=type(error).__name__,
            text=str(error),
            traceback=traceback.format_exc(),
            smaller=error.smaller if isinstance(error, OutOfMemory) else {},
        )
        exit_code = 1
    lifeline.close()
    sys.stdout.flush()
    if exit_code:
        # The launcher ends the others when one has ended, and they would look like the cause of this failure. The
        # supervisor ends all as soon as it knows the cause.
        time.sleep(GRACE_S)
    # An ordinary exit would wait for collective operations that a process which failed never joined.
    os._exit(exit_code)


def _work(folder: Path, workers: Workers, lifeline: Lifeline) -> dict[str, int]:
    """Compute the table and the files of a job; the main process writes them. Returns the adapter's counts."""
    job = read_job(folder)
    require_same_job(job, folder, workers)
    changes = {"model": _on_device(job.model, workers), "train": with_common_passes(job.train, workers)}
    job = job.model_copy(update=changes)
    limit_threads(job.model)
    report = _Report(lifeline, workers)
    counts: dict[str, int] = {}
    if isinstance(job, TrainingJob):
        frame, counts = train_adapter(job, Watch(on_progress=report), workers)
    elif isinstance(job, PolicyJob):
        frame = compute_policy_logps(job, report, workers)
    else:
        frame = compute_reference(job, report, workers)
    if workers.is_main:
        write_result(job, folder, frame)
    workers.leave()
    return counts


class _Report:
    """Sends progress from the main process, and now and then from each the most GPU memory that it took."""

    def __init__(self, lifeline: Lifeline, workers: Workers) -> None:
        self._lifeline = lifeline
        self._workers = workers
        self._last = -math.inf

    def __call__(self, *values: Any) -> None:
        if self._workers.is_main:
            self._lifeline.send("progress", values=values)
        if self._workers.device.type == "cuda" and time.monotonic() - self._last > MEMORY_EVERY_S:
            mib = torch.cuda.max_memory_allocated(self._workers.device) / 2**20
            text = f"{mib:,.0f} MiB of GPU memory taken at most"
            # Not by the logger, which keeps quiet in all but the main process.
            self._lifeline.send("log", name="mralign_core.training", level=logging.INFO, text=text)
            self._last = time.monotonic()


def _on_device(section: ModelConfig, workers: Workers) -> ModelConfig:
    """The model section with the kind of device that the processes have.

    Raises:
        ConfigError: the config asks for another kind.
    """
    device: Any = workers.device.type
    if section.device not in ("auto", device):
        raise ConfigError(
            f"model.device is {section.device!r}, but the processes of train.accelerate_config run on {device!r}: set "
            "it to 'auto', or take a file for that device"
        )
    return section.model_copy(update={"device": device})


def _send_logs(lifeline: Lifeline) -> None:
    """The main process's log records from INFO, the others' from WARNING."""
    project = logging.getLogger("mralign_core")
    project.setLevel(logging.INFO if lifeline.rank == 0 else logging.WARNING)
    project.addHandler(LifelineHandler(lifeline))
    project.propagate = False
