"""The same config started twice at once: whoever comes second must find what the first one paid for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.runs import RUN_TIMEOUT_S, Place
from tests.chat_server import ChatServer, Turn, label_all

LATENCY_S = 0.5


def start_twice(python: str, *, rounds: int) -> Outcome:
    """Start a run alone, then two at once, with annotators that cost; count the requests at their server."""
    lost = []
    with tempfile.TemporaryDirectory() as folder:
        alone, _ = _requests(python, Path(folder, "alone"), 1)
        counts = []
        for number in range(rounds):
            together, statuses = _requests(python, Path(folder, f"twice-{number}"), 2)
            counts.append(together)
            if any(statuses):
                lost.append(f"a run of the two ended with status {max(statuses)}")
            elif together > alone:
                lost.append("requests were paid for twice")
    note = f"{alone} requests alone, {', '.join(map(str, counts))} for two at once"
    return Outcome("the same run twice at once", rounds, rounds - len(lost), lost, note)


def _requests(python: str, folder: Path, num_runs: int) -> tuple[int, list[int]]:
    """Requests that the annotators' server saw, and the exit statuses of so many runs at once."""
    folder.mkdir()
    server = ChatServer()

    def script(request: dict[str, Any], number: int) -> Turn:
        turn = label_all(request)
        turn.delay_s = LATENCY_S
        return turn

    server.script = script
    try:
        place = Place(folder, python, _asking(server.url), {"OPENAI_API_KEY": "none-needed"})
        runs = [place.start(log=f"log-{number}") for number in range(num_runs)]
        return_codes = [run.wait(RUN_TIMEOUT_S) for run in runs]
        return len(server.requests), return_codes
    finally:
        server.close()


def _asking(url: str) -> dict[str, str]:
    prices = "input_usd_per_million: 1, output_usd_per_million: 1"
    return {
        f"annotate.{role}": f"{{model: openai/{role}, api_base: '{url}', {prices}}}"
        for role in ("annotator_a", "annotator_b", "adjudicator")
    }
