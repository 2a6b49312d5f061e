"""What the card is, and how fast it multiplies and copies."""

from __future__ import annotations

import importlib.metadata
import subprocess

import torch

from benchmarks.gpu.findings import Findings, Setting
from benchmarks.gpu.shapes import TINY
from benchmarks.train_vs_trl.floor import measure_rates
from benchmarks.train_vs_trl.workload import QWEN3_8B

PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "numpy", "pandas", "bitsandbytes", "vllm")


def look(setting: Setting, findings: Findings) -> None:
    """Name the card and the versions, and measure its rates."""
    for package in PACKAGES:
        findings.value(package, _version(package))
    if setting.device == "cuda":
        _card(findings)
    workload = TINY if setting.is_stand_in else QWEN3_8B
    rates = measure_rates(workload)
    findings.value("matrix_tflops", rates.best / 1e12)
    findings.value("copy_gb_per_s", rates.copied_bytes / 1e9)
    for part, rate in rates.by_part.items():
        findings.value(f"{part}_tflops", rate / 1e12)
    findings.say(
        f"{findings.record['values'].get('name', 'CPU')}: {workload.dtype} {rates.best / 1e12:.3g} TFLOP/s, "
        f"copies {rates.copied_bytes / 1e9:,.0f} GB/s"
    )


def _card(findings: Findings) -> None:
    card = torch.cuda.get_device_properties(0)
    findings.value("name", card.name)
    findings.value("cards", torch.cuda.device_count())
    findings.value("memory_gb", card.total_memory / 1e9)
    findings.value("capability", f"{card.major}.{card.minor}")
    findings.value("cuda", str(torch.version.cuda))
    findings.value("driver", _driver())
    findings.say(card.name)


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
