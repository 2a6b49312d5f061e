"""What only a CUDA card can show, in ten minutes: ``make gpu``, or ``python3 -m benchmarks.gpu``.

Needs a Python with torch, transformers, peft and accelerate; the few small packages that are missing beside them go
into a folder of their own. Each part runs in a process of its own with a time limit of its own. After each part
``index.html`` and ``gpu.json`` are whole. Without a card all parts run on the CPU in small shapes, which shows that
they work and measures nothing. The exit code is 0 where no part failed, 1 where one did, 2 where none could be run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import wheels
from benchmarks.gpu.findings import write_whole
from benchmarks.gpu.page import render
from benchmarks.gpu.parts import PARTS, Part, chosen
from benchmarks.gpu.runner import FAILED, Runner, child_command, interrupt_on_terminate

DEFAULT_LIMIT_S = 600.0
STAND_IN_PATIENCE = 3
"""Times a part's limit: a card has one job at a time, and a CPU may be busy."""
NOTHING_RUN = 2
LOOK = """
import importlib.util, json, sys
assert sys.version_info >= (3, 11)
import torch
cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
lacks = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
print(json.dumps({"python": sys.version.split()[0], "torch": torch.__version__, "cards": cards, "lacks": lacks}))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        parts = chosen(options.parts)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        print("\n".join(f"{part.name:10} up to {part.limit_s:.0f} s  {part.shows}" for part in parts))
        return 0
    python, host = find_python([options.python] if options.python else [sys.executable, ".venv/bin/python"])
    if host is None or host["lacks"]:
        what = (
            f"{python} lacks {', '.join(host['lacks'])}" if host else f"no Python 3.11 or later with torch at {python}"
        )
        ways = f"pip install {' '.join(wheels.GIVEN)}, or name another by make gpu PYTHON=…"
        print(f"{what}: {ways}", file=sys.stderr)
        return NOTHING_RUN
    interrupt_on_terminate()
    try:
        return _run(parts, python, host, options)
    except KeyboardInterrupt:
        print(f"\ninterrupted; what was found is in {options.folder}")
        return 1


def _run(parts: Sequence[Part], python: str, host: dict[str, Any], options: argparse.Namespace) -> int:
    """Run parts by a Python, on its card if it has one; the exit code."""
    device = "cuda" if host["cards"] and not options.cpu else "cpu"
    if device == "cpu":
        parts = [part._replace(limit_s=STAND_IN_PATIENCE * part.limit_s) for part in parts]
    # dill, by which datasets knows a function again, takes modules for installed ones by this name of their folder.
    site = (options.folder / f"python{host['python'].rpartition('.')[0]}" / "site-packages").resolve()
    problem = wheels.install(python, site, options.wheels)
    runner = Runner(
        options.folder,
        {"started": time.strftime("%Y-%m-%d %H:%M:%S %z"), "device": device, "host": host, "problem": problem},
        child_command(python, device),
        limit_s=options.limit_s,
        environment={"PYTHONPATH": _path(str(wheels.ROOT), os.environ.get("PYTHONPATH"), str(site))},
        on_change=lambda record: write_whole(options.folder / "index.html", render(record)),
    )
    print(_greeting(device, host, options.cpu))
    if problem:
        print(f"warning: {problem}")
    record = runner.run(parts)
    print(f"the page: {options.folder / 'index.html'}; the figures: {options.folder / 'gpu.json'}")
    return int(any(part["status"] in FAILED for part in record["parts"].values()))


def find_python(candidates: Sequence[str]) -> tuple[str, dict[str, Any] | None]:
    """The best of some Pythons, and what it has: all that is needed and a card, all that is needed, or torch at least.

    Returns:
        Its name; all names, and None, where none has torch.
    """
    found = [(python, host) for python in candidates if (host := _host(python))]
    found.sort(key=lambda each: (len(each[1]["lacks"]) > 0, each[1]["cards"] == 0))
    nothing: tuple[str, None] = (", ".join(candidates), None)
    return next(iter(found), nothing)


def _host(python: str) -> dict[str, Any] | None:
    try:
        reply = subprocess.run([python, "-c", LOOK, *wheels.GIVEN], capture_output=True, text=True, timeout=120)
        return dict(json.loads(reply.stdout.splitlines()[-1]))
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None


def _path(*folders: str | None) -> str:
    return os.pathsep.join(filter(None, folders))


def _greeting(device: str, host: dict[str, Any], is_asked: bool) -> str:
    if device == "cuda":
        return f"{host['cards']} CUDA device(s), torch {host['torch']}, Python {host['python']}"
    why = "--cpu" if is_asked else "torch finds no CUDA device here"
    return f"{why}: every part runs in a small shape on the CPU, to show that it works; no figure means anything"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", default="", metavar="A,B", help=f"only these: {', '.join(p.name for p in PARTS)}")
    parser.add_argument("--limit-s", type=float, default=DEFAULT_LIMIT_S, help="seconds for all parts (default 600)")
    parser.add_argument("--list", action="store_true", help="say what the parts show, and run none")
    parser.add_argument("--cpu", action="store_true", help="run the small shapes on the CPU, also beside a card")
    parser.add_argument("--python", default="", help="the Python whose torch is used (default: this, or .venv's)")
    parser.add_argument("--folder", type=Path, default=Path(".mralign/gpu"), help="where page and figures go")
    parser.add_argument("--wheels", type=Path, default=Path(".whl"), help="folder of wheels, used where it is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
