"""A training that stops, goes through the store and goes on, beside one that does not stop.

Kernels of a card may add in another order each time, so two trainings alike are compared too: the one that stopped must
be as near to the first as the second is.
"""

from __future__ import annotations

import dataclasses
import tempfile

import torch
from torch import Tensor

from benchmarks.gpu.findings import Findings, Setting
from benchmarks.gpu.shapes import small
from benchmarks.train_vs_trl import our_contender
from benchmarks.train_vs_trl.workload import Workload, build_model, build_rows
from mralign_core.config import StorageConfig
from mralign_core.storage import ArtifactStore
from mralign_core.training.checkpoints import StoredCheckpoints, restore, state_of
from mralign_core.training.trainer import Trainer

NOISE = 10
"""How many times as far from the first training as the second the one that stopped may be."""
ROUNDING = {"float32": 1e-6, "bfloat16": 1e-4}
"""Of the adapter, relative: where two trainings alike are the same to the last bit."""


def interrupt(setting: Setting, findings: Findings) -> None:
    """In float32 and in bfloat16."""
    told: list[str] = []
    for dtype in ROUNDING:
        with findings.attempt(dtype):
            _compare(small(setting, dtype=dtype), told, findings)


def _compare(workload: Workload, told: list[str], findings: Findings) -> None:
    dtype = workload.dtype
    first, again = (_adapter(_trained(workload)) for _ in range(2))
    resumed = _adapter(_resumed(workload))
    alike, apart = _apart(again, first), _apart(resumed, first)
    findings.value(f"apart_two_alike_{dtype}", alike)
    findings.value(f"apart_resumed_{dtype}", apart)
    findings.check(f"adapter after a stop, {dtype}", apart, NOISE * alike + ROUNDING[dtype])
    moved = float(sum(tensor.abs().sum() for name, tensor in first.items() if "lora_B" in name))
    findings.check(f"nothing was learnt, {dtype}", float(moved == 0), 0)
    told.append(f"{dtype} {apart:.1e} (two alike: {alike:.1e})")
    findings.say(f"adapter after a stop, relative difference: {', '.join(told)}")


def _trainer(workload: Workload) -> Trainer:
    rows = build_rows(workload)
    section = our_contender.train_section(workload, rows, our_contender.EXACT)
    model = build_model(dataclasses.replace(workload, device="cpu")).to(torch.device(workload.device))
    return our_contender.build_trainer(model, our_contender.as_candidates(rows), section)


def _trained(workload: Workload) -> Trainer:
    trainer = _trainer(workload)
    trainer.run()
    return trainer


def _resumed(workload: Workload) -> Trainer:
    """Half the steps, then a checkpoint, then another trainer that goes on from it."""
    with tempfile.TemporaryDirectory(prefix="mralign-gpu-") as folder:
        checkpoints = StoredCheckpoints(ArtifactStore(StorageConfig(root=folder)), "0" * 64)
        before = _trainer(workload)
        for _ in range(before.num_steps // 2):
            before.train_step()
        checkpoints.save(state_of(before))
        trainer = _trainer(workload)
        state = checkpoints.latest()
        assert state is not None, "the checkpoint is not in the store"
        restore(trainer, state)
    trainer.run()
    assert len(trainer.metrics) == trainer.num_steps
    return trainer


def _adapter(trainer: Trainer) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu() for name, parameter in trainer.parameters.items()}


def _apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """‖found − expected‖ / ‖expected‖ over all parameters."""
    squares = sum(float((found[name].double() - expected[name]).square().sum()) for name in expected)
    return float((squares / sum(float(each.double().square().sum()) for each in expected.values())) ** 0.5)
