"""How far the estimate is from where EM would end, and what other estimators would give."""

from __future__ import annotations

from collections.abc import Mapping

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.estimation.corpus import CLASSES, POLARITY_OF, Corpus
from mralign_core.estimation.diagnostics.labelled_weights import labelled_weights
from mralign_core.estimation.diagnostics.result import Result
from mralign_core.estimation.diagnostics.survey import Survey
from mralign_core.estimation.estimators import make_matrix_estimator
from mralign_core.estimation.matrices import TransitionMatrices, estimate_corpus
from mralign_core.estimation.traces import batch_of_traces
from mralign_core.method.distances import WeightShift, weight_shift, weighted_distance
from mralign_core.method.taxonomy import Taxonomy


class Objective(Result):
    """The MAP objective, log-likelihood plus Dirichlet log-prior, before the first and after each iteration; nats."""

    matrix: str
    configured: tuple[float, ...]
    """As configured; one value where there are no iterations."""
    undamped: tuple[float, ...]
    """Undamped, to convergence, with the same prior."""


class EstimatorRow(Result):
    """An estimator beside the paper's five damped iterations on up to two labels a segment."""

    estimator: str
    l1: dict[str, float]
    """Distance from the paper's matrix, for each of P⁺, P⁻ and P."""
    shift: WeightShift


def em_objectives(corpus: Corpus, matrices: TransitionMatrices, section: EstimateConfig) -> tuple[Objective, ...]:
    """The objective of P⁺, P⁻ and P by iteration, as configured and to convergence."""
    converge = make_matrix_estimator(EstimateConfig(estimator="em_converged", prior=section.prior), corpus.num_states)
    return tuple(
        Objective(
            matrix=name,
            configured=tuple(matrices.estimates[name].log_posterior.tolist()),
            undamped=tuple(converge(corpus.pairs(POLARITY_OF.get(name))).log_posterior.tolist()),
        )
        for name in CLASSES
    )


def compare_estimators(
    surveys: Mapping[str, Survey], reward: RewardConfig, taxonomy: Taxonomy
) -> tuple[EstimatorRow, ...]:
    """The paper's five damped EM iterations beside EM to convergence, frequencies, values and single labels.

    The yardstick has up to two labels a segment whatever the run is configured to have. Matrices are of all traces;
    shifts are over the segments of the sample. Where votes were read, hidden labels are compared too.

    Args:
        surveys: the traces with up to "two" labels a segment, and with "one".
        reward: how weights are made of matrices.
        taxonomy: the labels.
    """
    variants: dict[str, tuple[Survey, EstimateConfig]] = {
        "paper": (surveys["two"], EstimateConfig()),
        "converged": (surveys["two"], EstimateConfig(estimator="em_converged")),
        "frequency": (surveys["two"], EstimateConfig(estimator="frequency")),
        "value": (surveys["two"], EstimateConfig(estimator="value")),
        "single label": (surveys["one"], EstimateConfig()),
    }
    if surveys["two"].corpus.by_vote is not None:
        variants["hidden"] = (surveys["two"], EstimateConfig(estimator="hidden"))
    matrices, weights = {}, {}
    for name, (survey, section) in variants.items():
        matrices[name] = estimate_corpus(survey.corpus, section, taxonomy)
        weights[name] = labelled_weights(batch_of_traces(survey.some), matrices[name], reward).weights
    paper = matrices["paper"].estimates
    return tuple(
        EstimatorRow(
            estimator=name,
            l1={
                key: weighted_distance(paper[key].p, matrices[name].estimates[key].p, paper["all"].counts)
                for key in CLASSES
            },
            shift=weight_shift(weights["paper"], weights[name]),
        )
        for name in variants
    )
