"""Checkpoints: the state of a training in the artifact store, from which any machine goes on.

A checkpoint is an artifact of stage ``checkpoint/<key of the adapter>``, with its step for a key. Its manifest, written
last, is what makes it one: no other record could disagree with it, so a process may be killed between any two
operations. The newest and the one before are kept; the others go, manifest first.

Files are safetensors and JSON in Python's dialect, which has NaN and writes every float so that it reads back the same.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mralign_core.errors import ArtifactError, StorageError
from mralign_core.storage import ArtifactStore, scratch_folder

if TYPE_CHECKING:
    from mralign_core.training.trainer import Trainer

logger = logging.getLogger("mralign_core.training")

TENSORS, VALUES = "state.safetensors", "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's, by the names that it gives them."""


class TrainingState(NamedTuple):
    """Everything that a training needs to go on as if it had never stopped."""

    step: int
    """Optimiser steps done."""
    tensors: dict[str, Tensor]
    """Adapter parameters, moments of the optimiser, random states (uint8), on the CPU."""
    values: dict[str, Any]
    """JSON values: metrics rows, averages. NaN and infinities are allowed."""


def state_of(trainer: Trainer) -> TrainingState:
    """All that a restart needs of a training, between two steps."""
    trainer.read_metrics()
    tensors = {}
    for name, parameter in trainer.parameters.items():
        tensors[f"parameter.{name}"] = parameter.detach().cpu().clone()
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = trainer.optimizer.state[parameter][moment].cpu().clone()
    if trainer.kl_average is not None:
        tensors["kl_average"] = trainer.kl_average.cpu().clone()
    values = {"metrics": trainer.metrics, "tokens_per_forward": trainer.pass_size.tokens}
    return TrainingState(trainer.step, tensors, values)


@torch.no_grad()
def restore(trainer: Trainer, state: TrainingState) -> None:
    """Have a training go on from where one on the same rows and settings was."""
    trainer.step, trainer.metrics = state.step, list(state.values["metrics"])
    # The same passes give the same bits; where there is less memory now, there are more of them.
    tokens = min(trainer.pass_size.tokens, state.values["tokens_per_forward"])
    trainer.use_passes(trainer.pass_size._replace(tokens=tokens))
    device, optimizer = trainer.policy.device, trainer.optimizer
    for name, parameter in trainer.parameters.items():
        parameter.copy_(state.tensors[f"parameter.{name}"])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.step), device=device if optimizer.defaults["fused"] else "cpu"),
            **{moment: state.tensors[f"{moment}.{name}"].to(device) for moment in MOMENTS},
        }
    kl_average = state.tensors.get("kl_average")
    trainer.kl_average = None if kl_average is None else kl_average.to(device)


class StoredCheckpoints:
    """The checkpoints of one adapter in an artifact store.

    Args:
        store: the store.
        key: cache key of the adapter, so that only the same training ever finds them.
    """

    def __init__(self, store: ArtifactStore, key: str) -> None:
        self._store = store
        self._stage = f"checkpoint/{key}"

    def latest(self) -> TrainingState | None:
        """The newest state whose digests are right; a log line says why a newer one is not used."""
        for key in reversed(self._store.keys(self._stage)):
            try:
                if ref := self._store.find(self._stage, key):
                    return _read(self._store.open_directory(ref))
            except ArtifactError as error:
                logger.warning("not going on from checkpoint %s: %s", key, error)
        return None

    def save(self, state: TrainingState) -> None:
        """Keep a state and the one before it.

        A store that is down does not stop the training: a warning says so, and the next checkpoint is another attempt.
        """
        try:
            self._publish(state)
        except (StorageError, ArtifactError) as error:
            logger.warning("step %d is not in a checkpoint: %s", state.step, error)
            return
        with self._old_may_stay():
            earlier = [key for key in self._store.keys(self._stage) if key < _key(state.step)]
            before = next((key for key in reversed(earlier) if self._store.find(self._stage, key)), None)
            self._remove_all_but(_key(state.step), before)

    def clear(self) -> None:
        """Remove every checkpoint of this adapter."""
        with self._old_may_stay():
            self._remove_all_but()

    def _publish(self, state: TrainingState) -> None:
        with scratch_folder() as scratch:
            save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, scratch / TENSORS)
            (scratch / VALUES).write_text(json.dumps({"step": state.step, "values": state.values}))
            self._store.publish(self._stage, _key(state.step), scratch, parents=[], fingerprint={})

    def _remove_all_but(self, *spared: str | None) -> None:
        for key in self._store.keys(self._stage):
            if key not in spared:
                self._store.remove(self._stage, key)

    @contextlib.contextmanager
    def _old_may_stay(self) -> Iterator[None]:
        """Go on when old checkpoints can't be removed: a bucket may be write-once, or its server down."""
        try:
            yield
        except StorageError as error:
            is_refused = isinstance(error.__cause__, PermissionError)
            logger.log(logging.INFO if is_refused else logging.WARNING, "old checkpoints stay in the store: %s", error)


def _key(step: int) -> str:
    return f"step-{step:09d}"


def _read(directory: Path) -> TrainingState:
    record = json.loads((directory / VALUES).read_text())
    return TrainingState(record["step"], load_file(directory / TENSORS), record["values"])
