"""The estimators behind one interface: set pairs in, transition estimate out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from mralign_core.config import EstimateConfig
from mralign_core.estimation.em_tables import TransitionTables, fit_em_tables
from mralign_core.method import IntArray
from mralign_core.method.set_pairs import SetPairCounts
from mralign_core.method.transitions import (
    TransitionEstimate,
    fit_em,
    fit_frequency,
)

logger = logging.getLogger("mralign_core.estimation")

Estimator = Callable[[SetPairCounts], TransitionEstimate]
_BLOCK_CELLS = 1 << 20
"""Pairs × tables that EM holds side by side (8 MB)."""
MOST_ITERATIONS = 10_000
"""Iterations after which ``em_converged`` gives up."""


def make_estimator(section: EstimateConfig, num_states: int) -> Estimator:
    """The estimator that a config names.

    ``em`` is the paper's (Algorithm 2 of arXiv 2510.24794: at most five damped iterations), ``em_converged`` goes on
    undamped until no entry of P moves by the tolerance, ``frequency`` is the baseline of Table 3.

    Args:
        section: the estimator and its settings.
        num_states: K.

    >>> import numpy as np
    >>> states = np.eye(3, dtype=bool)  # one trace <start> → 1 → <stop>
    >>> pairs = SetPairCounts(states[:2], states[1:], np.array([1, 1]), 1, 0, 0)
    >>> make_estimator(EstimateConfig(estimator="frequency"), num_states=3)(pairs).counts[0].tolist()
    [0.0, 1.0, 0.0]
    """
    if section.estimator == "frequency":
        return lambda pairs: fit_frequency(pairs, num_states, prior=section.prior)
    return lambda pairs: fit_em(pairs, num_states, **_iterations(section))


def estimate_tables(section: EstimateConfig, pairs: SetPairCounts, multiplicities: IntArray) -> TransitionTables:
    """What :func:`make_estimator` gives for many tables of the same pairs, those of EM side by side.

    Args:
        section: the estimator and its settings.
        pairs: the transitions; their own multiplicities are not read.
        multiplicities: (H, U) occurrences of each pair in each table.
    """
    num_states = pairs.sources.shape[1]
    if section.estimator not in ("em", "em_converged"):
        fit = make_estimator(section, num_states)
        found = [fit(pairs._replace(multiplicities=table)) for table in multiplicities]
        return TransitionTables(
            *(np.stack(column) for column in ([one.p for one in found], [one.counts for one in found]))
        )
    step = max(1, _BLOCK_CELLS // max(len(pairs.sources), 1))
    blocks = [
        fit_em_tables(pairs, multiplicities[start : start + step], **_iterations(section))
        for start in range(0, len(multiplicities), step)
    ]
    return TransitionTables(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def warn_unless_converged(section: EstimateConfig, estimate: TransitionEstimate, name: str) -> None:
    """Log a warning when ``em_converged`` stopped at its last iteration."""
    if section.estimator == "em_converged" and estimate.num_iterations >= MOST_ITERATIONS:
        logger.warning(
            "the EM of %s did not converge in %d iterations; raise estimate.tolerance (%g)",
            name,
            MOST_ITERATIONS,
            section.tolerance,
        )


def _iterations(section: EstimateConfig) -> dict[str, Any]:
    """How EM goes on, and when it stops."""
    converge = section.estimator == "em_converged"
    num_iterations, damping = (MOST_ITERATIONS, 1.0) if converge else (section.num_iterations, section.damping)
    return {
        "num_iterations": num_iterations,
        "damping": damping,
        "prior": section.prior,
        "tolerance": section.tolerance,
    }
