"""The sequence model of a distilled annotator: a linear-chain conditional random field over labels.

    Pr(s_1 … s_T | x) ∝ exp( A[<start>, s_1] + Σ_t W[x_t]·s_t + Σ_t A[s_t, s_t+1] + A[s_T, <stop>] )

A segment may have two labels. What is maximised is the mean log-probability of two sequences, one with the first label
of each segment and one with its last, less ½ · l2 · (‖W‖² + ‖A‖²): so both labels are learned, each at half the weight.
(To ask only that one of them be right would let the chain forget every label that another one goes along with.) A
segment without labels may have any. Forward–backward is that of :mod:`mralign_core.method.hidden_chain`, whose matrix
need not be one of probabilities.

Shapes: T segments of all traces, F features, S labels, K = S + 2 states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.method import FloatArray
from mralign_core.method.hidden_chain import Expectation, VotedSteps, expect_chain, votes_by_step
from mralign_core.method.transitions import transition_mask

_MOST_ITERATIONS = 100


class LabelChain(NamedTuple):
    """A fitted chain.

    Args:
        emission: W, shape (F, S).
        transition: A, shape (K, K); 0 where the mask allows no transition.
    """

    emission: FloatArray
    transition: FloatArray

    def marginals(self, features: Any, lengths: Sequence[int]) -> FloatArray:
        """Pr(label of each segment | its trace), shape (T, S); rows sum to one.

        Args:
            features: sparse, (T, F).
            lengths: segments of each trace, which are together.
        """
        if not sum(lengths):
            return np.zeros((0, self.emission.shape[1]))
        expected, _ = _expect(features @ self.emission, self.transition, _lay_out(lengths, self.emission.shape[1]))
        return expected.states


def fit_label_chain(features: Any, lengths: Sequence[int], given: NDArray[np.bool_], l2: float) -> LabelChain:
    """Fit a chain by L-BFGS, from zero; the same numbers give the same chain.

    Args:
        features: sparse, (T, F).
        lengths: segments of each trace, which are together.
        given: (T, S) the labels of each segment, one or two, or none.
        l2: strength of the penalty, above 0.

    Raises:
        ValueError: ``l2`` is not above 0.
    """
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    if l2 <= 0:
        raise ValueError(f"l2 must be above 0, and is {l2}")
    used = np.flatnonzero(features.getnnz(axis=0))  # the penalty keeps the weights of all others at 0
    emission = np.zeros((features.shape[1], given.shape[1]))
    features, num_features, num_labels = features[:, used], len(used), given.shape[1]
    mask, laid_out = transition_mask(num_labels + 2) > 0, _lay_out(lengths, num_labels)
    by_feature, split = features.T.tocsr(), num_features * num_labels
    sequences = _sequences(given)

    def loss_and_gradient(theta: FloatArray) -> tuple[float, FloatArray]:
        chain = _unpack(theta, split, mask)
        scores = features @ chain.emission
        of_any, log_any = _expect(scores, chain.transition, laid_out)
        of_right = [_expect(scores, chain.transition, laid_out, allowed) for allowed in sequences]
        states = sum(each.states for each, _ in of_right) / len(of_right)
        transitions = sum(each.transitions for each, _ in of_right) / len(of_right)
        log_right = sum(log for _, log in of_right) / len(of_right)
        of_emission, of_transition = by_feature @ (of_any.states - states), (of_any.transitions - transitions)[mask]
        gradient = np.concatenate([of_emission.ravel(), of_transition]) + l2 * theta
        return log_any - log_right + 0.5 * l2 * float(theta @ theta), gradient

    start = np.zeros(split + int(mask.sum()))
    with threadpool_limits(1):  # of matrices this small, threads wait for each other: fourteen times the CPU time
        found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": _MOST_ITERATIONS})
    fitted = _unpack(found.x, split, mask)
    emission[used] = fitted.emission
    return LabelChain(emission, fitted.transition)


def _sequences(given: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """What each segment may be, (T, S): its first label, and its last one where that is another anywhere."""
    places = np.arange(given.shape[1])
    is_labelled = given.any(axis=1, keepdims=True)
    first = np.where(is_labelled, places == given.argmax(axis=1)[:, None], True)
    last = np.where(is_labelled, places == (len(places) - 1 - given[:, ::-1].argmax(axis=1))[:, None], True)
    return [first] if (first == last).all() else [first, last]


def _unpack(theta: FloatArray, split: int, mask: NDArray[np.bool_]) -> LabelChain:
    transition = np.zeros(mask.shape)
    transition[mask] = theta[split:]
    return LabelChain(theta[:split].reshape(-1, len(mask) - 2), transition)


def _lay_out(lengths: Sequence[int], num_labels: int) -> VotedSteps:
    """Traces laid out for forward–backward, where each segment has something of its own to say."""
    trace_of_segment = np.repeat(np.arange(len(lengths)), lengths)
    laid_out = votes_by_step(np.zeros((len(trace_of_segment), 1, 1), dtype=np.int64), trace_of_segment, num_labels + 2)
    return laid_out._replace(vote_of_row=np.argsort(laid_out.row_of_step))


def _expect(
    scores: FloatArray, transition: FloatArray, laid_out: VotedSteps, allowed: NDArray[np.bool_] | None = None
) -> tuple[Expectation, float]:
    """Expected labels and transitions, and the log of the sum over all sequences, or over the allowed ones."""
    highest = scores.max(axis=1, keepdims=True)
    potentials = np.exp(scores - highest)
    if allowed is not None:
        potentials = potentials * allowed
    said = np.concatenate([np.zeros((len(scores), 1)), potentials], axis=1)[:, None]
    as_said = np.eye(scores.shape[1] + 1)[None, 1:]
    mask = transition_mask(len(transition))
    expected = expect_chain(np.exp(transition) * mask, as_said, laid_out._replace(said=said))
    return expected, expected.log_likelihood + float(highest.sum())
