"""What the pipeline survives: ``python -m benchmarks.faults`` attacks it as a user would start it, and prints a table.

Each attack is seeded. ``tests/faults`` makes the same attacks, fewer times. With ``--python`` another installation is
attacked, such as that of an older checkout, so that before and after can be compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from benchmarks.faults import annotators, moments, stores, twins
from benchmarks.faults.outcome import Outcome, table_of
from benchmarks.faults.runs import Place
from tests.seaweedfs import running_server

WIDTH = 150
Attack = Callable[[str, int, float], Iterator[Outcome]]


def _stores(python: str, seed: int, scale: float) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder)) as server:
        for share in (0.02, 0.05, 0.10):
            yield stores.spoil(python, server, share=share, num=round(300 * scale), seed=seed)
        for seconds in (1, 3, 10, 60):
            yield stores.refuse(python, server, seconds=seconds)
        yield stores.refuse_whole_run(python, server, outages=(1, 3, 10, 60))


def _kills(python: str, seed: int, scale: float) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        alone = Place(Path(folder, "alone"), python)
        alone.run_alone()
        yield from moments.strike_whole_runs(moments.kill, "kill -9", alone, num=round(30 * scale), seed=seed)


def _terminations(python: str, seed: int, scale: float) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        alone, name = Place(Path(folder, "alone"), python), "SIGTERM to the group"
        alone.run_alone()
        yield from moments.strike_whole_runs(moments.terminate, name, alone, num=round(20 * scale), seed=seed)


def _annotators(python: str, seed: int, scale: float) -> Iterator[Outcome]:
    yield annotators.annotate_with_each(python)


def _twins(python: str, seed: int, scale: float) -> Iterator[Outcome]:
    yield twins.start_twice(python, rounds=max(1, round(3 * scale)))


ATTACKS: dict[str, Attack] = {
    "stores": _stores,
    "kills": _kills,
    "terminations": _terminations,
    "annotators": _annotators,
    "twins": _twins,
}


def main() -> int:
    """Attack, print each outcome as it comes and the table at the end; 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("attacks", nargs="*", choices=[[], *ATTACKS], help="which; all of them by default")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the installation to attack")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the number of tries, such as 0.2")
    options = parser.parse_args()
    console, outcomes = Console(width=WIDTH), []
    for name in options.attacks or ATTACKS:
        for outcome in ATTACKS[name](options.python, options.seed, options.scale):
            outcomes.append(outcome)
            console.print(table_of([outcome], name), highlight=False)
    console.print(table_of(outcomes, f"attacks, seed {options.seed}"), highlight=False)
    return int(any(outcome.lost for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
