"""How sure are the transition matrices and the weights? One result with everything that the estimate stage can tell.

What is compared is always what training will see: the weights of the segments. A shift between two sets of weights is
the mean |log w − log w′| over labelled segments, and the share of them on the other side of 1. Distances between two
matrices are L1 distances of rows (0 equal, 2 nothing in common), averaged over rows in proportion to how often each
state is left in all traces.

A file a question: ``survey`` (which traces are looked at), ``discrimination`` (do the labels tell right from wrong on
questions not seen? it comes first), ``support`` (what each matrix rests on), ``convergence``, ``chains`` (stationarity
and order), ``strata``, ``own_question``, ``sensitivity``. What can't be computed is None, and ``skipped`` says
why.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.estimation.chain_tests import OrderComparison, StationarityTest
from mralign_core.estimation.diagnostics.chains import order_of, stationarity_of
from mralign_core.estimation.diagnostics.convergence import EstimatorRow, Objective, compare_estimators, em_objectives
from mralign_core.estimation.diagnostics.discrimination import Discrimination, discriminate
from mralign_core.estimation.diagnostics.own_question import OwnQuestion, own_question_pull
from mralign_core.estimation.diagnostics.result import Result
from mralign_core.estimation.diagnostics.sensitivity import Sensitivity, weight_sensitivity
from mralign_core.estimation.diagnostics.strata import Strata, compare_strata
from mralign_core.estimation.diagnostics.support import Yield, matrix_yields
from mralign_core.estimation.diagnostics.survey import Survey
from mralign_core.estimation.hidden_labels import from_label_sets
from mralign_core.estimation.matrices import TransitionMatrices, estimate_corpus
from mralign_core.method.taxonomy import Taxonomy

OF_LABEL_SETS = (
    "what takes many estimates (held-out AUC, objectives, distances between strata, the own question's pull, other "
    "settings) is told of EM to convergence on consolidated labels instead"
)


class Diagnostics(Result):
    """Everything; parts are None where ``skipped`` has the reason under their name."""

    discrimination: tuple[Discrimination, ...]
    """By estimator, the configured one first."""
    yields: tuple[Yield, ...]
    objectives: tuple[Objective, ...]
    estimators: tuple[EstimatorRow, ...]
    stationarity: dict[str, StationarityTest | None]
    """By polarity."""
    order: dict[str, OrderComparison | None]
    """By polarity."""
    strata: Strata
    own_question: OwnQuestion
    sensitivity: Sensitivity
    used_traces: dict[str, int]
    """Traces that were looked at one by one: for stationarity and order ("positive", "negative"), and for
    discrimination, strata and shifts ("strata and weights"). All that have a label, or a seeded sample of
    :data:`~.survey.MAX_TRACES`; all else is of all traces."""
    skipped: dict[str, str]

    def to_json(self) -> str:
        """As JSON text."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str) -> Diagnostics:
        """Read what :meth:`to_json` wrote."""
        return cls.model_validate_json(text)


def diagnose(
    surveys: Mapping[str, Survey],
    matrices: TransitionMatrices,
    estimate: EstimateConfig,
    reward: RewardConfig,
    rng: np.random.Generator,
    *,
    taxonomy: Taxonomy,
) -> Diagnostics:
    """Everything that can be said about matrices and weights from the traces they were estimated from.

    Args:
        surveys: the traces with up to "two" labels a segment, and with "one"; the samples are of the same traces.
        matrices: what the estimator made of those with ``estimate.labels_per_segment``.
        estimate: how.
        reward: how weights are made of the matrices.
        rng: seeded generator of folds, permutations, simulations and bootstraps.
        taxonomy: the labels.
    """
    skipped: dict[str, str] = {}
    survey = surveys[estimate.labels_per_segment]
    matrices_by_sets, by_sets = matrices, from_label_sets(estimate)
    if by_sets is not estimate:
        skipped["hidden labels"] = OF_LABEL_SETS
        matrices_by_sets = estimate_corpus(survey.corpus, by_sets, taxonomy)
    return Diagnostics(
        discrimination=discriminate(survey.some, taxonomy.num_states, by_sets, rng, skipped),
        yields=matrix_yields(survey.corpus, matrices),
        objectives=em_objectives(survey.corpus, matrices_by_sets, by_sets),
        estimators=compare_estimators(surveys, reward, taxonomy),
        stationarity={
            name: stationarity_of(name, group, taxonomy, rng, skipped) for name, group in survey.tested.items()
        },
        order={name: order_of(name, group, rng, skipped) for name, group in survey.tested.items()},
        strata=compare_strata(survey.some, matrices, by_sets, reward, rng, skipped),
        own_question=own_question_pull(survey, by_sets, reward, taxonomy=taxonomy),
        sensitivity=weight_sensitivity(survey, estimate, reward, taxonomy=taxonomy),
        used_traces={
            **{name: len(group) for name, group in survey.tested.items()},
            "strata and weights": len(survey.some),
        },
        skipped=skipped,
    )
