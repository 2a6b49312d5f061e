"""How much of the weights is each trace's own question: what they lose when it takes no part in the matrices."""

from __future__ import annotations

import numpy as np

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.estimation.diagnostics.labelled_weights import labelled_weights, labelled_weights_by
from mralign_core.estimation.diagnostics.result import Result
from mralign_core.estimation.diagnostics.survey import Survey
from mralign_core.estimation.left_out import LeftOutWeigher
from mralign_core.estimation.matrices import estimate_corpus
from mralign_core.estimation.traces import batch_of_traces
from mralign_core.method.distances import WeightShift, unexplained_share, weight_shift
from mralign_core.method.taxonomy import Taxonomy


class OwnQuestion(Result):
    """Weights as the run makes them, beside those of matrices without the trace's own question."""

    own_share: float | None
    """1 − R² of log w, w estimated with the own question, on log w without it, over labelled segments: the share of the
    variance of log w that other questions don't account for. None where either does not vary."""
    shift: WeightShift


def own_question_pull(
    survey: Survey, estimate: EstimateConfig, reward: RewardConfig, *, taxonomy: Taxonomy
) -> OwnQuestion:
    """What leaving a trace's own question out of the matrices does to its weights.

    Matrices are estimated from all traces; shares and shifts are over the segments of the sample.

    Args:
        survey: the traces as the estimator saw them.
        estimate: the configured estimator.
        reward: the configured weights.
        taxonomy: the labels.
    """
    corpus, batch = survey.corpus, batch_of_traces(survey.some)
    matrices = estimate_corpus(corpus, estimate, taxonomy)
    with_it = labelled_weights(batch, matrices, reward).weights
    without = labelled_weights_by(LeftOutWeigher(matrices, reward, corpus, estimate), batch).weights
    share = unexplained_share(np.log(with_it), np.log(without))
    return OwnQuestion(own_share=None if np.isnan(share) else share, shift=weight_shift(with_it, without))
