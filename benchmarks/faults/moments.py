"""``kill -9`` and ``SIGTERM`` at seeded moments of a whole run, which is started again until it is through."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.runs import Place, wait_until_gone

END_WITHIN_S = 10.0
GIVE_UP_S = 60.0
"""When a run that was told to end is taken to hang."""


class Blow(NamedTuple):
    """What became of one signal: what was wrong, if anything, and how long the processes took to end."""

    problem: str
    seconds: float


Strike = Callable[[Place, "subprocess.Popen[bytes]"], Blow]


def kill(place: Place, process: subprocess.Popen[bytes]) -> Blow:
    """Kill the process; all that it started must end by itself."""
    process.kill()
    started = time.monotonic()
    process.wait()
    orphans = wait_until_gone(process.pid, END_WITHIN_S)
    return Blow("left processes behind" if orphans else "", time.monotonic() - started)


def terminate(place: Place, process: subprocess.Popen[bytes]) -> Blow:
    """Send SIGTERM to the whole group, as ``timeout`` and service managers do."""
    told = (place.folder / "log").stat().st_size
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(GIVE_UP_S)
    except subprocess.TimeoutExpired:
        process.kill()
    left = wait_until_gone(process.pid, max(0.0, END_WITHIN_S - (time.monotonic() - started)))
    seconds = time.monotonic() - started
    process.wait()
    if seconds > END_WITHIN_S + 1:
        return Blow(f"took more than {END_WITHIN_S:.0f} s to end", seconds)
    if left:
        return Blow("left processes behind", seconds)
    return Blow("" if _state_is_told(place, told) else "left a run that counts as running, and said nothing", seconds)


def _state_is_told(place: Place, told: int) -> bool:
    said = (place.folder / "log").read_bytes()[told:].decode(errors="replace")
    return place.running_flows() == 0 or "could not be told" in said


def strike_whole_runs(strike: Strike, name: str, alone: Place, *, num: int, seed: int) -> list[Outcome]:
    """Strike runs at ``num`` moments; each run is started again after a blow, and must end as one that was left alone.

    Returns one outcome for what the runs made in the end, and one for how their processes ended and what they left.

    Args:
        strike: what is done to the process at the moment.
        name: of the attack.
        alone: where a run was left alone, by the installation under attack.
        num: how many moments.
        seed: of the moments.
    """
    rng, expected = random.Random(seed), alone.digests()
    blows: list[Blow] = []
    wrong: list[str] = []
    number = 0
    while len(blows) < num:
        number += 1
        place = alone.beside(f"struck-{name.replace(' ', '-')}-{number}")
        of_this = _strike_until_through(strike, place, alone.run_s, num - len(blows), rng)
        problem = _problem_at_the_end(place, expected)
        wrong += [problem] * len(of_this) if problem else []
        blows += of_this
    left = [blow.problem for blow in blows if blow.problem]
    slowest = max(blow.seconds for blow in blows)
    runs = f"{number} run(s), {alone.run_s:.0f} s when left alone"
    return [
        Outcome(f"{name}: the work", num, num - len(wrong), wrong, runs),
        Outcome(f"{name}: the processes", num, num - len(left), left, f"the slowest ended after {slowest:.1f} s"),
    ]


def _strike_until_through(strike: Strike, place: Place, run_s: float, most: int, rng: random.Random) -> list[Blow]:
    """Start, strike, start again, until the run ends by itself before its moment."""
    blows: list[Blow] = []
    while len(blows) < most:
        process = place.start()
        try:
            process.wait(rng.uniform(1.0, 0.7 * run_s))
        except subprocess.TimeoutExpired:
            blows.append(strike(place, process))
        else:
            break
    return blows


def _problem_at_the_end(place: Place, expected: frozenset[tuple[str, str]]) -> str:
    status = place.finish()
    if status:
        return f"started again, it ended with status {status}"
    if place.digests() != expected:
        return "other artifacts than those of a run that was left alone"
    return "scratch folders stay" if place.scratch_folders() else ""
