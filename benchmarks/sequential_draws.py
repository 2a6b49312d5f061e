"""The saving of sequential draws: thinking made, against every draw, for the same training traces.

* A model of NQ-Open's training questions: shares of questions that thinking makes right, or wrong, in every draw, such
  that the paper's yield comes out, and questions whose draws now and then differ. What the paper does not say (how many
  traces its length filter drops, how often draws of one question differ) is swept.
* The pocket world, sampled for real both ways (``--pocket``): the candidates must have the same digest.

Run ``python -m benchmarks.sequential_draws --pocket`` from the repository.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np

from mralign_core.config import load_config
from mralign_core.method.selection import judge_question, next_draw
from mralign_core.storage import ArtifactRef, ArtifactStore

QUESTIONS, POSITIVES, NEGATIVES = 87_925, 4_070, 1_785
"""NQ-Open's training questions, and the traces that the paper keeps of them (Table 1)."""
RIGHT_WITH_THINKING = 0.34
"""About the paper's exact match of Qwen3-8B on NQ-Open (Table 2)."""
NUM_DRAWS = 3
SIMULATED = 50_000
POCKET = Path(__file__).resolve().parent.parent / "deployments" / "configs" / "pocket.yaml"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pocket", action="store_true", help="sample the pocket world both ways, too (3 minutes)")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"NQ-Open at the paper's yield, {NUM_DRAWS} draws; think-on draws a question, and the saving in thinking")
    print(f"{'pass the length filter':>24} {'questions that waver':>21} {'kept':>7} {'draws':>6} {'saving':>7}")
    for passing, wavering in itertools.product((1.0, 0.5, 0.25), (0.0, 0.1, 0.3)):
        kept, draws = simulate(passing, wavering, rng)
        print(f"{passing:>24.0%} {wavering:>21.0%} {kept:>7.1%} {draws:>6.2f} {NUM_DRAWS / draws:>6.2f}×")
    if options.pocket:
        sample_pocket()


def simulate(passing: float, wavering: float, rng: np.random.Generator) -> tuple[float, float]:
    """Share of questions with a polarity, and think-on draws a question.

    Args:
        passing: share of traces that pass the length filter, so that the paper's yield comes of more questions.
        wavering: share of questions whose draws differ: each mode is right at a rate of the question's own, uniform.
        rng: source of random numbers.
    """
    steady = 1 - wavering
    positive, negative = (count / QUESTIONS / passing for count in (POSITIVES, NEGATIVES))
    right = max(RIGHT_WITH_THINKING - positive, 0)
    wrong = steady - right - positive - negative
    # Rates of being right (without thinking, with thinking) of each kind of question.
    kinds = rng.choice(5, p=[positive, negative, right, wrong, wavering], size=SIMULATED)
    rates = np.array([(0, 1), (1, 0), (1, 1), (0, 0), (0.5, 0.5)], dtype=float)[kinds]
    rates[kinds == 4] = rng.random((int((kinds == 4).sum()), 2))
    outcomes = rng.random((SIMULATED, NUM_DRAWS, 2)) < rates[:, None, :]
    made = kept = 0
    for off, on in zip(outcomes[:, :, 0].tolist(), outcomes[:, :, 1].tolist(), strict=True):
        right_off: list[bool] = []
        right_on: list[bool] = []
        while following := next_draw(right_off, right_on, NUM_DRAWS):
            mode, draw = following
            (right_off if mode == "off" else right_on).append((off if mode == "off" else on)[draw])
        made += len(right_on)
        kept += judge_question(right_off, right_on, NUM_DRAWS).polarity is not None
    return kept / SIMULATED, made / SIMULATED


def sample_pocket() -> None:
    """Sample the pocket world one draw at a time, and every draw; print the tokens, and whether the traces agree."""
    from tasks.generate import read_draws, select_candidates
    from tasks.prepare import load_questions, prepare_model
    from tests.stages import draw

    candidates: list[ArtifactRef] = []
    thinking: list[int] = []
    with tempfile.TemporaryDirectory(prefix="sequential-draws-") as root:
        for draws in ("exhaustive", "sequential"):
            config = load_config(POCKET, {"storage.root": root, "generate.draws": draws})
            questions, model = load_questions.run_here(config), prepare_model.run_here(config)
            started = time.monotonic()
            generations = draw(config, questions, model)
            seconds = time.monotonic() - started
            candidates.append(select_candidates.run_here(config, questions, model, generations))
            counts = read_draws(ArtifactStore(config.storage), generations).set_index("thinking_mode").loc["on"]
            thinking.append(int(counts["tokens"]))
            print(
                f"pocket, {draws}: {counts['draws']:,} think-on draws, {counts['tokens']:,} tokens of them, "
                f"{seconds:.1f} s, {candidates[-1].rows} traces, digest {candidates[-1].sha256[:12]}"
            )
    same = candidates[0].sha256 == candidates[1].sha256
    print(f"pocket: {thinking[0] / thinking[1]:.2f}× fewer thinking tokens; traces {'identical' if same else 'DIFFER'}")


if __name__ == "__main__":
    main()
