"""One part, in a process of its own: ``python -m benchmarks.gpu.child PART --device cuda --out FILE``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path

from benchmarks.gpu.findings import Findings, NotShownHere, Setting
from benchmarks.gpu.parts import NAMES, PARTS
from benchmarks.gpu.wheels import GIVEN

LOOK_EVERY_S = 1.0


def main() -> int:
    """Run the part; what it found, and how it ended, is in the file."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.child")
    parser.add_argument("part", choices=NAMES)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    run(options.part, Setting(options.device, json.loads(sys.stdin.read() or "{}")), Findings(options.out))
    return 0


def run(name: str, setting: Setting, findings: Findings) -> None:
    """Call a part's function, whatever comes of it."""
    part = next(part for part in PARTS if part.name == name)
    module, _, function = part.function.partition(":")
    error: BaseException | None = None
    try:
        getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(setting, findings)
    except ModuleNotFoundError as absent:
        package = (absent.name or "").partition(".")[0]
        is_needed = package in ("", "benchmarks", "mralign_core", *GIVEN)
        error = absent if is_needed else NotShownHere(f"package {package} is not installed (docs/gpu.md)")
    except (Exception, SystemExit) as failure:
        error = failure
    findings.end(error)


def _end_with(parent: int) -> None:
    """End when the process that started this one has: nobody would stop a part that hangs."""
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
