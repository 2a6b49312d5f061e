"""Runs parts one after another, each in a process of its own with a time limit of its own, and keeps what each found.

Only the standard library is imported, and a part's process can do no harm to this one: it may hang, run out of memory
or take the CUDA context with it, and the next part still runs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import LAST_CHARACTERS, as_json, write_whole
from benchmarks.gpu.parts import Part

GRACE_S = 3.0
"""Between asking a part to end and killing it."""
LEAST_S = 10.0
"""A part that has less time than that is not begun: it would not get through its imports."""
QUIET = {
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Environment of a part: no look at a hub, no bars, no usage statistics."""
FAILED = ("failed", "cut", "died")
"""Ways for a part to end that make the exit code 1."""

Start = Callable[[Part, Path], Sequence[str]]
"""The command that runs a part and writes its findings to a path."""


class Runner:
    """Runs parts and writes ``gpu.json`` after each.

    Args:
        folder: where the JSON, and a log and a file of findings a part, go.
        about: what is known of the run from the start; kept beside the parts.
        start: see :data:`Start`.
        limit_s: seconds for all parts together.
        environment: variables of the parts, beside :data:`QUIET`.
        on_change: called with the whole record after each part, such as to write a page.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        start: Start,
        *,
        limit_s: float,
        environment: Mapping[str, str],
        on_change: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> None:
        self.folder, self.start, self.environment, self.on_change = folder, start, environment, on_change
        self.limit_s = limit_s
        self.deadline = time.monotonic() + limit_s
        self.record: dict[str, Any] = {**about, "limit_s": limit_s, "parts": {}}

    def run(self, parts: Sequence[Part]) -> dict[str, Any]:
        """Run the parts and return the record; also when interrupted, after which it raises ``KeyboardInterrupt``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in parts:
            self.record["parts"][part.name] = {"status": "waiting", "shows": part.shows, "limit_s": part.limit_s}
        self._keep()
        for number, part in enumerate(parts, 1):
            limit_s = min(part.limit_s, self.deadline - time.monotonic())
            print(f"[{number}/{len(parts)}] {part.name:10} up to {max(limit_s, 0):.0f} s … ", end="", flush=True)
            found = self._part(part, limit_s) if limit_s >= LEAST_S else self._no_time()
            self.record["parts"][part.name] |= found
            print(in_one_line(found), flush=True)
            self._keep()
        return self.record

    def _no_time(self) -> dict[str, Any]:
        why = f"no time is left of {self.limit_s:.0f} s: raise --limit-s, or name it in --parts"
        return {"status": "skipped", "why": why, "seconds": 0.0, "line": "", "values": {}, "checks": [], "notes": []}

    def _part(self, part: Part, limit_s: float) -> dict[str, Any]:
        """Run one part to its end or its limit; what it found, and how it ended."""
        out, log = (self.folder / f"{part.name}.{ending}" for ending in ("json", "log"))
        out.unlink(missing_ok=True)
        # Not in the folder: the paths of the sockets that engines make there must be short.
        scratch = tempfile.mkdtemp(prefix="mralign-gpu-")
        started = time.monotonic()
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                self.start(part, out),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env=self._environment(part) | {"TMPDIR": scratch},
                start_new_session=True,
            )
            try:
                is_cut = _wait(process, json.dumps(self._earlier()), limit_s)
            except BaseException:
                self.record["parts"][part.name] |= _read(out) | {"status": "cut", "why": "interrupted"}
                self._keep()
                raise
            finally:
                _stop(process)  # what it left behind would hold the card
                shutil.rmtree(scratch, ignore_errors=True)
        seconds = round(time.monotonic() - started, 1)
        return {"seconds": seconds, **_ended(_read(out), process.returncode, log, limit_s if is_cut else None)}

    def _environment(self, part: Part) -> dict[str, str]:
        environment = {**os.environ, **QUIET, **self.environment}
        if not part.sees_all_cards:
            environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        return environment

    def _earlier(self) -> dict[str, Any]:
        return {name: part.get("values", {}) for name, part in self.record["parts"].items()}

    def _keep(self) -> None:
        write_whole(self.folder / "gpu.json", as_json(self.record))
        self.on_change(self.record)


def in_one_line(found: Mapping[str, Any]) -> str:
    """How a part ended, for the terminal."""
    told = [found.get("line", ""), found.get("why", "")]
    return f"{found['status']} in {found['seconds']:.0f} s: {'; '.join(text for text in told if text)}"


def _wait(process: subprocess.Popen[str], text: str, limit_s: float) -> bool:
    """Wait for the end of a process, or end it at the limit; whether that was needed."""
    try:
        process.communicate(text, timeout=limit_s)
    except subprocess.TimeoutExpired:
        _stop(process)
        return True
    return False


def _stop(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(GRACE_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue  # one that is stuck in the driver does not end by SIGKILL either, and is left behind


def _read(out: Path) -> dict[str, Any]:
    empty = {"status": "died", "line": "", "values": {}, "checks": [], "notes": []}
    try:
        return {**empty, **json.loads(out.read_text(encoding="utf-8"))}
    except (OSError, ValueError):
        return dict(empty)


def _ended(found: dict[str, Any], exit_code: int | None, log: Path, limit_s: float | None) -> dict[str, Any]:
    """What a part found, with how it ended where it could not say so itself."""
    if found["status"] not in ("cut", "died"):
        return found
    if limit_s is not None:
        found |= {"status": "cut", "why": f"cut off at its limit of {limit_s:.0f} s"}
    else:
        how = f"signal {-exit_code}" if exit_code and exit_code < 0 else f"exit code {exit_code}"
        found |= {"status": "died", "why": f"its process ended without a word, by {how}"}
    return found | {"traceback": log.read_text(encoding="utf-8", errors="replace")[-LAST_CHARACTERS:]}


def child_command(python: str, device: str) -> Start:
    """Parts as :mod:`benchmarks.gpu.child` runs them, under a Python and on a device."""

    def start(part: Part, out: Path) -> list[str]:
        return [python, "-m", "benchmarks.gpu.child", part.name, "--device", device, "--out", str(out)]

    return start


def interrupt_on_terminate() -> None:
    """Have SIGTERM end this process as Ctrl-C does: with its part ended and its page written."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
