"""What is printed: medians over the rounds, ratios, and the projection of the paper's job."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.train_vs_trl.measurement import Run
from benchmarks.train_vs_trl.workload import Workload, build_rows, num_tokens

PEERS = ("trl", "trl-best")
"""Whose ratios are printed."""
PAPER_ROWS, PAPER_EPOCHS = 6_973, 3
"""The paper's training job."""


def median(runs: Sequence[Run], field: str) -> float:
    """Median of a field over the rounds."""
    return statistics.median(getattr(run, field) for run in runs)


def own_mb(runs: Sequence[Run]) -> float:
    """Median of the peak memory over what the imports took."""
    return statistics.median(run.peak_mb - run.imports_mb for run in runs)


def print_table(runs: Mapping[str, Sequence[Run]], workload: Workload) -> None:
    """Steps, whole jobs and memory of all contenders, and how many times as fast as TRL each is."""
    step_tokens = num_tokens(build_rows(workload)) / workload.steps_per_epoch
    print(f"\n{workload.epochs * workload.steps_per_epoch} steps of {step_tokens:,.0f} tokens; medians of the rounds")
    peers = [name for name in PEERS if name in runs]
    ratios = "".join(f"{'× ' + name:>11}" for name in peers)
    print(f"{'':14}{'step s':>8}{'tokens/s':>10}{ratios}{'prepare s':>11}{'job s':>8}{ratios}", end="")
    print(f"{'MB':>9}{'imports':>9}{'loss':>8}")
    for name, each in runs.items():
        step_s, job_s = median(each, "step_s"), median(each, "job_s")
        faster_steps = "".join(f"{median(runs[peer], 'step_s') / step_s:>11.2f}" for peer in peers)
        faster_jobs = "".join(f"{median(runs[peer], 'job_s') / job_s:>11.2f}" for peer in peers)
        last_epoch = each[-1].losses[-workload.steps_per_epoch :]
        print(
            f"{name:14}{step_s:>8.3f}{step_tokens / step_s:>10,.0f}{faster_steps}{median(each, 'prepare_s'):>11.2f}"
            f"{job_s:>8.1f}{faster_jobs}{own_mb(each):>9,.0f}{median(each, 'imports_mb'):>9,.0f}"
            f"{statistics.mean(last_epoch):>8.4f}"
        )
    print("MB: peak over what the imports took; loss: mean of the last epoch")
    _print_spread(runs)


def _print_spread(runs: Mapping[str, Sequence[Run]]) -> None:
    """Ratios of the rounds one by one: what the medians hide."""
    if "ours" not in runs:
        return
    for peer in (name for name in runs if not name.startswith("ours")):
        pairs = zip(runs[peer], runs["ours"], strict=True)
        found = ", ".join(f"{theirs.job_s / ours.job_s:.2f}" for theirs, ours in pairs)
        print(f"whole job, {peer} over ours, round by round: {found}")


def projected_minutes(runs: Sequence[Run], workload: Workload) -> float:
    """Minutes of the paper's job at the measured seconds a row.

    Example:
        >>> run = Run(prepare_s=0.5, job_s=9.0, step_s=2.0, imports_mb=0.0, peak_mb=0.0, losses=[])
        >>> round(projected_minutes([run], Workload(rows=4, batch=4)), 1)  # 6,973 × (0.5 / 4 + 3 × 2 / 4) / 60
        188.9
    """
    prepare_s = median(runs, "prepare_s") / workload.rows
    row_s = median(runs, "step_s") / workload.rows_per_step
    return PAPER_ROWS * (prepare_s + PAPER_EPOCHS * row_s) / 60


def print_projection(runs: Sequence[Run], workload: Workload, step_operations: float, best_rate: float) -> None:
    """Share of the device's matrix rate that our steps reach, and minutes for the paper's job."""
    reached = step_operations / median(runs, "step_s")
    print(
        f"\na step's floor is {step_operations:.3g} operations: {reached:.3g} a second, {reached / best_rate:.0%} of "
        f"the {best_rate:.3g} that large matrices reach here\n"
        f"{PAPER_ROWS:,} traces, {PAPER_EPOCHS} epochs, reference pass included: "
        f"{projected_minutes(runs, workload):.0f} minutes"
    )
