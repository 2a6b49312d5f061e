"""A training step in the shape of Qwen3-8B, with the config's own size of passes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from benchmarks.gpu.findings import Findings, Setting
from benchmarks.gpu.shapes import large
from benchmarks.train_vs_trl import our_contender
from benchmarks.train_vs_trl.floor import measure_rates, operations
from benchmarks.train_vs_trl.measurement import Run, Stopwatch
from benchmarks.train_vs_trl.tables import PAPER_EPOCHS, PAPER_ROWS
from benchmarks.train_vs_trl.workload import QWEN3_8B, Workload, build_model, build_rows, num_tokens

BATCH, ACCUMULATION = 8, 2
"""Passes of about train.tokens_per_forward, the default; 16 rows a step, as a quarter of the paper's 64."""
REFERENCE_STEPS, REFERENCE_STEPS_RECOMPUTED = 2 / 3, 2 / 4
"""The reference of a row over a step of it: two passes forward, where a step has two forward and one backward, which
with frozen weights costs as much as one forward; and one forward more where activations are recomputed."""
MOST_OF_ESTIMATE = 1.05
"""The peak may be above the estimate by as much: ``USABLE_SHARE`` leaves more."""


def time_steps(setting: Setting, findings: Findings) -> None:
    """Train, and say what a step took of the card's rate, what the job took of its memory, and the paper's minutes."""
    workload = large(setting, findings, rows=16, epochs=3, batch=BATCH, accumulation=ACCUMULATION)
    rows = build_rows(workload)
    section = our_contender.train_section(workload, rows, our_contender.EXACT)
    section = section.model_copy(update={"gradient_checkpointing": "auto"})
    watch = Stopwatch(workload)
    model = build_model(workload)
    watch.start()
    trainer, estimate = our_contender.prepare(model, our_contender.as_candidates(rows), section)
    watch.prepared()
    findings.value("layers", workload.layers)
    findings.value("prepare_s", watch.prepare_s)
    findings.value("activations_recomputed", trainer.pass_size.recompute)
    trainer.run(on_step=lambda _: watch.step_ended())
    run = watch.finish([row["loss"] for row in trainer.metrics])
    _times(workload, run, setting.earlier, findings)
    if setting.device == "cuda":
        findings.value("estimate_mb", estimate.total / 1e6)
        findings.value("peak_mb", run.peak_mb)
        findings.value("peak_over_estimate", run.peak_mb * 1e6 / estimate.total)
        findings.check("peak memory over the estimate", run.peak_mb * 1e6 / estimate.total, MOST_OF_ESTIMATE)
    findings.value("estimated_s_over_measured", estimate.seconds / run.job_s)
    findings.value("losses", [round(loss, 4) for loss in run.losses])
    findings.check("losses that are not finite", float(sum(not math.isfinite(loss) for loss in run.losses)), 0)
    _say(findings, setting)


def _times(workload: Workload, run: Run, earlier: Mapping[str, Any], findings: Findings) -> None:
    rows = build_rows(workload)
    needed = sum(operations(workload, rows).values())
    findings.value("step_s", run.step_s)
    findings.value("tokens_per_s", num_tokens(rows) / workload.steps_per_epoch / run.step_s)
    findings.value("step_tflop", needed / 1e12)
    findings.value("reached_tflops", needed / run.step_s / 1e12)
    is_recomputed = findings.record["values"]["activations_recomputed"]
    findings.value("projected_minutes", projected_minutes(run, workload, is_recomputed=is_recomputed))
    best_tflops = earlier.get("card", {}).get("matrix_tflops") or measure_rates(workload).best / 1e12
    findings.value("matrix_tflops", best_tflops)
    findings.value("matrix_share_percent", 100 * needed / run.step_s / 1e12 / best_tflops)


def projected_minutes(run: Run, workload: Workload, *, is_recomputed: bool = False) -> float:
    """Minutes of the paper's job on one card; with fewer layers measured, at the same operations a second.

    A job of a few rows spends most of its preparation on what is done once, so the reference is counted by its
    operations instead.

    Example:
        >>> run = Run(prepare_s=1.0, job_s=9.0, step_s=2.0, imports_mb=0.0, peak_mb=0.0, losses=[])
        >>> whole = dataclasses.replace(QWEN3_8B, rows=16)
        >>> round(projected_minutes(run, whole))  # 6,973 × 2 / 16 × (3 + 2 / 3) / 60
        53
        >>> round(projected_minutes(run, dataclasses.replace(whole, layers=18)))  # half the layers, all of the head
        100
        >>> round(projected_minutes(run, whole, is_recomputed=True))  # × (3 + 2 / 4)
        51
    """
    whole = dataclasses.replace(workload, layers=QWEN3_8B.layers) if workload.width == QWEN3_8B.width else workload
    rows = build_rows(workload)
    more = sum(operations(whole, rows).values()) / sum(operations(workload, rows).values())
    row_s = more * run.step_s / workload.rows_per_step
    reference = REFERENCE_STEPS_RECOMPUTED if is_recomputed else REFERENCE_STEPS
    return PAPER_ROWS * row_s * (PAPER_EPOCHS + reference) / 60


def _say(findings: Findings, setting: Setting) -> None:
    values = findings.record["values"]
    speed = f"step {values['step_s']:.3g} s, {values['tokens_per_s']:,.0f} tokens/s"
    share = f"{values['matrix_share_percent']:.0f} % of the matrix rate"
    job = f"{PAPER_ROWS:,} rows × {PAPER_EPOCHS} epochs in {values['projected_minutes']:.0f} minutes"
    findings.say(f"{speed}, {share}{'' if setting.is_stand_in else f'; {job}'}")
