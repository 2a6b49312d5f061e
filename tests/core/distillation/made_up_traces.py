"""Traces made up from a chain of labels, each of which has a word of its own."""

import numpy as np

from mralign_core.distillation.fitting import LabelledTraces

LABELS = ("alpha", "beta", "gamma")
WORDS = {"alpha": "recall", "beta": "wait", "gamma": "therefore"}
MOVES = np.array([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])


def made_up(num_questions, seed=0, *, per_question=2, length=8, garbled=0.0):
    """Traces whose labels move by MOVES, each told by its word unless it is garbled."""
    rng = np.random.default_rng(seed)
    texts, labels, questions = [], [], []
    for number in range(num_questions * per_question):
        state, of_trace, given = int(rng.integers(3)), [], []
        for _ in range(length):
            label = LABELS[state]
            word = "something" if rng.random() < garbled else WORDS[label]
            of_trace.append(f"{word} entity{rng.integers(50)} item{rng.integers(50)}")
            given.append([label])
            state = int(rng.choice(3, p=MOVES[state]))
        texts.append(of_trace)
        labels.append(given)
        questions.append(f"q{number // per_question}")
    return LabelledTraces(texts, labels, questions)
