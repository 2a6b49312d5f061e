"""The estimators behind one interface: the transitions of right traces, wrong traces and all in, P⁺, P⁻ and P out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from mralign_core.config import EstimateConfig
from mralign_core.estimation.corpus import CLASSES, POLARITY_OF, count_corpus
from mralign_core.estimation.em_tables import TransitionTables, expected_counts, fit_em_tables
from mralign_core.estimation.traces import LabelledTrace, batch_of_traces
from mralign_core.method import FloatArray, IntArray
from mralign_core.method.set_pairs import SetPairCounts
from mralign_core.method.state_values import conditioned_on_end, count_visits, state_values
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.method.transitions import TransitionEstimate, estimate_of, fit_em, fit_frequency

logger = logging.getLogger("mralign_core.estimation")

MatrixEstimator = Callable[[SetPairCounts], TransitionEstimate]
"""One matrix from the transitions it is of."""
Estimator = Callable[[Mapping[str, SetPairCounts]], dict[str, TransitionEstimate]]
"""P⁺, P⁻ and P from the transitions of each class of :data:`~.corpus.CLASSES`."""
_BLOCK_CELLS = 1 << 20
"""Pairs × tables that EM holds side by side (8 MB)."""
MOST_ITERATIONS = 10_000
"""Iterations after which ``em_converged`` gives up."""
FROM_LABELS = ("em", "em_converged", "frequency", "value")
"""The estimators that need nothing but consolidated labels and polarities."""


def make_estimator(section: EstimateConfig, num_states: int) -> Estimator:
    """The estimator that a config names.

    ``em`` is the paper's (Algorithm 2 of arXiv 2510.24794: at most five damped iterations), ``em_converged`` goes on
    undamped until no entry of P moves by the tolerance, ``frequency`` is the baseline of Table 3. These estimate each
    matrix from its own transitions. ``value`` takes P from all transitions, and P⁺ and P⁻ from it and the value of each
    state (:mod:`~mralign_core.method.state_values`). ``oracle`` takes the pocket grammar's own matrices, whatever the
    transitions.

    Args:
        section: the estimator and its settings.
        num_states: K.

    Raises:
        ValueError: the estimator is "hidden", which transitions between label sets are not enough for.

    >>> import numpy as np
    >>> states = np.eye(3, dtype=bool)  # one trace <start> → 1 → <stop>
    >>> pairs = SetPairCounts(states[:2], states[1:], np.array([1, 1]), 1, 0, 0)
    >>> fit = make_estimator(EstimateConfig(estimator="frequency"), num_states=3)
    >>> fit({"all": pairs})["all"].counts[0].tolist()
    [0.0, 1.0, 0.0]
    """
    if section.estimator == "oracle":
        return lambda pairs: {
            name: estimate_of(_grammar_matrices()[name], pairs[name], prior=section.prior) for name in pairs
        }
    fit = make_matrix_estimator(section, num_states)
    if section.estimator == "value":
        return lambda pairs: _fit_by_value(section, fit, pairs)
    return lambda pairs: {name: fit(pairs[name]) for name in pairs}


def make_matrix_estimator(section: EstimateConfig, num_states: int) -> MatrixEstimator:
    """How a config estimates a matrix from the transitions it is of; by value, how it estimates P.

    Args:
        section: the estimator and its settings.
        num_states: K.
    """
    if section.estimator == "frequency":
        return lambda pairs: fit_frequency(pairs, num_states, prior=section.prior)
    settings = _iterations(section)
    return lambda pairs: fit_em(pairs, num_states, **settings)


def estimate_tables(
    section: EstimateConfig, pairs: SetPairCounts, plus: IntArray, minus: IntArray, wanted: Sequence[str] = CLASSES
) -> dict[str, TransitionTables]:
    """What :func:`make_estimator` gives for many tables of the same pairs, those of EM side by side.

    Args:
        section: the estimator and its settings.
        pairs: the transitions; their own multiplicities are not read.
        plus: (H, U) occurrences of each pair in right traces, in each table.
        minus: (H, U) the same in wrong traces.
        wanted: the classes of matrices to estimate.
    """
    of_class = {"plus": plus, "minus": minus, "all": plus + minus}
    if section.estimator not in ("value", "oracle"):
        tables = _matrix_tables(section, pairs, np.concatenate([of_class[name] for name in wanted]))
        parts = zip(*(np.split(column, len(wanted)) for column in tables), strict=True)
        return {name: TransitionTables(*part) for name, part in zip(wanted, parts, strict=True)}
    if section.estimator == "value":
        visits = (count_visits(times, pairs.sources) for times in (plus, minus))
        p = _by_value(section, _matrix_tables(section, pairs, of_class["all"]).p, *visits)
    else:
        p = {name: np.repeat(matrix[None], len(plus), axis=0) for name, matrix in _grammar_matrices().items()}
    return {name: TransitionTables(p[name], expected_counts(p[name], pairs, of_class[name])) for name in wanted}


def warn_unless_converged(section: EstimateConfig, estimate: TransitionEstimate, name: str) -> None:
    """Log a warning when ``em_converged`` stopped at its last iteration."""
    if section.estimator == "em_converged" and estimate.num_iterations >= MOST_ITERATIONS:
        logger.warning(
            "the EM of %s did not converge in %d iterations; raise estimate.tolerance (%g)",
            name,
            MOST_ITERATIONS,
            section.tolerance,
        )


def _fit_by_value(
    section: EstimateConfig, fit: MatrixEstimator, pairs: Mapping[str, SetPairCounts]
) -> dict[str, TransitionEstimate]:
    """P from all transitions, P⁺ and P⁻ from it and the values of the states."""
    of_all = fit(pairs["all"])
    visits = (count_visits(pairs[name].multiplicities, pairs[name].sources) for name in POLARITY_OF)
    p = _by_value(section, of_all.p, *visits)
    return {name: of_all if name == "all" else estimate_of(p[name], pairs[name], prior=section.prior) for name in pairs}


def _by_value(
    section: EstimateConfig, p: FloatArray, right_visits: FloatArray, wrong_visits: FloatArray
) -> dict[str, FloatArray]:
    """P⁺, P⁻ and P, (…, K, K) each, from P and the visits to each state in right and in wrong traces, (…, K)."""
    # A row of P has the prior on each allowed transition; so has the column of a state, by which it is entered.
    values = state_values(right_visits, wrong_visits, prior=section.prior * p.shape[-1]).mean
    return {"plus": conditioned_on_end(p, values), "minus": conditioned_on_end(p, 1 - values), "all": p}


@cache
def _grammar_matrices() -> dict[str, FloatArray]:
    """P⁺, P⁻ and P of 45,000 traces that the pocket grammar writes about world 0, by its own labels; (K, K) each.

    Worlds differ in the share of neighbours with the right value alone, and it moves all labels alike.
    """
    from mralign_core.pocket.walks import grammar_walks
    from mralign_core.pocket.world import build_world

    state_of = {name: state for state, name in enumerate(PAPER_TAXONOMY.state_names)}
    traces = [
        LabelledTrace(
            str(number),
            "positive" if walk.is_right else "negative",
            [(state_of[label],) for label in walk.labels],
            list(range(len(walk.labels))),
        )
        for number, walk in enumerate(grammar_walks(build_world(seed=0), 50, seed=0))
    ]
    corpus = count_corpus([batch_of_traces(traces)], len(state_of))
    return {name: fit_frequency(corpus.pairs(POLARITY_OF.get(name)), len(state_of)).p for name in CLASSES}


def _matrix_tables(section: EstimateConfig, pairs: SetPairCounts, multiplicities: IntArray) -> TransitionTables:
    """What :func:`make_matrix_estimator` gives for many tables of the same pairs."""
    if section.estimator == "frequency":
        num_states = pairs.sources.shape[1]
        fit = make_matrix_estimator(section, num_states)
        found = [fit(pairs._replace(multiplicities=table)) for table in multiplicities]
        shape = (-1, num_states, num_states)
        return TransitionTables(
            *(np.reshape(column, shape) for column in ([one.p for one in found], [one.counts for one in found]))
        )
    step = max(1, _BLOCK_CELLS // max(len(pairs.sources), 1))
    blocks = [
        fit_em_tables(pairs, multiplicities[start : start + step], **_iterations(section))
        for start in range(0, len(multiplicities), step)
    ]
    return TransitionTables(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def _iterations(section: EstimateConfig) -> dict[str, Any]:
    """How EM goes on, and when it stops."""
    if section.estimator == "hidden":
        raise ValueError("hidden labels are estimated from votes, not from transitions between label sets")
    converge = section.estimator == "em_converged"
    num_iterations, damping = (MOST_ITERATIONS, 1.0) if converge else (section.num_iterations, section.damping)
    return {
        "num_iterations": num_iterations,
        "damping": damping,
        "prior": section.prior,
        "tolerance": section.tolerance,
    }
