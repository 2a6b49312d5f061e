"""Where the time of our training step goes, part by part, beside the floor."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.train_vs_trl import our_contender
from benchmarks.train_vs_trl.floor import PARTS, Rates, measure_rates, moved_bytes, operations
from benchmarks.train_vs_trl.workload import Row, Workload, build_model, build_rows
from mralign_core.training.packing import packed_attention

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_")
ATTENTION = ("attention", "attn", "softmax", "bmm")
"""Of names: a kernel's own, or what attention by blocks is made of. The head's softmax is no operator of its own."""
OPTIMISER = ("optimizer", "adam", "foreach", "lerp", "addcdiv", "addcmul")


def print_profile(workload: Workload) -> None:
    """Time an epoch of our steps after one of warm-up, profile a third, and print it beside the floor."""
    workload = dataclasses.replace(workload, epochs=3)
    rows = build_rows(workload)
    section = our_contender.train_section(workload, rows, our_contender.EXACT)
    trainer = our_contender.build_trainer(build_model(workload), our_contender.as_candidates(rows), section)
    _epoch(trainer, workload)
    step_s = _epoch(trainer, workload) / workload.steps_per_epoch
    with profile(activities=_activities(workload), record_shapes=True) as recorded:
        _epoch(trainer, workload)
    measured = seconds_by_part(recorded.key_averages(group_by_input_shape=True), workload)
    per_step = {part: seconds / workload.steps_per_epoch for part, seconds in measured.items()}
    _print(workload, rows, measure_rates(workload, _attend), step_s, per_step)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As the trainer does, one row of a pass."""
    options = our_contender.attention_options([query.shape[2]], query.device)
    attended, _ = packed_attention(torch.nn.Identity(), query, key, value, None, **options)
    return attended


def _epoch(trainer: Any, workload: Workload) -> float:
    started = time.perf_counter()
    for _ in range(workload.steps_per_epoch):
        trainer.train_step()
    if workload.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _activities(workload: Workload) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if workload.device == "cuda" else [])]


def seconds_by_part(events: Any, workload: Workload) -> Counter[str]:
    """Self time of all operators, by the part that :func:`part_of` gives them."""
    seconds: Counter[str] = Counter()
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue  # a kernel: its time is that of the operator which launched it
        micros = event.self_device_time_total if workload.device == "cuda" else event.self_cpu_time_total
        seconds[part_of(event.key, event.input_shapes, workload)] += micros / 1e6
    return seconds


def part_of(name: str, shapes: Sequence[Sequence[int]], workload: Workload) -> str:
    """The part of the model that an operator works for, by its name and its inputs' shapes.

    Example:
        >>> part_of("aten::mm", [[900, 256], [256, 768]], Workload())
        'MLP'
        >>> part_of("aten::mul", [[1, 900, 768], [1, 900, 768]], Workload())
        'MLP, elementwise'
        >>> part_of("aten::mm", [[900, 256], [256, 8]], Workload())
        'LoRA'
    """
    if any(word in name.lower() for word in OPTIMISER):
        return "optimiser"
    if any(word in name.lower() for word in ATTENTION):
        return "attention"
    sizes = {size for shape in shapes if shape for size in shape}
    if workload.vocabulary in sizes:
        return "head" if name in PRODUCTS else "head, elementwise"
    if name in PRODUCTS:
        if workload.lora_r in sizes:
            return "LoRA"
        return "MLP" if workload.intermediate in sizes else "projections"
    if workload.intermediate in sizes:
        return "MLP, elementwise"
    if any(len(shape) == 4 for shape in shapes if shape):
        return "rotary embedding and norms of heads"
    return "norms, residuals, other"


def _print(workload: Workload, rows: Sequence[Row], rates: Rates, step_s: float, measured: dict[str, float]) -> None:
    needed = operations(workload, rows)
    moved = moved_bytes(workload, rows)
    floor = {part: needed[part] / rates.by_part[part] for part in PARTS}
    total = sum(needed.values())
    print(
        f"\nan optimiser step needs {total:.3g} operations and moves {moved:.3g} bytes\n"
        f"seconds: {sum(floor.values()):.3f} at the rates of its shapes, {total / rates.best:.3f} at the rate of large "
        f"matrices ({rates.best:.3g} a second), {moved / rates.copied_bytes:.3f} at the rate of a copy "
        f"({rates.copied_bytes:.3g} bytes a second); measured: {step_s:.3f}"
    )
    print(f"\n{'part':36}{'operations':>11}{'rate there':>11}{'floor s':>9}{'measured s':>11}{'gap s':>8}")
    for part in PARTS:
        print(
            f"{part:36}{needed[part]:>11.3g}{rates.by_part[part]:>11.3g}{floor[part]:>9.3f}"
            f"{measured.get(part, 0.0):>11.3f}{measured.get(part, 0.0) - floor[part]:>8.3f}"
        )
    for part in sorted(set(measured) - set(PARTS), key=lambda part: -measured[part]):
        print(f"{part:36}{'':>11}{'':>11}{'':>9}{measured[part]:>11.3f}{measured[part]:>8.3f}")
    print(f"{'all that the profiler saw':56}{sum(floor.values()):>11.3f}{sum(measured.values()):>11.3f}")
