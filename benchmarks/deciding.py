"""How often the decisions of an evaluation err, and how often corrected intervals cover the truth: the tables of
docs/deciding.md.

    python -m benchmarks.deciding [--simulations 2000]
"""

from __future__ import annotations

import argparse

import numpy as np

from mralign_core.evaluation.decisions import (
    SetDifferences,
    equivalence_p,
    mcnemar_p,
    mean_of_sets,
    sign_flip_p,
)
from mralign_core.evaluation.metrics import bootstrap_interval
from mralign_core.evaluation.people import corrected_mean
from mralign_core.method import FloatArray

LEVEL = 0.05
MARGIN = 0.02
ALIKE_WITHIN = 0.3
"""Scale of the beta distributions of a question's flips: its draws flip together, but not all."""


def simulated(rng: np.random.Generator, num_questions: int, up: float, down: float, num_draws: int) -> SetDifferences:
    """Questions whose draws flip up and down with probabilities of these means."""
    if num_draws == 1:
        ups, downs = np.full(num_questions, up), np.full(num_questions, down)
    else:
        ups, downs = (
            rng.beta(max(mean, 1e-9) / ALIKE_WITHIN, (1 - mean) / ALIKE_WITHIN, num_questions) for mean in (up, down)
        )
    moved = rng.random((num_questions, num_draws))
    sums = (moved < ups[:, None]).sum(axis=1) - (moved > 1 - downs[:, None]).sum(axis=1)
    return SetDifferences(sums.astype(float), np.full(num_questions, float(num_draws)))


def paired_p(data: SetDifferences, rng: np.random.Generator) -> float:
    """The p-value of the test that a run would make."""
    if (data.num_draws == 1).all():
        return mcnemar_p(int((data.sums > 0).sum()), int((data.sums < 0).sum()))
    return sign_flip_p([data], rng, 999)


def excludes_0(data: SetDifferences, rng: np.random.Generator) -> bool:
    """Whether the bootstrap interval of the difference excludes 0."""
    low, high = bootstrap_interval(data.sums[:, None], data.num_draws, num_resamples=400, confidence=1 - LEVEL, rng=rng)
    return bool(low[0] > 0 or high[0] < 0)


def is_equivalent(rng: np.random.Generator, num_questions: int, up: float, down: float, num_draws: int) -> bool:
    """Whether flips of these probabilities are called equivalent within the margin."""
    return equivalence_p(mean_of_sets([simulated(rng, num_questions, up, down, num_draws)]), MARGIN) <= LEVEL


def print_tests(simulations: int, rng: np.random.Generator) -> None:
    """Rejections of a true null, by test and by interval."""
    print("| questions | flips each way | draws | paired test | interval excludes 0 |\n|---|---|---|---|---|")
    for num_questions, flips in ((50, 0.03), (60, 0.1), (240, 0.02), (240, 0.1), (1000, 0.1)):
        for draws in (1, 4):
            data = [simulated(rng, num_questions, flips, flips, draws) for _ in range(simulations)]
            rejected = 100 * np.mean([paired_p(one, rng) <= LEVEL for one in data])
            excluded = 100 * np.mean([excludes_0(one, rng) for one in data])
            print(f"| {num_questions} | {100 * flips:.0f} % | {draws} | {rejected:.1f} | {excluded:.1f} |", flush=True)


def print_equivalence(simulations: int, rng: np.random.Generator) -> None:
    """How often a difference of just the margin is called equivalent, and no difference is."""
    print("\n| questions | flips against | draws | of the margin | of none |\n|---|---|---|---|---|")
    for num_questions in (120, 180, 240, 600, 2000):
        for down in (0.0, 0.005, 0.05):
            for draws in (1, 4):
                of_margin, of_none = (
                    100
                    * np.mean([is_equivalent(rng, num_questions, down + more, down, draws) for _ in range(simulations)])
                    for more in (MARGIN, 0.0)
                )
                print(f"| {num_questions} | {100 * down:g} % | {draws} | {of_margin:.1f} | {of_none:.1f} |", flush=True)


def covers(rng: np.random.Generator, num: int, rate: float, sensitivity: float, specificity: float) -> FloatArray:
    """Whether an interval covers the true rate, and its width; of 1,000 answers that the judge judged."""
    truth = rng.random(1000) < rate
    says = np.where(truth, rng.random(1000) < sensitivity, rng.random(1000) >= specificity).astype(float)
    found = corrected_mean(truth[:num].astype(float), says[:num], says[:num], says, centre=0.5, confidence=1 - LEVEL)
    return np.array([found.low <= rate <= found.high, found.high - found.low])


def print_people(simulations: int, rng: np.random.Generator) -> None:
    """Coverage of corrected rates, and their width beside that of people alone."""
    sizes = (20, 50, 100, 200, 400)
    print("\n| right | judge's misses, false alarms | " + " | ".join(map(str, sizes)) + " |\n|---|---|" + "---|" * 5)
    for rate in (0.2, 0.5, 0.9):
        for misses, alarms in ((0.3, 0.2), (0.1, 0.05), (0.02, 0.02), (0.0, 0.0)):
            cells = []
            for num in sizes:
                drawn = [covers(rng, num, rate, 1 - misses, 1 - alarms) for _ in range(simulations)]
                covered, width = np.mean(drawn, axis=0)
                cells.append(f"{100 * covered:.1f} ({width / (3.92 * np.sqrt(rate * (1 - rate) / num)):.2f})")
            print(f"| {rate} | {misses}, {alarms} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=2000)
    simulations = parser.parse_args().simulations
    for number, table in enumerate((print_tests, print_equivalence, print_people)):
        table(simulations, np.random.default_rng([15, number]))


if __name__ == "__main__":
    main()
