"""TRL's ``KTOTrainer`` at its best settings beside our trainer, by turns on one card."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import torch

from benchmarks.gpu.findings import Findings, Setting
from benchmarks.gpu.shapes import large
from benchmarks.train_vs_trl import our_contender, trl_contender
from benchmarks.train_vs_trl.measurement import Run, Stopwatch
from benchmarks.train_vs_trl.workload import AGREEMENT, Workload, build_model, build_rows
from mralign_core.errors import ConfigError

MOST_APART = 1e-4
"""Of our losses from TRL's, in float32 on one batch; on a CPU they are 5e-6 apart."""
CONTENDERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ours": (our_contender, our_contender.EXACT),
    "trl": (trl_contender, trl_contender.BEST),
}


def beside_trl(setting: Setting, findings: Findings) -> None:
    """The same losses first, then the times."""
    with findings.attempt("losses"):
        _compare_losses(setting, findings)
    workload = large(setting, findings, rows=16)
    runs: dict[str, Run] = {}
    for name in CONTENDERS:
        with findings.attempt(name):
            try:
                runs[name] = _job(name, workload)
            except (torch.OutOfMemoryError, ConfigError) as error:
                findings.note(f"{name} does not fit: {str(error).splitlines()[0]}")
                continue
            for field in ("step_s", "job_s", "peak_mb"):
                findings.value(f"{name}_{field}", getattr(runs[name], field))
    if len(runs) == len(CONTENDERS):
        _ratios(runs, findings)


def _compare_losses(setting: Setting, findings: Findings) -> None:
    """On one batch of two rows there is one order of rows and one KL partner, so all losses must agree."""
    layers = 1 if setting.is_stand_in else AGREEMENT.layers
    batch = dataclasses.replace(AGREEMENT, device=setting.device, layers=layers)
    ours, theirs = (_job(name, batch).losses for name in CONTENDERS)
    apart = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    findings.value("losses_apart", apart)
    findings.check("losses in float32, from TRL's", apart, MOST_APART)
    findings.check("nothing was learnt", float(ours[-1] >= ours[0]), 0)
    findings.say(f"losses within {apart:.1e} of TRL's")


def _job(name: str, workload: Workload) -> Run:
    """A contender's job, with nothing of the one before on the card."""
    gc.collect()
    if workload.device == "cuda":
        torch.cuda.empty_cache()
    module, settings = CONTENDERS[name]
    run: Run = module.run(workload, build_model(workload), build_rows(workload), Stopwatch(workload), settings)
    return run


def _ratios(runs: dict[str, Run], findings: Findings) -> None:
    ours, theirs = runs["ours"], runs["trl"]
    findings.value("step_ratio", theirs.step_s / ours.step_s)
    findings.value("job_ratio", theirs.job_s / ours.job_s)
    findings.value("peak_ratio", theirs.peak_mb / ours.peak_mb)
    times = f"{theirs.step_s / ours.step_s:.2f} × our step, {theirs.job_s / ours.job_s:.2f} × our job"
    findings.say(
        f"TRL's best takes {times}, {theirs.peak_mb / ours.peak_mb:.2f} × our memory; {findings.record['line']}"
    )
