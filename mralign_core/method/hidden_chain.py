"""Estimate how traces move where true labels are hidden, and each annotator is a noisy channel.

An addition to the paper. Its EM takes one of a step's consolidated labels to be right, and draws it anew for each
transition. Here a step has one true label s; these form a Markov chain, and annotator a says o with probability
C_a[s, o], whatever the other annotators say and whatever it says of other steps:

    Pr(votes | P, C) = Σ over s_1 … s_T of P[<start>, s_1] · Π_t P[s_t, s_t+1] · Π_t Π_a C_a[s_t, what a says of t]

with s_T+1 = <stop>. What is maximised is this times Dirichlet priors: of each row of P, with ``prior`` for each allowed
transition as in ``transitions``, and of each row of C_a. EM (Baum–Welch) never lowers it.

* "None" is something that an annotator says. One that said nothing, since it was not asked or its reply is missing, is
  a factor of 1; what decides that it is not asked must be in the other votes, not in the true label.
* One that gave two labels says either with equal chance: its factor is the mean of C_a[s, o] over them.
* A step without any label is a step of the chain like others; ``transitions`` skips it.

Nothing but the channels ties a state to the label that it is named after. A prior that favours the diagonal does it
while annotators are right more often than not; see :func:`channel_prior`.

Memory is about 40 · S bytes a step.

Shapes: N traces, T steps of all traces, A annotators, L most labels of a vote, S = K − 2 labels, O = S + 1 things to
say (0 "none", else the label's state), D distinct votes of all annotators on a step, G groups of traces, K states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mralign_core.method import FloatArray, IntArray
from mralign_core.method.transitions import TransitionEstimate, m_step, transition_mask

NOT_ASKED = -1
"""In the first place of a vote: this annotator said nothing about the step, not even that it has no label."""
AGREEMENT_OF_ONE = 0.8
"""Agreement that is assumed at the start where no step has two annotators."""


class VotedSteps(NamedTuple):
    """What annotators said of each step, laid out for forward–backward; made by :func:`votes_by_step`.

    Rows are steps: first those that are the first step of a trace, then all second steps, and so on, traces from the
    longest to the shortest. So the traces that go on are always the first ones, and nothing is padded.

    Args:
        said: (D, A, O) for each distinct vote the share of what was said, summing to one or, where an annotator was not
            asked, to zero.
        vote_of_row: (T,) which of them each row is.
        trace_of_row: (T,) number of the row's trace, in the order given.
        row_of_step: (T,) row of each step, in the order given.
        num_going: traces that have a first step, a second, …; never rising.
    """

    said: FloatArray
    vote_of_row: IntArray
    trace_of_row: IntArray
    row_of_step: IntArray
    num_going: tuple[int, ...]

    @property
    def num_traces(self) -> int:
        """N."""
        return self.num_going[0] if self.num_going else 0


class Expectation(NamedTuple):
    """What forward–backward expects of hidden labels.

    Args:
        transitions: (K, K) expected transitions.
        states: (D, S) expected steps with each distinct vote that have each label.
        log_likelihood: of all votes, in nats.
    """

    transitions: FloatArray
    states: FloatArray
    log_likelihood: float


class ChannelEstimate(NamedTuple):
    """How annotators err, estimated together with one transition matrix for each group of traces.

    Args:
        channels: (A, S, O) C_a[s, o]; rows sum to one.
        counts: (A, S, O) expected number of times each was said.
        p: (G, K, K) transition matrices.
        log_posterior: (num_iterations + 1,) before the first and after each iteration; never falls.
        num_iterations: EM iterations made.
    """

    channels: FloatArray
    counts: FloatArray
    p: FloatArray
    log_posterior: FloatArray
    num_iterations: int


def votes_by_step(votes: IntArray, trace_of_step: IntArray, num_states: int) -> VotedSteps:
    """Lay out what annotators said for forward–backward.

    Args:
        votes: (T, A, L) states of the labels that each annotator gave, 0 behind the last; all 0 for "none", and
            ``NOT_ASKED`` first where it said nothing.
        trace_of_step: (T,) which trace each step belongs to, never falling; the steps of a trace are in order.
        num_states: K.

    Raises:
        ValueError: the shapes don't fit, the steps of a trace are not together, or a state is no label's.

    >>> votes = np.array([[[1, 0]], [[0, 0]], [[1, 2]]])  # one annotator; traces of one step and of two
    >>> steps = votes_by_step(votes, np.array([0, 1, 1]), 4)
    >>> steps.said[steps.vote_of_row, 0].tolist(), steps.num_going  # the longer trace comes first
    ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]], (2, 1))
    """
    if votes.ndim != 3 or len(votes) != len(trace_of_step):
        raise ValueError(f"votes have shape {votes.shape} and there are {len(trace_of_step)} steps; need (steps, A, L)")
    if (np.diff(trace_of_step) < 0).any():
        raise ValueError("the steps of a trace must be together, and traces in ascending order")
    if votes.size and (votes.max() > num_states - 2 or votes.min() < NOT_ASKED):
        raise ValueError(f"states of votes must be from 1 to {num_states - 2}, 0 for none, {NOT_ASKED} for not asked")
    distinct, vote_of_step = np.unique(votes.reshape(len(votes), -1), axis=0, return_inverse=True)
    _, first_of_trace, lengths = np.unique(trace_of_step, return_index=True, return_counts=True)
    trace_of_step = np.repeat(np.arange(len(lengths)), lengths)
    place_in_trace = np.arange(len(votes)) - first_of_trace[trace_of_step]
    step_of_row = np.lexsort((trace_of_step, -lengths[trace_of_step], place_in_trace))
    row_of_step = np.empty_like(step_of_row)
    row_of_step[step_of_row] = np.arange(len(votes))
    return VotedSteps(
        _shares(distinct.reshape(-1, *votes.shape[1:]), num_states - 1),
        vote_of_step.reshape(-1)[step_of_row],
        trace_of_step[step_of_row],
        row_of_step,
        tuple(np.bincount(place_in_trace).tolist()),
    )


def channel_prior(num_labels: int, right: float, wrong: float) -> FloatArray:
    """Dirichlet pseudo-counts of an annotator that is right more often than not, (S, O).

    They keep each state to its label. Where a label is so rare that ``right`` outweighs it, an annotator is taken to be
    right about it; where labels are many and annotators poor, nothing else hinders two states from changing places.

    Args:
        num_labels: S.
        right: pseudo-count of saying the true label.
        wrong: pseudo-count of each other label and of "none".

    >>> channel_prior(2, right=10.0, wrong=0.5).tolist()
    [[0.5, 10.0, 0.5], [0.5, 0.5, 10.0]]
    """
    prior = np.full((num_labels, num_labels + 1), wrong)
    prior[np.arange(num_labels), np.arange(1, num_labels + 1)] = right
    return prior


def first_channels(groups: Sequence[VotedSteps]) -> FloatArray:
    """Channels to begin EM with, (A, S, O), near the diagonal: every annotator errs alike, whatever the label.

    Two that are right with chance q, and seldom err alike, agree on q² of the steps that both label. So q is the root
    of the agreement (that of two labels drawn from their votes), kept in [0.5, 0.99]; "none" is as frequent as it was
    said, kept in [0.001, 0.5].

    Args:
        groups: the traces, at least one group.

    >>> votes = np.array([[[1], [1]], [[1], [2]], [[2], [2]], [[2], [1]]])  # two annotators agree on 2 of 4 steps
    >>> first_channels([votes_by_step(votes, np.arange(4), 4)])[0].round(3).tolist()
    [[0.001, 0.706, 0.293], [0.001, 0.293, 0.706]]
    """
    said = np.concatenate([group.said for group in groups])
    times = np.concatenate([np.bincount(group.vote_of_row, minlength=len(group.said)) for group in groups])
    num_annotators, num_labels = said.shape[1], said.shape[2] - 1
    labelled, asked = said[:, :, 1:], said.any(axis=2)
    both = np.triu(np.einsum("d,das,dbt->ab", times, labelled, labelled), k=1)
    alike = np.triu(np.einsum("d,das,dbs->ab", times, labelled, labelled), k=1)
    agreement = alike.sum() / both.sum() if both.sum() else AGREEMENT_OF_ONE
    right = np.clip(np.sqrt(agreement), 0.5, 0.99)
    none = np.clip(times @ said[:, :, 0] / np.maximum(times @ asked, 1), 0.001, 0.5)
    channels = np.empty((num_annotators, num_labels, num_labels + 1))
    channels[:, :, 0] = none[:, None]
    confusion = np.full((num_labels, num_labels), (1 - right) / max(num_labels - 1, 1))
    np.fill_diagonal(confusion, right if num_labels > 1 else 1.0)
    channels[:, :, 1:] = (1 - none)[:, None, None] * confusion
    return channels


def expect_chain(
    p: FloatArray, channels: FloatArray, steps: VotedSteps, times: FloatArray | None = None
) -> Expectation:
    """Expected transitions and states, given what annotators said: the E-step, by forward–backward.

    Args:
        p: (K, K) transition matrix.
        channels: (A, S, O) what annotators say of each true label.
        steps: what they said, of at least one trace.
        times: (N,) how often each trace counts; once each, if not given.

    Raises:
        ValueError: the votes on a trace are impossible.

    >>> p = np.array([[0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5], [0, 0.5, 0, 0.5], [0, 0, 0, 1.0]])
    >>> channels = np.array([[[0.0, 0.75, 0.25], [0.0, 0.25, 0.75]]])
    >>> steps = votes_by_step(np.array([[[1]]]), np.array([0]), 4)  # one step, of which one annotator says 1
    >>> expect_chain(p, channels, steps).states.tolist()
    [[0.75, 0.25]]
    """
    return _expect(p, _said_probs(channels, steps), steps, times)


def state_posteriors(p: FloatArray, channels: FloatArray, steps: VotedSteps) -> FloatArray:
    """Probability of each true label of each step, given all votes on its trace; (T, S) in the order of the steps.

    Args:
        p: (K, K) transition matrix.
        channels: (A, S, O) what annotators say of each true label.
        steps: what they said.

    Raises:
        ValueError: the votes on a trace are impossible.

    >>> p = np.array([[0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5], [0, 0.5, 0, 0.5], [0, 0, 0, 1.0]])
    >>> channels = np.array([[[0.0, 0.75, 0.25], [0.0, 0.25, 0.75]]])
    >>> steps = votes_by_step(np.array([[[1]], [[-1]]]), np.array([0, 0]), 4)  # 1, then an unlabelled step
    >>> state_posteriors(p, channels, steps).tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """
    emission = _said_probs(channels, steps)[steps.vote_of_row]
    passes = _forward_backward(p, emission, steps, np.ones(len(emission)))
    return passes.posteriors[steps.row_of_step]


def fit_channels(
    groups: Sequence[VotedSteps],
    *,
    prior: float = 0.1,
    prior_of_channels: FloatArray,
    num_iterations: int = 500,
    tolerance: float = 1e-4,
) -> ChannelEstimate:
    """Estimate how annotators err, with a transition matrix for each group of traces (EM over hidden labels).

    Args:
        groups: what the same annotators said, of at least one trace in each group.
        prior: Dirichlet pseudo-count of each allowed transition, above 0.
        prior_of_channels: (S, O) pseudo-counts of each annotator's channel, above 0; from :func:`channel_prior`.
        num_iterations: most iterations.
        tolerance: stop when no probability moved by this much.

    Raises:
        ValueError: a prior is not above 0.

    >>> votes = np.array([[[1], [1]], [[2], [2]]])  # 1 → 2, 50 times, and two annotators that always agree
    >>> steps = votes_by_step(np.tile(votes, (50, 1, 1)), np.repeat(np.arange(50), 2), 4)
    >>> found = fit_channels([steps], prior_of_channels=channel_prior(2, right=10.0, wrong=0.5))
    >>> found.channels[0].round(2).tolist(), found.p[0, 1].round(2).tolist()
    ([[0.01, 0.98, 0.01], [0.01, 0.01, 0.98]], [0.0, 0.0, 1.0, 0.0])
    """
    if prior <= 0 or (prior_of_channels <= 0).any():
        raise ValueError("pseudo-counts of transitions and channels must be above 0, so that no vote is impossible")
    mask = transition_mask(len(prior_of_channels) + 2)
    channels = first_channels(groups)
    p = np.stack([mask / mask.sum(axis=1, keepdims=True)] * len(groups))
    expected = _expect_groups(p, channels, groups)
    history = [_log_posterior(p, channels, expected, prior * mask, prior_of_channels)]
    for _ in range(num_iterations):
        last_p, last_channels = p, channels
        p = np.stack([m_step(each.transitions, prior, mask) for each in expected])
        channels = _said_counts(channels, groups, expected) + prior_of_channels
        channels /= channels.sum(axis=2, keepdims=True)
        expected = _expect_groups(p, channels, groups)
        history.append(_log_posterior(p, channels, expected, prior * mask, prior_of_channels))
        if max(np.abs(p - last_p).max(), np.abs(channels - last_channels).max()) < tolerance:
            break
    counts = _said_counts(channels, groups, expected)
    return ChannelEstimate(channels, counts, p, np.array(history), len(history) - 1)


def fit_hidden_chain(
    steps: VotedSteps,
    channels: FloatArray,
    *,
    times: FloatArray | None = None,
    first_p: FloatArray | None = None,
    prior: float = 0.1,
    num_iterations: int = 500,
    tolerance: float = 1e-4,
) -> TransitionEstimate:
    """Estimate the transition matrix of hidden labels, with known channels (EM over hidden labels).

    Args:
        steps: what annotators said.
        channels: (A, S, O) what they say of each true label, from :func:`fit_channels`.
        times: (N,) how often each trace counts; once each, if not given.
        first_p: (K, K) where EM begins; uniform over what the mask allows, if not given.
        prior: Dirichlet pseudo-count of each allowed transition, at least 0.
        num_iterations: most iterations.
        tolerance: stop when no entry of P moved by this much.

    Returns:
        The estimate; its counts are the expected transitions under its P.

    Raises:
        ValueError: the votes on a trace are impossible.

    >>> right = np.eye(3)[None, 1:]  # an annotator that never errs; 1 → 2, once
    >>> steps = votes_by_step(np.array([[[1]], [[2]]]), np.array([0, 0]), 4)
    >>> fit_hidden_chain(steps, right, prior=1.0).p.round(2).tolist()[:2]
    [[0.0, 0.5, 0.25, 0.25], [0.0, 0.25, 0.5, 0.25]]
    """
    mask = transition_mask(channels.shape[1] + 2)
    p = mask / mask.sum(axis=1, keepdims=True) if first_p is None else first_p
    said_probs = _said_probs(channels, steps)
    expected = _expect(p, said_probs, steps, times)
    history = [(expected.log_likelihood, _log_prior(p, prior * mask))]
    for _ in range(num_iterations):
        last, p = p, m_step(expected.transitions, prior, mask)
        expected = _expect(p, said_probs, steps, times)
        history.append((expected.log_likelihood, _log_prior(p, prior * mask)))
        if np.abs(p - last).max() < tolerance:
            break
    log_likelihoods, log_priors = np.array(history).T
    counts = expected.transitions
    return TransitionEstimate(
        p, counts + prior * mask, counts, log_likelihoods, log_likelihoods + log_priors, len(history) - 1
    )


class _Passes(NamedTuple):
    """What the forward and the backward pass found."""

    posteriors: FloatArray
    """(T, S) Pr(label | all votes on the trace)."""
    moves: FloatArray
    """(S, S) expected transitions between labels."""
    log_norms: FloatArray
    """(T,) whose sum over a trace is its log-likelihood."""


def _expect(p: FloatArray, said_probs: FloatArray, steps: VotedSteps, times: FloatArray | None) -> Expectation:
    times_T = np.ones(len(steps.vote_of_row)) if times is None else times[steps.trace_of_row]
    passes = _forward_backward(p, said_probs[steps.vote_of_row], steps, times_T)
    posteriors = passes.posteriors * times_T[:, None]
    transitions = np.zeros_like(p)
    transitions[0, 1:-1] = posteriors[: steps.num_traces].sum(axis=0)
    transitions[1:-1, 1:-1] = passes.moves
    transitions[1:-1, -1] = posteriors[_last_rows(steps.num_going)].sum(axis=0)
    by_vote = np.argsort(steps.vote_of_row, kind="stable")
    starts = np.searchsorted(steps.vote_of_row[by_vote], np.arange(len(steps.said)))
    states: FloatArray = np.add.reduceat(posteriors[by_vote], starts, axis=0)
    return Expectation(transitions, states, float(passes.log_norms @ times_T))


def _forward_backward(p: FloatArray, emission: FloatArray, steps: VotedSteps, times_T: FloatArray) -> _Passes:
    """Both passes, step after step, each over all traces that have this step.

    The forward pass keeps Pr(label | votes so far), the backward pass Pr(votes to come | label) over the same without
    the label, so that their product is the posterior.
    """
    between, stop, num_going = p[1:-1, 1:-1], p[1:-1, -1], steps.num_going
    starts, last = _starts(num_going), _last_rows(num_going)
    forward, norms = np.empty_like(emission), np.empty(len(emission))
    for step, num in enumerate(num_going):
        rows = slice(starts[step], starts[step] + num)
        before = forward[starts[step - 1] : starts[step - 1] + num] @ between if step else p[0, 1:-1]
        joint = before * emission[rows]
        norms[rows] = joint.sum(axis=1)
        _refuse_impossible(norms[rows], steps.trace_of_row[rows])
        forward[rows] = joint / norms[rows, None]
    stop_probs = forward[last] @ stop
    _refuse_impossible(stop_probs, steps.trace_of_row[last])
    backward, pairs = np.empty_like(emission), np.zeros_like(between)
    backward[last] = stop / stop_probs[:, None]
    for step in range(len(num_going) - 1, 0, -1):
        rows = slice(starts[step], starts[step] + num_going[step])
        rows_before = slice(starts[step - 1], starts[step - 1] + num_going[step])
        entered = emission[rows] * backward[rows] / norms[rows, None]
        backward[rows_before] = entered @ between.T
        pairs += forward[rows_before].T @ (entered * times_T[rows, None])
    log_norms = np.log(norms)
    log_norms[last] += np.log(stop_probs)
    return _Passes(forward * backward, between * pairs, log_norms)


def _expect_groups(p: FloatArray, channels: FloatArray, groups: Sequence[VotedSteps]) -> list[Expectation]:
    return [expect_chain(p_of_group, channels, group) for p_of_group, group in zip(p, groups, strict=True)]


def _log_posterior(
    p: FloatArray,
    channels: FloatArray,
    expected: Sequence[Expectation],
    prior: FloatArray,
    prior_of_channels: FloatArray,
) -> float:
    log_likelihood = sum(each.log_likelihood for each in expected)
    return log_likelihood + _log_prior(p, prior) + _log_prior(channels, prior_of_channels)


def _refuse_impossible(probs: FloatArray, traces: IntArray) -> None:
    if not probs.all():
        raise ValueError(
            f"what was said of trace {traces[int(probs.argmin())]} is impossible under P and the channels; give both a "
            "prior above 0"
        )


def _starts(num_going: tuple[int, ...]) -> list[int]:
    """Row of the first trace's first step, second step, …"""
    return [0, *np.cumsum(num_going).tolist()]


def _last_rows(num_going: tuple[int, ...]) -> IntArray:
    """Row of the last step of each trace, (N,)."""
    ends = zip(_starts(num_going)[:-1], (*num_going[1:], 0), num_going, strict=True)
    return np.concatenate([np.zeros(0, dtype=np.int64), *(start + np.arange(on, all_) for start, on, all_ in ends)])


def _shares(votes: IntArray, num_said: int) -> FloatArray:
    """What each annotator said as shares, (D, A, O), of votes as in :func:`votes_by_step`."""
    said = np.zeros((*votes.shape[:2], num_said))
    for label in range(1, num_said):
        said[:, :, label] = (votes == label).any(axis=2)
    said[:, :, 0] = (votes == 0).all(axis=2)
    shares: FloatArray = said / np.maximum(said.sum(axis=2, keepdims=True), 1)
    return shares


def _said_probs_of(channel: FloatArray, said: FloatArray) -> FloatArray:
    """Probability of what one annotator said under each true label, (D, S); 1 where it was not asked."""
    is_asked = said.any(axis=1, keepdims=True)
    probs: FloatArray = np.where(is_asked, said @ channel.T, 1.0)
    return probs


def _said_probs(channels: FloatArray, steps: VotedSteps) -> FloatArray:
    """Probability of each distinct vote of all annotators under each true label, (D, S)."""
    each = [_said_probs_of(channel, steps.said[:, place]) for place, channel in enumerate(channels)]
    probs: FloatArray = np.prod(each, axis=0)
    return probs


def _said_counts(channels: FloatArray, groups: Sequence[VotedSteps], expected: Sequence[Expectation]) -> FloatArray:
    """Expected number of times each annotator said each thing of each true label, (A, S, O).

    Of two labels that were given, each was the one said in proportion to its probability under the channel.
    """
    counts = np.zeros_like(channels)
    for group, expectation in zip(groups, expected, strict=True):
        for place, channel in enumerate(channels):
            said = group.said[:, place]
            counts[place] += channel * ((expectation.states / _said_probs_of(channel, said)).T @ said)
    return counts


def _log_prior(probs: FloatArray, pseudo_counts: FloatArray) -> float:
    """Log of Dirichlet priors up to a constant; where the pseudo-count is 0, it says nothing of the probability."""
    counts = np.broadcast_to(pseudo_counts, probs.shape)
    return float((counts[counts > 0] * np.log(probs[counts > 0])).sum())
