"""Curves while training runs: TensorBoard files, or Weights & Biases. They carry clock times, so no artifact has them.

TensorBoard's files are written in this thread: the usual ``SummaryWriter`` hands events to a thread through a bounded
queue, and when that thread has died of a full disk, the training waits for it for ever.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mralign_core.config import TrainConfig
from mralign_core.errors import ConfigError

logger = logging.getLogger("mralign_core.training")

WANDB_PROJECT = "mr-align"
FLUSH_EVERY_S = 1.0
"""Rows come in bursts, and the disk is slow."""


class Curves(Protocol):
    """Where the rows of a training go while it runs."""

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Add a row; values that are NaN are no points of a curve."""

    def close(self) -> None:
        """Write what is left."""


class NoCurves:
    """Curves that nobody asked for."""

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def check_curves(section: TrainConfig) -> None:
    """Refuse curves that can't be written for want of a package, before hours are spent on what comes first.

    Raises:
        ConfigError: ``train.report_to`` is ``wandb``, and that package is not installed.
    """
    if section.report_to == "wandb" and importlib.util.find_spec("wandb") is None:
        raise ConfigError("train.report_to 'wandb': that package is not installed; run 'pip install wandb'")


def open_curves(section: TrainConfig, run_name: str, label: str, *, key: str) -> Curves:
    """The curves of one training, in ``train.log_folder/<run_name>/<label>``, opened with their first row.

    From that row's step on, the curves of a training that was killed are replaced. What can't be written, for whatever
    reason, is a single warning and never stops the training.

    Args:
        section: the train section of the config.
        run_name: name of the run.
        label: what is trained, apart from whatever else the run trains.
        key: cache key of the adapter, by which W&B knows that a restart goes on with the same run.

    Raises:
        ConfigError: see :func:`check_curves`.
    """
    check_curves(section)
    if section.report_to == "none":
        return NoCurves()
    folder = Path(section.log_folder).expanduser() / run_name / label
    if section.report_to == "tensorboard":
        return _Forgiving(lambda first_step: TensorBoardCurves(folder, first_step))
    return _Forgiving(lambda _: WandbCurves(folder, f"{run_name}/{label}", key, section.fingerprint()))


class _Forgiving:
    """Curves that fall silent, after one warning, when they can't be written."""

    def __init__(self, open_: Callable[[int], Curves]) -> None:
        self._open = open_
        self._curves: Curves | None = None

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Add a row."""
        with self._silent_when_it_fails():
            if self._curves is None:
                self._curves = self._open(step)
            self._curves.log(step, row)

    def close(self) -> None:
        """Write what is left."""
        with self._silent_when_it_fails():
            if self._curves is not None:
                self._curves.close()

    @contextlib.contextmanager
    def _silent_when_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of many kinds, most of them W&B's own
            logger.warning("training goes on without curves: %s (see train.report_to, train.log_folder)", error)
            self._curves = NoCurves()


class TensorBoardCurves:
    """A file of TensorBoard events for each start of a training; TensorBoard joins those in one folder.

    Args:
        folder: where to.
        first_step: TensorBoard takes what earlier files of the folder have from this step on for never written.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The step keeps apart, and in order, the files of two starts within a second.
        self._writer = EventsWriter(str(folder / "events"), f".{first_step:09d}")
        restart = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=first_step, session_log=restart))
        self._flushed = -math.inf

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Add a row."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in _points(row).items()]
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=points)))
        if time.monotonic() - self._flushed > FLUSH_EVERY_S:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WandbCurves:
    """A run of Weights & Biases, in the project that ``WANDB_PROJECT`` names, else ``mr-align``.

    W&B itself drops steps that a run already has, so a restart adds no duplicates. ``WANDB_MODE=offline`` needs no
    login.
    """

    def __init__(self, folder: Path, name: str, key: str, settings: Mapping[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
            name=name,
            id=key[:32],
            resume="allow",
            dir=str(folder),
            config=dict(settings),
        )

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Add a row."""
        self._run.log(_points(row), step=step)

    def close(self) -> None:
        """Send or write what is left."""
        self._run.finish()


def _points(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and not math.isnan(value)}


class Meter:
    """How fast a training runs, and the most memory it took on its device.

    Args:
        device: where it runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._num_tokens = 0
        self._started = time.perf_counter()

    def count(self, num_tokens: int) -> None:
        """Note tokens that were trained on."""
        self._num_tokens += num_tokens

    def read(self) -> dict[str, float]:
        """``tokens_per_second`` since the last reading and, on a GPU, ``gpu_memory_mib``, the most since the start.

        Nothing where no token was counted since.
        """
        if not self._num_tokens:
            return {}
        now = time.perf_counter()
        reading = {"tokens_per_second": self._num_tokens / (now - self._started)}
        self._num_tokens, self._started = 0, now
        if self._device.type == "cuda":
            reading["gpu_memory_mib"] = torch.cuda.max_memory_allocated(self._device) / 2**20
        return reading
