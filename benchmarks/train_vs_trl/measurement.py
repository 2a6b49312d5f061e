"""Clock and memory of one job in a process of its own."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.train_vs_trl.workload import Workload


class Run(NamedTuple):
    """What a job took; seconds, and megabytes (10⁶ bytes)."""

    prepare_s: float
    """From rows in memory to the first optimiser step: data, adapter, reference pass."""
    job_s: float
    """From rows in memory to the trained adapter in memory."""
    step_s: float
    """Mean optimiser step, without the first epoch."""
    imports_mb: float
    """What the process held before it had a model; 0 on a GPU."""
    peak_mb: float
    """The most that it ever held; on a GPU, since the job began."""
    losses: list[float]
    """Loss of each step."""


class Stopwatch:
    """Times of a job: started when it begins, told when it is prepared and when a step ends."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.imports_mb = 0.0 if workload.device == "cuda" else status_mb("VmRSS")
        self._step_ends: list[float] = []

    def start(self) -> None:
        """The model is there, the job begins."""
        if self.workload.device == "cuda":
            torch.cuda.reset_peak_memory_stats()  # of a job before, or of making the model
        self._started = self._now()

    @property
    def prepare_s(self) -> float:
        """Seconds from the job's beginning to its first step."""
        return self._prepared - self._started

    def prepared(self) -> None:
        """All that comes before the first step is done."""
        self._prepared = self._now()

    def step_ended(self) -> None:
        """An optimiser step is done."""
        self._step_ends.append(self._now())

    def finish(self, losses: list[float]) -> Run:
        """The adapter is trained, with these losses of its steps."""
        ended = self._now()
        warm = self._step_ends[self.workload.steps_per_epoch - 1 :]
        return Run(
            prepare_s=self.prepare_s,
            job_s=ended - self._started,
            step_s=(warm[-1] - warm[0]) / (len(warm) - 1),
            imports_mb=self.imports_mb,
            peak_mb=self._peak_mb(),
            losses=losses,
        )

    def _now(self) -> float:
        if self.workload.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.workload.cpu_time else time.perf_counter()

    def _peak_mb(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e6 if self.workload.device == "cuda" else status_mb("VmHWM")


def status_mb(name: str, status: str | None = None) -> float:
    r"""A memory figure of this process, or of the text of a ``/proc/PID/status``.

    Example:
        >>> status_mb("VmHWM", "VmPeak:  9 kB\nVmHWM:   2000 kB\n")
        2.048
    """
    text = Path("/proc/self/status").read_text() if status is None else status
    found = re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE)
    assert found, f"no {name} in /proc/self/status"
    return int(found[1]) * 1024 / 1e6
