"""The estimators behind one interface: set pairs in, transition estimate out."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mralign_core.config import EstimateConfig
from mralign_core.method.set_pairs import SetPairCounts
from mralign_core.method.transitions import TransitionEstimate, fit_em, fit_frequency

logger = logging.getLogger("mralign_core.estimation")

Estimator = Callable[[SetPairCounts], TransitionEstimate]
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
    converge = section.estimator == "em_converged"
    num_iterations, damping = (MOST_ITERATIONS, 1.0) if converge else (section.num_iterations, section.damping)
    return lambda pairs: fit_em(
        pairs,
        num_states,
        num_iterations=num_iterations,
        damping=damping,
        prior=section.prior,
        tolerance=section.tolerance,
    )


def warn_unless_converged(section: EstimateConfig, estimate: TransitionEstimate, name: str) -> None:
    """Log a warning when ``em_converged`` stopped at its last iteration."""
    if section.estimator == "em_converged" and estimate.num_iterations >= MOST_ITERATIONS:
        logger.warning(
            "the EM of %s did not converge in %d iterations; raise estimate.tolerance (%g)",
            name,
            MOST_ITERATIONS,
            section.tolerance,
        )
