"""The paper's formulas by explicit loops: what the kernels of ``mralign_core/method`` are compared with.

Slow, and short enough to be checked against the paper by eye. Shapes: K states, S steps.
"""

from collections import Counter
from itertools import pairwise, product

import numpy as np

from mralign_core.method.set_pairs import SetPairCounts
from mralign_core.method.transitions import transition_mask


def chain_of(trace, num_states):
    """A trace's labelled steps as sorted sets, with <start> before and <stop> behind them."""
    return [(0,), *(tuple(sorted(set(step))) for step in trace if step), (num_states - 1,)]


def count_set_pairs(traces, num_states):
    """Distinct transitions of traces, each a list of steps, each the states of its labels; in ascending order."""
    labelled = [trace for trace in traces if any(trace)]
    tally = Counter(pair for trace in labelled for pair in pairwise(chain_of(trace, num_states)))
    pairs = sorted(tally)
    sources, targets = np.zeros((2, len(pairs), num_states), dtype=bool)
    for row, (source, target) in enumerate(pairs):
        sources[row, list(source)] = targets[row, list(target)] = True
    num_empty_steps = sum(not step for trace in traces for step in trace)
    multiplicities = np.array([tally[pair] for pair in pairs], dtype=np.int64)
    return SetPairCounts(sources, targets, multiplicities, len(labelled), num_empty_steps, len(traces) - len(labelled))


def set_transition_prob(p, source, target):
    """Eq. 6 and 7: Σ_{a∈source, b∈target} ρ(a) P_ab ρ(b) with ρ uniform."""
    return sum(p[a, b] / (len(source) * len(target)) for a in source for b in target)


def trace_ratios(steps, p_numerator, p_denominator):
    """The ratio of Eq. 10 into each step of a trace, (S,); 1 for a step without a label, which is passed over."""
    ratios, source = np.ones(len(steps)), (0,)
    for step, target in enumerate(steps):
        if target:
            numerator, denominator = (set_transition_prob(p, source, target) for p in (p_numerator, p_denominator))
            impossible = np.inf if numerator > 0 else 1.0
            ratios[step] = numerator / denominator if denominator > 0 else impossible
            source = target
    return ratios


def enumerate_latent_labels(p, trace):
    """Likelihood of one trace and expected base transitions, by adding up every choice of active labels."""
    chain = [(0,), *trace, (len(p) - 1,)]
    transitions = list(pairwise(chain))
    choices = [list(product(source, target)) for source, target in transitions]
    rho = np.prod([1 / len(pairs) for pairs in choices])
    likelihood, expected = 0.0, np.zeros_like(p)
    for path in product(*choices):
        path_prob = rho * np.prod([p[pair] for pair in path])
        likelihood += path_prob
        for pair in path:
            expected[pair] += path_prob
    return likelihood, expected / likelihood


def plain_algorithm_2(traces, num_states, num_iterations, damping, prior):
    """Algorithm 2 with explicit loops over traces and base pairs, without the stop rule."""
    mask = transition_mask(num_states)
    p = mask / mask.sum(axis=1, keepdims=True)
    for _ in range(num_iterations):
        counts = np.zeros_like(p)
        for trace in traces:
            chain = [(0,), *trace, (num_states - 1,)]
            for source, target in pairwise(chain):
                allowed = [(a, b) for a in source for b in target if mask[a, b]]
                scores = np.array([p[pair] / len(allowed) for pair in allowed])
                total = scores.sum()
                shares = scores / total if total > 0 else np.full(len(allowed), 1 / len(allowed))
                for pair, share in zip(allowed, shares, strict=True):
                    counts[pair] += share
        posterior = counts + prior * mask
        row_sums = posterior.sum(axis=1, keepdims=True)
        p_new = np.where(
            row_sums > 0, posterior / np.where(row_sums > 0, row_sums, 1), mask / mask.sum(1, keepdims=True)
        )
        p = (1 - damping) * p + damping * p_new
    return p, posterior, counts


def said_prob(channel, state, vote):
    """What an annotator's vote is worth under a true label: 1 if it was not asked, else the mean over what it said."""
    if vote is None:
        return 1.0
    said = [label for label in vote if label] or [0]
    return np.mean([channel[state - 1, label] for label in said])


def enumerate_hidden_labels(p, channels, trace):
    """Likelihood of the votes on one trace, and what is expected of its true labels, by adding up every path of them.

    A trace is a list of steps, each a list of votes (one an annotator), each the labels' states or None for not asked.
    Returns the likelihood, expected transitions (K, K), marginals (steps, S) and expected counts of what was said.
    """
    num_states, num_steps = len(p), len(trace)
    transitions, said = np.zeros_like(p), np.zeros_like(channels)
    marginals = np.zeros((num_steps, num_states - 2))
    likelihood = 0.0
    for path in product(range(1, num_states - 1), repeat=num_steps):
        prob = np.prod([p[pair] for pair in pairwise((0, *path, num_states - 1))])
        for state, votes in zip(path, trace, strict=True):
            prob *= np.prod([said_prob(channel, state, vote) for channel, vote in zip(channels, votes, strict=True)])
        likelihood += prob
        for pair in pairwise((0, *path, num_states - 1)):
            transitions[pair] += prob
        for step, (state, votes) in enumerate(zip(path, trace, strict=True)):
            marginals[step, state - 1] += prob
            for place, vote in enumerate(votes):
                if vote is not None:
                    labels = list(vote) or [0]
                    weights = np.array([channels[place, state - 1, label] for label in labels])
                    said[place, state - 1, labels] += prob * weights / weights.sum()
    return likelihood, transitions / likelihood, marginals / likelihood, said / likelihood
