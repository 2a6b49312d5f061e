"""Speed and memory of training: TRL's ``KTOTrainer``, others' and ours, on the same work in one run.

Random weights, random rows, all weights of tokens 1 (where the objectives are the same). A contender's job runs in a
process of its own, so that its peak memory is its own, and the contenders take turns, so that drift hits all. A job is
what a user waits for: from rows in memory (text for TRL, which tokenises; token ids for us) to a trained adapter in
memory, with every preparatory pass. Optimiser steps are timed in all epochs but the first. Tokens are those of prompts
and completions, each row once an epoch; padding, KL pairs and reference passes count for nobody.

Contenders:

* ``trl``: KTOTrainer as it comes (1.16), but for ``max_length``, which would cut rows.
* ``trl-best``: with its best settings, ``precompute_ref_log_probs`` and no gradient checkpointing.
* ``trl-sorted``: the same, and the rows sorted by length beforehand, which no setting does. Not among the defaults.
* ``trl-liger``: as ``trl-best``, with Liger's fused KTO loss. Left out where package liger-kernel is not there.
* ``llama-factory``: LLaMA-Factory's KTO with its best settings. It takes other versions of TRL, transformers and PEFT
  than ours, so it is left out without ``--llama-factory PYTHON``, the interpreter of an environment that has it.
* ``ours``: the exact objective.
* ``ours-average``: z0 as a moving average, renewed every four steps.

Run ``python -m benchmarks.train_vs_trl`` from the repository; ``--gpu`` for the shape of Qwen3-8B on a CUDA device;
``--profile`` for the floor of our step and the gap to it by part.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.train_vs_trl.floor import measure_rates, operations
from benchmarks.train_vs_trl.measurement import Run, Stopwatch
from benchmarks.train_vs_trl.tables import print_projection, print_table
from benchmarks.train_vs_trl.workload import AGREEMENT, QUICK, QWEN3_8B, Workload, build_model, build_rows


class Contender(NamedTuple):
    """Where a contender's ``run`` and settings are; imported in its own process only."""

    module: str
    settings: str
    sorted_rows: bool = False


LIGER, LLAMA_FACTORY = "trl-liger", "llama-factory"
CONTENDERS = {
    "trl": Contender("trl_contender", "AS_IT_COMES"),
    "trl-best": Contender("trl_contender", "BEST"),
    "trl-sorted": Contender("trl_contender", "BEST", sorted_rows=True),
    LIGER: Contender("liger_contender", "PLAIN"),
    LLAMA_FACTORY: Contender("llama_factory_contender", "BEST"),
    "ours": Contender("our_contender", "EXACT"),
    "ours-average": Contender("our_contender", "MOVING_AVERAGE"),
}
DEFAULT = ("trl", "trl-best", LIGER, LLAMA_FACTORY, "ours", "ours-average")
AGREEING = ("trl", LIGER, LLAMA_FACTORY)
"""Whose losses on one batch are compared with ours."""
NO_GPU_EXIT = 2
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "LLAMAFACTORY_VERBOSITY": "ERROR",
}
"""Environment of a job: no look at a hub, no progress bars, no log."""


def main() -> int:
    """Measure and print; the exit code."""
    parser = _parser()
    options = parser.parse_args()
    if options.job:
        print(json.dumps(_measured(options.job, Workload.from_json(options.workload))._asdict()))
        return 0
    try:
        workload = _workload(options)
        contenders = taking_part(options.contenders, options.llama_factory)
    except ValueError as error:
        parser.error(str(error))
    if workload.device == "cuda" and not torch.cuda.is_available():
        print("--gpu needs a CUDA device, and torch finds none here: nothing was measured", file=sys.stderr)
        return NO_GPU_EXIT
    print(f"{workload}\n{_machine(workload)}\n")
    if options.profile:
        _limit_threads(workload)
        importlib.import_module("benchmarks.train_vs_trl.profiling").print_profile(workload)
        return 0
    _print_agreement(workload.device, contenders)
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for number in range(options.rounds):
        for name, python in contenders.items():
            runs[name].append(_in_own_process(name, workload, python))
            print(f"round {number + 1}, {name}: {runs[name][-1].job_s:.1f} s", file=sys.stderr)
    print_table(runs, workload)
    if options.gpu and "ours" in runs:
        needed = operations(workload, build_rows(workload))
        print_projection(runs["ours"], workload, sum(needed.values()), measure_rates(workload).best)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.train_vs_trl", description=(__doc__ or "").partition("\n")[0])
    preset = parser.add_mutually_exclusive_group()
    preset.add_argument("--quick", action="store_true", help="a minute: fewer and shorter rows, one round")
    preset.add_argument("--gpu", action="store_true", help="Qwen3-8B's shape in bfloat16 on a CUDA device, one round")
    parser.add_argument("--profile", action="store_true", help="the floor of our step and where its time goes")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=DEFAULT, help="who takes part")
    parser.add_argument(
        "--llama-factory",
        metavar="PYTHON",
        help="interpreter of an environment with llamafactory, which then takes part",
    )
    parser.add_argument("--rounds", type=int, help="jobs of each contender, by turns (default: 3; 1 with a preset)")
    for name in ("rows", "epochs", "batch", "accumulation", "layers", "threads"):
        parser.add_argument(f"--{name}", type=int, help=f"{name} in place of the preset's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="precision of the base model")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count CPU seconds: for a machine that is busy otherwise"
    )
    parser.add_argument("--job", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--workload", help=argparse.SUPPRESS)
    return parser


def _workload(options: argparse.Namespace) -> Workload:
    preset = QWEN3_8B if options.gpu else QUICK if options.quick else Workload()
    options.rounds = options.rounds or (1 if options.gpu or options.quick else 3)
    names = ("rows", "epochs", "batch", "accumulation", "layers", "threads", "dtype", "cpu_time")
    return dataclasses.replace(preset, **{name: value for name in names if (value := getattr(options, name))})


def _machine(workload: Workload) -> str:
    if workload.device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, load {load:.1f}, {workload.threads} thread(s), torch {torch.__version__}"


def taking_part(names: Sequence[str], llama_factory: str | None) -> dict[str, str]:
    """The contenders that can take part, each with the interpreter of its jobs; why the others can't is printed.

    Raises:
        ValueError: none can, or there is no such interpreter.
    """
    if llama_factory and not shutil.which(llama_factory):
        raise ValueError(f"--llama-factory {llama_factory}: no such program; name a Python interpreter")
    missing = {}
    if importlib.util.find_spec("liger_kernel") is None:
        missing[LIGER] = "no package liger_kernel here: pip install --no-deps liger-kernel==0.8.5"
    if not llama_factory:
        missing[LLAMA_FACTORY] = "--llama-factory PYTHON was not given"
    for name in (name for name in names if name in missing):
        print(f"{name} is left out: {missing[name]}", file=sys.stderr)
    taking_part = {name: sys.executable for name in names if name not in missing}
    if not taking_part:
        raise ValueError("--contenders: all of them are left out")
    if llama_factory and LLAMA_FACTORY in taking_part:
        taking_part[LLAMA_FACTORY] = llama_factory
    return taking_part


def _in_own_process(name: str, workload: Workload, python: str = sys.executable) -> Run:
    command = [python, "-m", "benchmarks.train_vs_trl", "--job", name, "--workload", workload.to_json()]
    environment = {**os.environ, **QUIET, "OMP_NUM_THREADS": str(workload.threads)}
    environment.setdefault("CUDA_VISIBLE_DEVICES", "0")  # KTOTrainer refuses to see several
    reply = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if reply.returncode:
        raise SystemExit(f"the job of {name} ended with exit code {reply.returncode}")
    return Run(**json.loads(reply.stdout.splitlines()[-1]))


def _measured(name: str, workload: Workload) -> Run:
    """The job of a contender, in this process."""
    contender = CONTENDERS[name]
    _limit_threads(workload)
    warnings.simplefilter("ignore", FutureWarning)
    module: Any = importlib.import_module(f"benchmarks.train_vs_trl.{contender.module}")
    watch = Stopwatch(workload)
    rows = build_rows(workload)
    if contender.sorted_rows:
        rows.sort(key=lambda row: len(row.prompt_ids) + len(row.completion_ids))
    run: Run = module.run(workload, build_model(workload), rows, watch, getattr(module, contender.settings))
    return run


def _limit_threads(workload: Workload) -> None:
    if workload.device == "cpu":
        torch.set_num_threads(workload.threads)


def _print_agreement(device: str, contenders: Mapping[str, str]) -> None:
    """Two rows in a batch of two: there is one order of rows and one KL partner, so all losses must agree."""
    workload = dataclasses.replace(AGREEMENT, device=device)
    peers = {"trl": sys.executable} | {name: contenders[name] for name in AGREEING if name in contenders}
    ours = _in_own_process("ours", workload).losses
    worst = {}
    for name, python in peers.items():
        theirs = _in_own_process(name, workload, python).losses
        worst[name] = max(abs(each - other) for each, other in zip(theirs, ours, strict=True))
    print(
        f"the same objective: losses of {len(ours)} steps on one batch in float32, ours from {ours[0]:.4f} to "
        f"{ours[-1]:.4f}; largest difference from ours: "
        + ", ".join(f"{name} {difference:.1e}" for name, difference in worst.items())
    )


if __name__ == "__main__":
    sys.exit(main())
