"""Simulated weeks: two models' answers to the same held-out questions, with known rates."""

import numpy as np
import pandas as pd

NUM_DRAWS = 5


def rates(rng, num_questions=400):
    """A question's chance that thinking names the gold answer, and that the answer follows it: few are in between."""
    return np.column_stack([rng.beta(1.2, 0.5, num_questions), rng.beta(4, 1, num_questions)])


def scores(rates, rng, num_draws=NUM_DRAWS):
    """Rows of a model's scores: the answer is right where thinking is, and follows it."""
    shape = (len(rates), num_draws)
    thought = rng.random(shape) < rates[:, :1]
    follows = rng.random(shape) < rates[:, 1:]
    questions = np.repeat(np.arange(len(rates)), num_draws)
    return pd.DataFrame(
        {
            "variant": "any",
            "question_id": [f"q{number:04d}" for number in questions],
            "source": "set",
            "scoring": "exact_match",
            "stratum": np.where(questions % 3, "one hop", "two hops"),
            "draw": np.tile(np.arange(num_draws), len(rates)),
            "answer": "",
            "outcome": "ok",
            "em_thought": thought.ravel(),
            "em_answer": (thought & follows).ravel(),
            "contains_answer": (thought & follows).ravel(),
        }
    )


def closer(rates, points):
    """The same model, whose answers follow its thinking more often: Mis falls by so much of all answers."""
    room = (rates[:, 0] * (1 - rates[:, 1])).mean()
    return np.column_stack([rates[:, 0], 1 - (1 - rates[:, 1]) * (1 - points / room)])
