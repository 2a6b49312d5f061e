"""Estimate how traces move between meta-reasoning states (§3.2.2, Eq. 5–8, App. E, Algorithm 2).

A step has a set of one or two labels, of which one is taken to be active, each with equal chance (ρ = 1/|y|).
As in the paper, every transition draws its own pair of active labels: what is maximised is the product of Eq.
6 over the transitions, not the likelihood of a hidden chain that stays with one choice from one transition to
the next.

Decisions where the paper is silent (those of counting are in ``set_pairs``):

* The stop rule compares P with the P of the iteration before, so the first iteration never stops.
* Where there is neither a count nor a prior, a row stays uniform over what the mask allows.

Shapes: K states, U distinct pairs of label sets, V distinct sets that are left, W distinct sets that are entered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mralign_core.method import FloatArray
from mralign_core.method.set_pairs import SetPairCounts

Label = TypeVar("Label")


class TransitionEstimate(NamedTuple):
    """A transition matrix and what it was estimated from.

    Args:
        p: (K, K) transition probabilities; rows sum to one.
        posterior: (K, K) Dirichlet parameters, soft counts plus prior; zero where no transition is allowed.
        counts: (K, K) soft counts of the last E-step.
        log_likelihood: (num_iterations + 1,) Eq. 8 before the first and after each iteration.
        log_posterior: (num_iterations + 1,) the same plus log prior, up to a constant; EM never lowers it.
        num_iterations: EM iterations made; 0 for the frequency estimate.
    """

    p: FloatArray
    posterior: FloatArray
    counts: FloatArray
    log_likelihood: FloatArray
    log_posterior: FloatArray
    num_iterations: int


def transition_mask(num_states: int) -> FloatArray:
    """Allowed transitions, (K, K) ones and zeros: nothing enters <start>, <stop> leads only to itself.

    >>> transition_mask(3).astype(int).tolist()
    [[0, 1, 1], [0, 1, 1], [0, 0, 1]]
    """
    mask = np.ones((num_states, num_states))
    mask[:, 0] = 0
    mask[-1, :-1] = 0
    return mask


def set_transition_probs(p: FloatArray, sources: NDArray[np.bool_], targets: NDArray[np.bool_]) -> FloatArray:
    """Probabilities of many transitions between label sets, under one matrix or under each of several.

    Implements Eq. 6 and 7 of arXiv 2510.24794, Σ_{a∈source, b∈target} ρ(a) P_ab ρ(b) with ρ uniform.

    Args:
        p: (…, K, K) transition matrices.
        sources: (U, K) bool, membership of each state in the set that is left.
        targets: (U, K) bool, membership in the set that is entered.

    Returns:
        (…, U) probabilities.

    >>> p = np.array([[0.1, 0.9], [0.4, 0.6]])
    >>> set_transition_probs(p, np.array([[True, True]]), np.array([[False, True]])).tolist()
    [0.75]
    """
    sizes = sources.sum(axis=1) * targets.sum(axis=1)
    probs: FloatArray = base_pair_sums(p, sources, targets) / sizes
    return probs


def base_pair_sums(values: FloatArray, sources: NDArray[np.bool_], targets: NDArray[np.bool_]) -> FloatArray:
    """Per transition between label sets, the sum over its base pairs of any (…, K, K) array; (…, U).

    >>> counts = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> base_pair_sums(counts, np.array([[True, True]]), np.array([[False, True]])).tolist()
    [6.0]
    """
    sums: FloatArray = ((sources @ values) * targets).sum(axis=-1)
    return sums


class CrossTable(NamedTuple):
    """Set pairs as a table: far fewer distinct sets than pairs, so that the E-step is three small matrix products."""

    source_sets: FloatArray
    """(V, K) of ones and zeros."""
    target_sets: FloatArray
    """(W, K) of ones and zeros."""
    multiplicities: FloatArray
    """(V, W) occurrences."""


def cross_tabulate(pairs: SetPairCounts) -> CrossTable:
    """The same transitions by distinct set that is left, and distinct set that is entered.

    >>> states = np.eye(3, dtype=bool)
    >>> table = cross_tabulate(SetPairCounts(states[[0, 1, 1]], states[[1, 1, 2]], np.array([1, 4, 2]), 1, 0, 0))
    >>> table.multiplicities.tolist()  # {<start>} and {1} are left, {1} and {<stop>} entered
    [[1.0, 0.0], [4.0, 2.0]]
    """
    source_sets, row_U = _distinct_sets(pairs.sources)
    target_sets, column_U = _distinct_sets(pairs.targets)
    shape = (len(source_sets), len(target_sets))
    cells = np.bincount(row_U * shape[1] + column_U, pairs.multiplicities, minlength=shape[0] * shape[1])
    return CrossTable(source_sets, target_sets, cells.reshape(shape).astype(np.float64))


def log_likelihood(p: FloatArray, table: CrossTable) -> float:
    """Log-likelihood of the observed label sets in nats, -inf where one of them is impossible.

    Implements Eq. 8 of arXiv 2510.24794.

    >>> table = CrossTable(np.array([[0, 1.0, 0]]), np.array([[0, 0, 1.0]]), np.array([[1.0]]))  # 1 → <stop>, once
    >>> p = np.array([[0, 1.0, 0], [0, 0.75, 0.25], [0, 0, 1.0]])
    >>> round(log_likelihood(p, table), 4)  # log 0.25
    -1.3863
    """
    sizes = table.source_sets.sum(axis=1)[:, None] * table.target_sets.sum(axis=1)
    is_seen = table.multiplicities > 0
    with np.errstate(divide="ignore"):
        log_probs = np.log(_path_sums(p, table) / sizes, where=is_seen, out=np.zeros_like(sizes))
    return float((table.multiplicities * log_probs).sum())


def e_step(p: FloatArray, table: CrossTable) -> FloatArray:
    """Expected number of transitions between single states, given the label sets.

    Implements the E-step of Algorithm 2 of arXiv 2510.24794: the responsibility of (a, b) for a pair of sets
    is P_ab over the sum of P on all allowed base pairs, and uniform over those where that sum is zero.

    Args:
        p: (K, K) transition matrix, zero where no transition is allowed.
        table: the observed transitions.

    Returns:
        (K, K) soft counts; they sum to the number of transitions.

    >>> p = np.array([[0, 0.5, 0.3, 0.2], [0, 0.6, 0.2, 0.2], [0, 0.1, 0.1, 0.8], [0, 0, 0, 1.0]])
    >>> table = CrossTable(np.array([[1.0, 0, 0, 0]]), np.array([[0, 1.0, 1, 0]]), np.array([[1.0]]))
    >>> e_step(p, table)[0].round(3).tolist()  # <start> → {1, 2}, once
    [0.0, 0.625, 0.375, 0.0]
    """
    path_sums = _path_sums(p, table)
    is_possible = path_sums > 0
    shares = np.divide(table.multiplicities, path_sums, where=is_possible, out=np.zeros_like(path_sums))
    counts = _spread(p, table, shares)
    if is_possible.all():
        return counts
    mask = transition_mask(len(p))
    # A cell that even the mask excludes is one that never occurs, such as a set that leads to <start>.
    num_allowed = np.maximum(_path_sums(mask, table), 1.0)
    return counts + _spread(mask, table, np.where(is_possible, 0.0, table.multiplicities / num_allowed))


def m_step(counts: FloatArray, prior: float, mask: FloatArray) -> FloatArray:
    """Transition matrix with rows proportional to counts plus prior, under the mask (M-step of Algorithm 2).

    Args:
        counts: (K, K) soft counts.
        prior: Dirichlet pseudo-count of each allowed transition.
        mask: (K, K) of ones and zeros, from :func:`transition_mask`.

    Returns:
        (K, K), each row summing to one; a row without count and prior is uniform over its mask.

    >>> m_step(np.array([[0, 3.0, 0], [0, 1, 2], [0, 0, 0]]), 1.0, transition_mask(3)).tolist()
    [[0.0, 0.8, 0.2], [0.0, 0.4, 0.6], [0.0, 0.0, 1.0]]
    """
    posterior = (counts + prior) * mask
    row_sums = posterior.sum(axis=1, keepdims=True)
    uniform = mask / mask.sum(axis=1, keepdims=True)
    p: FloatArray = np.divide(posterior, row_sums, where=row_sums > 0, out=uniform)
    return p


def fit_em(
    pairs: SetPairCounts,
    num_states: int,
    *,
    num_iterations: int = 5,
    damping: float = 0.6,
    prior: float = 0.1,
    tolerance: float = 1e-6,
) -> TransitionEstimate:
    """Estimate the transition matrix by damped EM over the latent active labels.

    Implements Algorithm 2 of arXiv 2510.24794. What the M-step maximises is concave in P, so a damped step
    can't lower the penalised likelihood either.

    Args:
        pairs: the observed transitions.
        num_states: K.
        num_iterations: most iterations.
        damping: step towards the M-step's matrix, in (0, 1]; 1 is plain EM.
        prior: Dirichlet pseudo-count of each allowed transition, at least 0.
        tolerance: stop when no entry of P differs by this much from the iteration before.

    Raises:
        ValueError: ``pairs`` was counted with another number of states.

    >>> states = np.eye(3, dtype=bool)  # nine traces <start> → 1 → <stop>
    >>> pairs = SetPairCounts(states[:2], states[1:], np.array([9, 9]), num_traces=9, num_empty_steps=0,
    ...                       num_empty_traces=0)
    >>> estimate = fit_em(pairs, 3, damping=1.0, prior=1.0)
    >>> estimate.p.round(3).tolist(), estimate.num_iterations
    ([[0.0, 0.909, 0.091], [0.0, 0.091, 0.909], [0.0, 0.0, 1.0]], 2)
    """
    _check_num_states(pairs, num_states)
    mask = transition_mask(num_states)
    table = cross_tabulate(pairs)
    p, last = m_step(np.zeros_like(mask), 0.0, mask), None
    history = [_log_densities(p, table, prior, mask)]
    counts = np.zeros_like(mask)
    for _ in range(num_iterations):
        counts = e_step(p, table)
        p = (1 - damping) * p + damping * m_step(counts, prior, mask)
        history.append(_log_densities(p, table, prior, mask))
        if last is not None and np.abs(p - last).max() < tolerance:
            break
        last = p
    return _estimate(p, counts, prior, mask, history)


def fit_frequency(pairs: SetPairCounts, num_states: int, *, prior: float = 0.1) -> TransitionEstimate:
    """Estimate the transition matrix by counting: each set pair spreads one count evenly over its base pairs.

    The baseline that EM is compared with in Table 3 of arXiv 2510.24794.

    Args:
        pairs: the observed transitions.
        num_states: K.
        prior: Dirichlet pseudo-count of each allowed transition.

    Raises:
        ValueError: ``pairs`` was counted with another number of states.

    >>> start, either = np.array([[1, 0, 0, 0]], dtype=bool), np.array([[0, 1, 1, 0]], dtype=bool)
    >>> fit_frequency(SetPairCounts(start, either, np.array([1]), 1, 0, 0), 4).counts[0].tolist()
    [0.0, 0.5, 0.5, 0.0]
    """
    _check_num_states(pairs, num_states)
    mask = transition_mask(num_states)
    table = cross_tabulate(pairs)
    # With every allowed transition equally likely, responsibilities are even.
    counts = e_step(mask, table)
    p = m_step(counts, prior, mask)
    return _estimate(p, counts, prior, mask, [_log_densities(p, table, prior, mask)])


def estimate_of(p: FloatArray, pairs: SetPairCounts, *, prior: float = 0.1) -> TransitionEstimate:
    """A matrix that was found in another way, with the soft counts and the likelihood that transitions have under it.

    Args:
        p: (K, K) transition matrix.
        pairs: the transitions it is for.
        prior: Dirichlet pseudo-count of each allowed transition.

    Raises:
        ValueError: ``pairs`` was counted with another number of states.

    >>> states = np.eye(3, dtype=bool)  # nine traces <start> → 1 → <stop>
    >>> pairs = SetPairCounts(states[:2], states[1:], np.array([9, 9]), 9, 0, 0)
    >>> p = np.array([[0, 0.5, 0.5], [0, 0.5, 0.5], [0, 0, 1.0]])
    >>> estimate_of(p, pairs).counts[0].tolist()
    [0.0, 9.0, 0.0]
    """
    _check_num_states(pairs, len(p))
    table, mask = cross_tabulate(pairs), transition_mask(len(p))
    return _estimate(p, e_step(p, table), prior, mask, [_log_densities(p, table, prior, mask)])


def keep_most_confident(labels: Sequence[Label], confidences: Sequence[float]) -> tuple[Label, ...]:
    """The label with the highest confidence, the first of equals; none where there is none.

    This is "label diversity off" in Table 3 of arXiv 2510.24794.

    Raises:
        ValueError: there is not one confidence for each label.

    >>> keep_most_confident(("retrieval", "analogy"), (6.0, 8.0))
    ('analogy',)
    """
    if len(labels) != len(confidences):
        raise ValueError(f"{len(labels)} labels with {len(confidences)} confidences; there must be one for each")
    if not labels:
        return ()
    return (labels[int(np.argmax(confidences))],)


def _distinct_sets(member_UK: NDArray[np.bool_]) -> tuple[FloatArray, NDArray[np.intp]]:
    """The distinct rows, and for each row which of them it is."""
    code_U, first = np.zeros(len(member_UK), dtype=np.int64), np.zeros(0, dtype=np.intp)
    for start in range(0, member_UK.shape[1], 32):  # 32 states a time, so that codes of any K fit 64 bits
        columns = member_UK[:, start : start + 32]
        bits_U = columns @ (np.int64(1) << np.arange(columns.shape[1], dtype=np.int64))
        _, first, code_U = np.unique((code_U << 32) | bits_U, return_index=True, return_inverse=True)
    return member_UK[first].astype(np.float64), code_U


def _path_sums(p: FloatArray, table: CrossTable) -> FloatArray:
    """Per pair of sets, the sum of P over its base pairs, (V, W)."""
    sums: FloatArray = table.source_sets @ p @ table.target_sets.T
    return sums


def _spread(p: FloatArray, table: CrossTable, factor_VW: FloatArray) -> FloatArray:
    """Σ over pairs of sets of factor · P on their base pairs, (K, K)."""
    spread: FloatArray = p * (table.source_sets.T @ factor_VW @ table.target_sets)
    return spread


def _log_densities(p: FloatArray, table: CrossTable, prior: float, mask: FloatArray) -> tuple[float, float]:
    """Log-likelihood, and log-likelihood plus log prior."""
    likelihood = log_likelihood(p, table)
    log_prior = prior * float(np.log(p[mask > 0]).sum()) if prior > 0 else 0.0
    return likelihood, likelihood + log_prior


def _estimate(
    p: FloatArray, counts: FloatArray, prior: float, mask: FloatArray, history: list[tuple[float, float]]
) -> TransitionEstimate:
    likelihoods, posteriors = np.array(history).T
    return TransitionEstimate(p, counts + prior * mask, counts, likelihoods, posteriors, len(history) - 1)


def _check_num_states(pairs: SetPairCounts, num_states: int) -> None:
    if pairs.sources.shape[1] != num_states:
        raise ValueError(f"pairs were counted with {pairs.sources.shape[1]} states, num_states is {num_states}")
