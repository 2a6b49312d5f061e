"""The same short training in each precision: the CPU in float32, and the card in float32, bfloat16 and 4 bits."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import Findings, Setting
from benchmarks.gpu.models import save_model
from benchmarks.gpu.shapes import small
from benchmarks.train_vs_trl import our_contender
from benchmarks.train_vs_trl.workload import Workload, build_rows
from mralign_core.errors import ConfigError
from mralign_core.models.load import load_model_and_tokenizer

MOST_APART = {"float32": 1e-3, "bfloat16": 0.02, "4bit": 0.1}
"""Of a step's loss from the CPU's in float32. The losses of the first step are the same in any precision."""
LEAST_FALL = 1e-3
"""Of the CPU's loss: with less, equal losses would show nothing."""
LEAST_LEARNT = 0.25
"""Share of what the CPU's losses fall by that the others' must fall by."""


def compare(setting: Setting, findings: Findings) -> None:
    """Train in all of them and compare the losses, step by step."""
    workload = small(setting)
    with tempfile.TemporaryDirectory(prefix="mralign-gpu-") as folder:
        save_model(workload, Path(folder))
        expected = _losses(workload, folder, "float32", "cpu")
        findings.value("losses_cpu_float32", expected)
        findings.check("nothing was learnt on the CPU", float(expected[0] - expected[-1] < LEAST_FALL), 0)
        told: list[str] = []
        for name in MOST_APART:
            with findings.attempt(name):
                _compare_one(name, workload, folder, setting, expected, told, findings)


def _compare_one(
    name: str,
    workload: Workload,
    folder: str,
    setting: Setting,
    expected: list[float],
    told: list[str],
    findings: Findings,
) -> None:
    try:
        found = _losses(workload, folder, name, setting.device)
    except ConfigError as error:
        if name != "4bit" or "bitsandbytes" not in str(error):
            raise
        findings.note(f"4 bits were not tried: {error}")
        return
    findings.value(f"losses_{name}", found)
    apart = max(abs(one - other) for one, other in zip(found, expected, strict=True))
    findings.check(f"loss in {name}, from the CPU's in float32", apart, MOST_APART[name])
    missed = LEAST_LEARNT * (expected[0] - expected[-1]) - (found[0] - found[-1])
    findings.check(f"too little learnt in {name}", missed, 0)
    told.append(f"{name} {apart:.1e}")
    findings.say(f"largest difference of a loss from the CPU's in float32: {', '.join(told)}")


def _losses(workload: Workload, folder: str, precision: str, device: str) -> list[float]:
    """Loss of each step, of a model that is loaded from its files as training loads it."""
    is_4bit = precision == "4bit"
    dtype = "bfloat16" if is_4bit else precision
    model, _ = load_model_and_tokenizer(folder, dtype, device, load_in_4bit=is_4bit)
    rows = build_rows(workload)
    section = our_contender.train_section(workload, rows, our_contender.EXACT)
    trainer = our_contender.build_trainer(model, our_contender.as_candidates(rows), section)
    metrics: list[dict[str, Any]] = trainer.run()
    return [round(row["loss"], 5) for row in metrics]
