"""The estimate of memory against the allocator's peak, and what happens where memory runs out all the same."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.findings import Findings, Setting
from benchmarks.gpu.shapes import TINY
from benchmarks.train_vs_trl import our_contender
from benchmarks.train_vs_trl.our_contender import Prepared
from benchmarks.train_vs_trl.workload import QWEN3_8B, Workload, build_model, build_rows
from mralign_core.training.packing import Batch
from mralign_core.training.trainer import Trainer

FEW_LAYERS = 6
MOST_OF_ESTIMATE = 1.05
"""The peak over the estimate: more would be a job that was said to fit and does not."""
LEAST_OF_ESTIMATE = 0.5
"""Less would be a job refused that fits."""
NUM_STEPS = 8
"""Optimiser steps of a job, of all its rows in one pass; not all are taken."""
STAND_IN_SLACK = 4.0
"""In a model this small, what the estimate leaves out (work space, indices) is as large as what it counts."""


def compare(setting: Setting, findings: Findings) -> None:
    """Activations kept, recomputed, and too large for the memory there is."""
    workload = _workload(setting)
    told: list[str] = []
    slack = STAND_IN_SLACK if setting.is_stand_in else 1.0
    for recomputed, name in (("never", "kept"), ("always", "recomputed")):
        with findings.attempt(f"activations {name}"):
            _compare(workload, recomputed, name, slack, told, findings)
    with findings.attempt("out of memory"):
        _run_out(workload, findings)


def _compare(workload: Workload, recomputed: str, name: str, slack: float, told: list[str], findings: Findings) -> None:
    prepared = _prepare(workload, recomputed)
    prepared.trainer.train_step()  # Adam's moments are there from now on
    peak, total = _peak_bytes(prepared), prepared.estimate.total
    findings.value(f"estimate_mb_{name}", total / 1e6)
    findings.value(f"peak_mb_{name}", peak / 1e6)
    findings.value(f"peak_over_estimate_{name}", peak / total)
    findings.check(f"peak over the estimate, activations {name}", peak / total, MOST_OF_ESTIMATE * slack)
    findings.check(f"estimate over the peak, activations {name}", total / peak, slack / LEAST_OF_ESTIMATE)
    told.append(f"{name} {peak / total:.2f}")
    findings.say(f"peak over the estimate: {', '.join(told)}")


def _workload(setting: Setting) -> Workload:
    if setting.is_stand_in:
        return dataclasses.replace(TINY, epochs=NUM_STEPS, batch=TINY.rows)
    return dataclasses.replace(QWEN3_8B, layers=FEW_LAYERS, rows=8, batch=8, accumulation=1, epochs=NUM_STEPS)


def _prepare(workload: Workload, recomputed: Any) -> Prepared:
    gc.collect()  # the job before
    if workload.device == "cuda":
        torch.cuda.empty_cache()
    rows = build_rows(workload)
    section = our_contender.train_section(workload, rows, our_contender.EXACT)
    section = section.model_copy(update={"gradient_checkpointing": recomputed})
    return our_contender.prepare(build_model(workload), our_contender.as_candidates(rows), section)


def _peak_bytes(prepared: Prepared) -> int:
    """The most that a step held, model and optimiser included."""
    trainer = prepared.trainer
    if trainer.policy.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        trainer.train_step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trainer.train_step()
    return prepared.estimate.weights + prepared.estimate.adapter + peak_of(recorded)


def peak_of(recorded: Any) -> int:
    """Most bytes that PyTorch's allocator of the CPU held at one time, beside what it held before."""
    events = [
        (event.start_ns(), event.nbytes())
        for event in recorded.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    ]
    held = peak = 0
    for _, change in sorted(events):
        held += change
        peak = max(peak, held)
    return peak


def _run_out(workload: Workload, findings: Findings) -> None:
    """A step with too little memory for its pass: it must go on in smaller ones, with the loss of one that had it."""
    losses, sizes = [], []
    for is_short in (False, True):
        trainer = _prepare(workload, "auto").trainer
        trainer.train_step()
        needed = _needed_bytes(trainer)
        with _too_little_memory(trainer, needed) if is_short else contextlib.nullcontext():
            trainer.train_step()
        trainer.read_metrics()
        losses.append(trainer.metrics[-1]["loss"])
        sizes.append(trainer.pass_size)
        del trainer
    findings.value("tokens_per_forward_before", sizes[0].tokens)
    findings.value("tokens_per_forward_after", sizes[1].tokens)
    findings.check("it never ran out of memory, so nothing is shown", float(sizes[1] == sizes[0]), 0)
    findings.check("loss after running out of memory, from the other's", abs(losses[1] - losses[0]), 5e-3)
    line = findings.record["line"]
    findings.say(f"{line}; out of memory at {sizes[0].tokens} tokens a pass, went on at {sizes[1].tokens}")


def _needed_bytes(trainer: Trainer) -> int:
    """Bytes that a step takes beside what is there before it, of which one is made; 0 on a CPU."""
    if trainer.policy.device.type != "cuda":
        trainer.train_step()
        return 0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer.train_step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@contextlib.contextmanager
def _too_little_memory(trainer: Trainer, needed: int) -> Iterator[None]:
    """Give a step less memory than it needs: by the allocator's limit, or on a CPU by pretence."""
    if trainer.policy.device.type == "cuda":
        torch.cuda.empty_cache()
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.75 * needed) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    forward, tokens = trainer.policy.forward, sum(sum(map(len, each.row)) for each in trainer.examples)

    def refusing(batch: Batch) -> torch.Tensor:
        if batch.model_inputs["input_ids"].numel() > 0.75 * tokens:
            raise torch.OutOfMemoryError("the stand-in has no memory for so many tokens")
        return forward(batch)

    trainer.policy.forward = refusing  # type: ignore[method-assign]
    try:
        yield
    finally:
        trainer.policy.forward = forward  # type: ignore[method-assign]
