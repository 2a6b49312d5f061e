"""What each matrix was estimated from, and which of its entries rest on enough."""

from __future__ import annotations

from mralign_core.estimation.bootstrap import MIN_SUPPORT
from mralign_core.estimation.corpus import CLASSES, POLARITY_OF, Corpus
from mralign_core.estimation.diagnostics.result import Result
from mralign_core.estimation.matrices import TransitionMatrices


class Yield(Result):
    """What one matrix was estimated from."""

    matrix: str
    traces: int
    transitions: int
    unlabelled_steps: int
    unlabelled_traces: int
    states_left: int
    """States left at least :data:`MIN_SUPPORT` times."""
    entries: int
    """Entries with at least :data:`MIN_SUPPORT` soft counts."""
    share_in_entries: float
    """Share of all soft counts that are in such entries."""


def matrix_yields(corpus: Corpus, matrices: TransitionMatrices) -> tuple[Yield, ...]:
    """What P⁺, P⁻ and P were estimated from."""
    rows = []
    for name in CLASSES:
        pairs, counts = corpus.pairs(POLARITY_OF.get(name)), matrices.estimates[name].counts
        supported = counts >= MIN_SUPPORT
        rows.append(
            Yield(
                matrix=name,
                traces=pairs.num_traces,
                transitions=pairs.num_transitions,
                unlabelled_steps=pairs.num_empty_steps,
                unlabelled_traces=pairs.num_empty_traces,
                states_left=int((counts.sum(axis=1) >= MIN_SUPPORT).sum()),
                entries=int(supported.sum()),
                share_in_entries=float(counts[supported].sum() / max(float(counts.sum()), 1e-300)),
            )
        )
    return tuple(rows)
