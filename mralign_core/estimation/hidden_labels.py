"""P⁺, P⁻ and P where true labels are hidden: what each annotator said is evidence, and no label is final.

A departure from the paper, off by default (``estimate.estimator: hidden``). Annotator a, annotator b and the
adjudicator are three channels of :mod:`~mralign_core.method.hidden_chain`, estimated from all traces at once, with one
matrix for right traces and one for wrong ones. Under these channels, each of P⁺, P⁻ and P is then the matrix of a
hidden chain of its own traces, pooled or of one stratum.

* The adjudicator was asked only where the two annotators differ, which their votes say, and it saw them: its channel is
  that of disputed steps. That it errs apart from the other two is not quite so.
* Consolidation, confidences and ``labels_per_segment`` take no part in the matrices. Weights are those of consolidated
  label sets all the same, under these matrices.
* A step that no one labelled is a step of the chain; where weights are made, the move passes over it.
* The bootstrap resamples questions and keeps the channels, so that what is not known of these is not in the intervals.

What needs thousands of estimates takes transitions between consolidated label sets instead
(:func:`from_label_sets`).

Shapes: N traces, T steps, A annotators, R resamples, S labels, K states.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.config import EstimateConfig
from mralign_core.estimation.corpus import CLASSES, Corpus
from mralign_core.method import FloatArray, IntArray
from mralign_core.method.by_question import question_kinds, resample_questions
from mralign_core.method.hidden_chain import VotedSteps, channel_prior, fit_channels, fit_hidden_chain, votes_by_step
from mralign_core.method.transitions import TransitionEstimate

logger = logging.getLogger("mralign_core.estimation")

RIGHT_PRIOR, WRONG_PRIOR = 50.0, 0.5
"""Pseudo-counts of an annotator's saying the true label, and of each other thing it may say. With fewer for the true
one, channels of rare labels drift: on 300 traces of a pocket world, the error of log P⁺/P⁻ was a third larger at 10."""
MOST_ITERATIONS = 1000
"""Iterations after which EM over hidden labels gives up."""
RESAMPLE_TOLERANCE = 1e-3
"""Where EM stops in a resample, which it enters with the matrix of all traces. On 2,000 pocket traces the spread of
log P over resamples is .997 of what it is with 1e-6, at 60 % of the time."""


class _Group(NamedTuple):
    """The traces behind one matrix: their numbers, (n,), and their steps."""

    traces: IntArray
    steps: VotedSteps


class HiddenLabels:
    """Estimates matrices from what annotators said, of one stratum or (None) of all traces, under the same channels.

    Args:
        corpus: with votes; at least one trace of each polarity.
        section: ``prior``, ``tolerance``, ``num_resamples``.

    Raises:
        ValueError: the corpus has no votes.
    """

    def __init__(self, corpus: Corpus, section: EstimateConfig) -> None:
        self._strata, self._voted = corpus.strata, corpus.voted
        self._section, self._num_states = section, corpus.num_states
        found = fit_channels(
            [self._group(self._voted.is_positive == sign).steps for sign in (True, False)],
            prior=section.prior,
            prior_of_channels=channel_prior(self._num_states - 2, RIGHT_PRIOR, WRONG_PRIOR),
            num_iterations=MOST_ITERATIONS,
            tolerance=section.tolerance,
        )
        self._warn_unless_converged("the channels", found.num_iterations)
        self.channels = found.channels
        """(A, S, S + 1) probability of what each annotator says of each true label; "none" first."""

    def fit(self, where: str | None) -> dict[str, TransitionEstimate]:
        """P⁺, P⁻ and P."""
        found = {name: self._fit(group) for name, group in self._groups(where).items()}
        for name, estimate in found.items():
            of_stratum = "" if where is None else f" in stratum {where!r}"
            self._warn_unless_converged(name + of_stratum, estimate.num_iterations)
        return found

    def draw(
        self,
        wheres: Sequence[str | None],
        rng: np.random.Generator,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str | None, dict[str, NDArray[np.float32]]]:
        """The same, (R, K, K) by class, of bootstrap resamples of questions; the same resamples in each.

        Args:
            wheres: strata, or None.
            rng: decides what is drawn.
            on_progress: called with (done, total) resamples.
        """
        num_resamples = self._section.num_resamples
        shape = (num_resamples, self._num_states, self._num_states)
        groups = {(where, name): group for where in wheres for name, group in self._groups(where).items()}
        of_all = {key: self._fit(group).p for key, group in groups.items()}
        draws = {key: np.empty(shape, dtype=np.float32) for key in groups}
        kinds = question_kinds(self._voted.questions, self._voted.is_positive)
        for resample, drawn in enumerate(resample_questions(kinds, num_resamples, rng)):
            times = drawn[self._voted.questions].astype(np.float64)
            for key, group in groups.items():
                draws[key][resample] = self._fit(group, times[group.traces], of_all[key]).p
            if on_progress:
                on_progress(resample + 1, num_resamples)
        return {where: {name: draws[where, name] for name in CLASSES} for where in wheres}

    def _groups(self, where: str | None) -> dict[str, _Group]:
        """The traces of each of :data:`~.corpus.CLASSES`."""
        is_positive = self._voted.is_positive
        chosen = np.ones_like(is_positive) if where is None else self._voted.strata == self._strata.index(where)
        of_class = {"plus": chosen & is_positive, "minus": chosen & ~is_positive, "all": chosen}
        return {name: self._group(of_class[name]) for name in CLASSES}

    def _group(self, chosen: NDArray[np.bool_]) -> _Group:
        steps = chosen[self._voted.trace_of_step]
        return _Group(
            np.flatnonzero(chosen),
            votes_by_step(
                self._voted.votes[steps].astype(np.int64), self._voted.trace_of_step[steps], self._num_states
            ),
        )

    def _fit(
        self, group: _Group, times: FloatArray | None = None, first_p: FloatArray | None = None
    ) -> TransitionEstimate:
        return fit_hidden_chain(
            group.steps,
            self.channels,
            times=times,
            first_p=first_p,
            prior=self._section.prior,
            num_iterations=MOST_ITERATIONS,
            tolerance=self._section.tolerance if times is None else max(self._section.tolerance, RESAMPLE_TOLERANCE),
        )

    def _warn_unless_converged(self, name: str, num_iterations: int) -> None:
        if num_iterations >= MOST_ITERATIONS:
            logger.warning(
                "EM over hidden labels did not converge in %d iterations for %s; raise estimate.tolerance (%g)",
                MOST_ITERATIONS,
                name,
                self._section.tolerance,
            )


OF_LABEL_SETS = "hidden labels are estimated from all annotators at once; these matrices are those of em_converged"
"""Said where :func:`from_label_sets` took the place of hidden labels."""


def from_label_sets(section: EstimateConfig) -> EstimateConfig:
    """The same section, or with hidden labels its nearest that is a function of transitions between label sets.

    >>> from_label_sets(EstimateConfig(estimator="hidden", prior=0.5)).estimator
    'em_converged'
    """
    return section.model_copy(update={"estimator": "em_converged"}) if section.estimator == "hidden" else section
