"""What the gate of a retraining decides on models of known true rates: ``python -m benchmarks.retraining_gate``."""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

from mralign_core.config.retrain import GateConfig
from mralign_core.retraining.gate import compare_with_champion, decide_promotion, smallest_shown_gain
from tests.core.retraining.gate_weeks import closer, rates, scores

QUESTIONS = (200, 400, 800, 1600)
CASES = {"equal": 0.0, "the margin": 1.0, "twice the margin": 2.0, "damaged by twice the margin": -2.0}
"""Name → the true gain, in margins."""


def weeks(gate: GateConfig, gain: float, num_questions: int, num: int) -> tuple[Counter[str], float]:
    """The verdicts of so many weeks, and the mean standard error of the gain in Mis."""
    verdicts: Counter[str] = Counter()
    errors = []
    for seed in range(num):
        rng = np.random.default_rng([17, seed, num_questions])
        champion = rates(rng, num_questions)
        ours, theirs = scores(closer(champion, gain), rng), scores(champion, rng)
        gains = compare_with_champion(ours, theirs, confidence=gate.confidence, rng=rng, num_flips=20_000)
        verdicts[decide_promotion(gains, gate).verdict] += 1
        errors.append(float(gains.loc[gains["is_whole"] & (gains["metric"] == "mis"), "std_error"].iloc[0]))
    return verdicts, float(np.mean(errors))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weeks", type=int, default=1000)
    num, gate = parser.parse_args().weeks, GateConfig()
    print("| questions | true gain | PROMOTE | HOLD | REJECT | shown nine times in ten |")
    print("|---|---|---|---|---|---|")
    for num_questions in QUESTIONS:
        for name, margins in CASES.items():
            found, std_error = weeks(gate, margins * gate.min_gain, num_questions, num)
            cells = " | ".join(f"{100 * found[verdict] / num:.1f} %" for verdict in ("PROMOTE", "HOLD", "REJECT"))
            could = 100 * smallest_shown_gain(std_error, gate)
            print(f"| {num_questions} | {name} | {cells} | {could:.1f} points |", flush=True)


if __name__ == "__main__":
    main()
