import numpy as np
import pandas as pd
import pytest
from published_candidates import candidate_row

from mralign_core.pocket.grammar import write_trace
from mralign_core.pocket.world import build_world
from mralign_core.schemas.candidates import CANDIDATES


@pytest.fixture(scope="session")
def pocket_candidates():
    """The first so many traces that the pocket grammar writes, as table ``candidates``."""
    world, rng = build_world(seed=0), np.random.default_rng(0)

    def row(number):
        question = world.questions[int(rng.integers(len(world.questions)))]
        trace = write_trace(world, question, rng)
        polarity = "positive" if trace.answer == question.answer else "negative"
        texts = [segment.text for segment in trace.segments]
        return candidate_row(f"t{number}", texts, question=question.text, polarity=polarity)

    frame = CANDIDATES.require(pd.DataFrame([row(number) for number in range(120)]))
    return lambda num_traces: frame.head(num_traces)


@pytest.fixture
def candidates_of():
    """Candidates with these texts of segments, a trace an argument, each about a question of its own."""

    def build(*traces):
        rows = [candidate_row(f"t{n}", texts, question=f"Who wrote book {n}?") for n, texts in enumerate(traces)]
        return pd.DataFrame(rows, dtype=object)  # Arrow's strings can't hold half a character

    return build
