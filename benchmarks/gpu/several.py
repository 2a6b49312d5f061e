"""Training over several cards, each with a copy of the model (DDP) or a share of it (FSDP2), beside one process."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.gpu.findings import Findings, NotShownHere, Setting
from benchmarks.gpu.models import save_model
from benchmarks.gpu.shapes import small
from benchmarks.train_vs_trl import our_contender
from benchmarks.train_vs_trl.workload import SEED, Row, Workload, build_rows
from mralign_core.config import ModelConfig
from mralign_core.processes.launch import launch_adapter
from mralign_core.training.fit import train_adapter
from mralign_core.training.job import TrainingJob

ROOT = Path(__file__).resolve().parents[2]
FILES = {"ddp": "ddp-4gpu.yaml", "fsdp2": "fsdp2-4gpu.yaml"}
MOST_CARDS = 4
STAND_IN_PROCESSES = 2
ROUNDING = 1e-3
"""Of the adapter, relative; sums over processes are made in another order."""


def compare(setting: Setting, findings: Findings) -> None:
    """Train in one process, then in several, and compare the adapters.

    Raises:
        NotShownHere: there is one card.
    """
    number = STAND_IN_PROCESSES if setting.is_stand_in else min(torch.cuda.device_count(), MOST_CARDS)
    if number < 2:
        raise NotShownHere("this host has one card")
    findings.value("processes", number)
    workload = small(setting)
    with tempfile.TemporaryDirectory(prefix="mralign-gpu-") as name:
        folder = Path(name)
        save_model(workload, folder / "model")
        job = _job(workload, folder)
        train_adapter(job)
        told: list[str] = []
        for kind in FILES:
            with findings.attempt(kind):
                _compare_one(kind, job, number, setting, told, findings)


def _compare_one(
    kind: str, job: TrainingJob, number: int, setting: Setting, told: list[str], findings: Findings
) -> None:
    directory = job.directory.parent / kind
    config = _accelerate_config(directory.with_suffix(".yaml"), FILES[kind], number, setting)
    started = time.perf_counter()
    section = job.train.model_copy(update={"accelerate_config": str(config)})
    launch_adapter(job.model_copy(update={"train": section, "directory": directory}))
    findings.value(f"{kind}_s", time.perf_counter() - started)
    apart = _apart(directory, job.directory)
    findings.check(f"adapter of {kind} in {number} processes, from that of one", apart, ROUNDING)
    told.append(f"{kind} {apart:.1e}")
    findings.say(f"{number} processes; relative difference of the adapter from one's: {', '.join(told)}")


def _job(workload: Workload, folder: Path) -> TrainingJob:
    rows = build_rows(workload)
    section = our_contender.train_section(workload, rows, {"report_to": "none", "checkpoint_minutes": 0.0})
    device: Any = workload.device
    return TrainingJob(
        model_path=str(folder / "model"),
        model=ModelConfig(path=str(folder / "model"), dtype="float32", device=device),
        train=section,
        candidates=_candidates(rows),
        variant="kto",
        seed=SEED,
        directory=folder / "one",
        facts={},
    )


def _candidates(rows: list[Row]) -> pd.DataFrame:
    """Whole rows of table ``candidates``, which travel to other processes as a file."""
    frame = our_contender.as_candidates(rows)
    segments = [[{"start": 0, "end": 1, "token_start": 0, "token_end": 1}] for _ in rows]
    texts = {"question": "?", "stratum": "", "prompt": "?", "completion": "!", "answer": "!"}
    more: dict[str, Any] = {"answers": [["!"] for _ in rows], "segments": segments, "draw": 0, "reasoning_tokens": 1}
    return frame.assign(**texts, **more).astype(object)


def _accelerate_config(path: Path, file: str, number: int, setting: Setting) -> Path:
    """The file of ``deployments/accelerate`` with as many processes as there are cards."""
    settings = yaml.safe_load((ROOT / "deployments" / "accelerate" / file).read_text(encoding="utf-8"))
    settings |= {"num_processes": number} | ({"use_cpu": True} if setting.is_stand_in else {})
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def _apart(found: Path, expected: Path) -> float:
    """‖found − expected‖ / ‖expected‖ over all weights of two adapters."""
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (found, expected))
    squares = sum(float((ours[name].double() - theirs[name]).square().sum()) for name in theirs)
    return float((squares / sum(float(each.double().square().sum()) for each in theirs.values())) ** 0.5)
