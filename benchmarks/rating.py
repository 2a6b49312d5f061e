"""How long the pages of rating take, and how much memory: ``python -m benchmarks.rating 1000 10000``.

Each size has a process of its own, which asks the application as a browser does: HTTP, JSON, no network. The runs are
those of :mod:`benchmarks.workbench`. Rounds of 20 traces are begun in each way; then one of 2,000 traces, the most
that there can be, 20,000 segments, of which a rater says one after another until ``--rated`` are kept. Times of ratings
are medians of the first and of the last 50. Beside a time stands the processor's, of all threads, since a busy machine
has others' work too. Memory is the most that the process had so far, above what it has when everything is imported and
nothing asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from benchmarks.workbench import measure_each, peak_mb

TIMED = 50
MOST_TRACES = 2_000


class Seconds(NamedTuple):
    """By the clock, and of the processor."""

    wall: float
    cpu: float


class Pages:
    """The rating pages of a run, asked in this process.

    Args:
        root: of the store.
    """

    def __init__(self, root: Path) -> None:
        import httpx

        from mralign_core.workbench.app import make_app

        self._root = root
        self._transport = httpx.ASGITransport(app=make_app())
        self._before = peak_mb()

    def ask(self, path: str, body: Any = None, **query: str) -> tuple[Seconds, Any]:
        """How long it takes, and what the application answers."""
        return asyncio.run(self._ask(path, body, query))

    def say(self, what: str, *taken: Seconds) -> None:
        """Print a row, of what is asked one after another."""
        wall, cpu = (sum(times) for times in zip(*taken, strict=True))
        print(f"| {what} | {wall:.3f} | {cpu:.3f} | {peak_mb() - self._before:,.0f} |", flush=True)

    async def _ask(self, path: str, body: Any, query: dict[str, str]) -> tuple[Seconds, Any]:
        import httpx

        from mralign_core.reporting.server_paths import VIEW_API_PREFIX
        from tests.simulated_run import NAME

        address = f"{VIEW_API_PREFIX}rate/{path}?{urlencode({'store': str(self._root), 'run': NAME, **query})}"
        headers = {"content-type": "application/json"}
        started = Seconds(time.perf_counter(), time.process_time())
        async with httpx.AsyncClient(transport=self._transport, base_url="http://127.0.0.1", timeout=600) as client:
            if body is None:
                reply = await client.get(address)
            else:
                reply = await client.post(address, content=json.dumps(body), headers=headers)
        reply.raise_for_status()
        taken = Seconds(time.perf_counter() - started.wall, time.process_time() - started.cpu)
        return taken, reply.json()


def measure(root: Path, num_traces: int, num_rated: int) -> None:
    """Print the times of one size, in this process."""
    pages = Pages(root)
    for by in ("random", "disagreement", "pull"):
        began, reply = pages.ask("begin", {"rater": "anna", "choice": {"by": by}})
        pages.say(f"{num_traces:,} | first item, 20 traces by {by}", began, _load(pages, reply["round"])[0])
    began, reply = pages.ask("begin", {"kind": "verdicts", "rater": "anna", "choice": {"num": 20}})
    pages.say(f"{num_traces:,} | first item, answers to 20 questions", began, _load(pages, reply["round"])[0])
    began, reply = pages.ask("begin", {"rater": "anna", "choice": {"num": MOST_TRACES}})
    seconds, round_ = _load(pages, reply["round"])
    items = [each["item"] for each in round_["items"]]
    pages.say(f"{num_traces:,} | first item, {len(items):,} segments at random", began, seconds)
    _rate(pages, reply["round"], items[:num_rated], num_traces)
    pages.say(f"{num_traces:,} | the same page again", _load(pages, reply["round"])[0])
    pages.say(f"{num_traces:,} | all rounds", pages.ask("rounds")[0])
    began, reply = pages.ask("begin", {"rater": "anna", "choice": {"seed": 1}})
    seconds, _ = _load(pages, reply["round"])
    pages.say(f"{num_traces:,} | first item of the next 20 traces, without what was rated", began, seconds)


def _load(pages: Pages, name: str) -> tuple[Seconds, Any]:
    return pages.ask("round", round=name, rater="anna")


def _rate(pages: Pages, name: str, items: list[str], num_traces: int) -> None:
    times = []
    for n, item in enumerate(items, start=1):
        rating = {"n": n, "item": item, "state": "rated", "said": {"label_1": "framing"}}
        times.append(pages.ask("rating", {"round": name, "rater": "anna", "rating": rating})[0])
    for what, some in (("first", times[:TIMED]), ("last", times[-TIMED:])):
        median = Seconds(*(statistics.median(each) for each in zip(*some, strict=True)))
        pages.say(f"{num_traces:,} | next item, the {what} {TIMED} of {len(items):,}", median)


def main() -> None:
    """Make a store for each size, and have a process measure it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="*", default=[1_000, 10_000], help="traces")
    parser.add_argument("--rated", type=int, default=2_000, help="segments that are rated")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        measure(chosen.measure, chosen.sizes[0], chosen.rated)
        return
    print("| traces | asked | s | CPU s | peak MB so far |\n|---|---|---|---|---|")
    measure_each(chosen.sizes, "benchmarks.rating", "--rated", str(chosen.rated))


if __name__ == "__main__":
    main()
