"""How long the workbench takes, and how much memory, on simulated runs: ``python -m benchmarks.workbench 1000 10000``.

Each size has a process of its own, which asks the application as a browser does: HTTP, JSON, no network. Traces are of
about 600 tokens in ten segments, with two draws each, four variants' answers to a twentieth as many questions, and
every other table of a run (:mod:`tests.simulated_run`). A time is the median of five, the first of them beside it.
Memory is the most that the process had so far, above what it has when everything is imported and nothing asked. What
the analyses say is worked out in the first of the five, and kept in a home folder of the benchmark's own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlencode

ROUNDS = 5


def asked(num_traces: int) -> dict[str, tuple[str, dict[str, str]]]:
    """What is asked: what to call it → the path and its query."""
    last = f"{num_traces - 1:06d}"
    return {
        "what a run has": ("run", {}),
        "overview": ("summary", {}),
        "moves": ("moves", {}),
        "first page of traces": ("traces", {}),
        "page in the middle": ("traces", {"page": str(max(1, num_traces // 100))}),
        "search, one trace has it": ("traces", {"text": f"code{last}"}),
        "search, none has it": ("traces", {"text": "nowhere"}),
        "search, a tenth has it": ("traces", {"text": "7. "}),
        "labels in a row": ("traces", {"pattern": "retrieval → backtracking → … → synthesis"}),
        "segments by label, rule, weight": ("traces", {"label": "analogy", "rule": "adjudicate", "weight_min": "2"}),
        "sorted by weight": ("traces", {"sort": "weight"}),
        "sorted by disagreement": ("traces", {"sort": "disagreement"}),
        "sorted by implicit reward": ("traces", {"sort": "raised"}),
        "a segment by label that became likelier": ("traces", {"label": "analogy", "moved_min": "0.1"}),
        "named early, answered wrong": ("traces", {"ending": "named_wrong", "last_to": "50"}),
        "sorted by last mention": ("traces", {"sort": "last"}),
        "by set, stratum, polarity": ("traces", {"source": "other", "stratum": "two_hop", "polarity": "negative"}),
        "draws, right in thinking only": ("draws", {"hit": "thinking"}),
        "draws, search": ("draws", {"text": f"code{last}"}),
        "answers that flipped": ("answers", {"variant": "mr_align", "against": "kto", "flip": "right to wrong"}),
        "answers by labels in a row": ("answers", {"variant": "mr_align", "pattern": "retrieval → analogy"}),
        "answers named early": ("answers", {"variant": "mr_align", "last_to": "50"}),
        "moves of held-out thinkings": ("held-out-moves", {}),
        "flips by the judges": ("judged-flips", {}),
        "one trace's tokens": ("tokens", {"id": f"trace-{last}"}),
        "one trace": ("trace", {"id": f"trace-{last}"}),
        "one question": ("question", {"id": "eval-000003"}),
    }


def measure(root: Path, num_traces: int) -> None:
    """Print the times of one size, in this process."""
    import httpx

    from mralign_core.reporting.server_paths import VIEW_API_PREFIX
    from mralign_core.workbench.app import make_app
    from tests.simulated_run import NAME

    transport = httpx.ASGITransport(app=make_app())

    async def ask(path: str, query: dict[str, str]) -> tuple[float, httpx.Response]:
        started = time.perf_counter()
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            address = f"{VIEW_API_PREFIX}{path}?{urlencode({'store': str(root), 'run': NAME, **query})}"
            reply = (await client.get(address)).raise_for_status()
        return time.perf_counter() - started, reply

    before = peak_mb()
    for name, (path, query) in asked(num_traces).items():
        times = [asyncio.run(ask(path, query))[0] for _ in range(ROUNDS)]
        shown = f"{times[0]:.2f} | {statistics.median(times):.2f} | {peak_mb() - before:,.0f}"
        print(f"| {num_traces:,} | {name} | {shown} |")
    seconds, rows = _export(root)
    print(f"| {num_traces:,} | all as JSON lines, {rows:,} | {seconds:.2f} | | {peak_mb() - before:,.0f} |", flush=True)


def _export(root: Path) -> tuple[float, int]:
    """Seconds and rows of a whole list, counted as they come."""
    from mralign_core.config import StorageConfig
    from mralign_core.storage import ArtifactStore
    from mralign_core.workbench.database import shared_database
    from mralign_core.workbench.filters import TraceFilter
    from mralign_core.workbench.lists import LISTINGS, stream_all
    from mralign_core.workbench.tables import find_run

    started = time.perf_counter()
    tables = find_run(ArtifactStore(StorageConfig(root=str(root))), "simulated")
    rows = sum(1 for _ in stream_all(shared_database(), tables, LISTINGS["traces"], TraceFilter()))
    return time.perf_counter() - started, rows


def peak_mb() -> float:
    """The most memory that this process had. To that of ``getrusage`` a child is born with its parent's."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def measure_each(sizes: Sequence[int], module: str, *options: str) -> None:
    """Make a store for each size, and have a process of its own measure it.

    Args:
        sizes: numbers of traces.
        module: measures, when it is given a size and ``--measure`` with the store's folder.
        options: others of its.
    """
    from mralign_core.config import StorageConfig
    from tests.simulated_run import large, publish_run

    for num_traces in sizes:
        with TemporaryDirectory() as folder:
            root = Path(folder) / "store"
            publish_run(StorageConfig(root=str(root)), large(num_traces))
            command = [sys.executable, "-m", module, str(num_traces), *options, "--measure", str(root)]
            subprocess.run(command, check=True, env={**os.environ, "HOME": folder})


def main() -> None:
    """Make a store for each size, and have a process measure it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="*", default=[1_000, 10_000], help="traces")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        measure(chosen.measure, chosen.sizes[0])
        return
    print("| traces | asked | first, s | median, s | peak MB so far |\n|---|---|---|---|---|")
    measure_each(chosen.sizes, "benchmarks.workbench")


if __name__ == "__main__":
    main()
