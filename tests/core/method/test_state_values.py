"""Values of states, and the matrices that follow, against chains whose end is decided by a known value."""

import numpy as np
import pytest

from mralign_core.config import EstimateConfig
from mralign_core.estimation.estimators import estimate_tables, make_estimator
from mralign_core.method.state_values import conditioned_on_end, count_visits, state_values
from mralign_core.method.transitions import transition_mask
from tests.oracles import count_set_pairs

K = 6
STOP = K - 1


def absorbing_chain(rng):
    """P, and h(s) of a chain that ends right with a probability that depends on the state it stops in; exactly."""
    p = np.where(transition_mask(K), rng.dirichlet(np.ones(K), size=K), 0)
    p[0, STOP] = 0
    p /= p.sum(axis=1, keepdims=True)
    right_if_stopped = rng.random(K)
    inner = p[:STOP, :STOP]
    h = np.linalg.solve(np.eye(STOP) - inner, p[:STOP, STOP] * right_if_stopped[:STOP])
    return p, h, right_if_stopped


def walks(p, right_if_stopped, number, rng):
    """Label sequences, with whether each ended right."""
    found = []
    for _ in range(number):
        states = [0]
        while states[-1] != STOP:
            states.append(int(rng.choice(K, p=p[states[-1]])))
        found.append((states[1:-1], rng.random() < right_if_stopped[states[-2]]))
    return found


def pairs_of(traces):
    """Set pairs of each class."""
    steps = {
        "plus": [[(s,) for s in states] for states, right in traces if right],
        "minus": [[(s,) for s in states] for states, right in traces if not right],
    }
    return {name: count_set_pairs(part, K) for name, part in {**steps, "all": steps["plus"] + steps["minus"]}.items()}


def test_values_of_many_walks_are_the_probabilities_to_end_right():
    rng = np.random.default_rng(0)
    p, h, right_if_stopped = absorbing_chain(rng)
    pairs = pairs_of(walks(p, right_if_stopped, 8000, rng))
    visits = [count_visits(pairs[name].multiplicities, pairs[name].sources) for name in ("plus", "minus")]
    assert visits[0].sum() + visits[1].sum() == pairs["all"].multiplicities.sum(), "every transition leaves a state"
    np.testing.assert_allclose(state_values(*visits, prior=0.1).mean[:STOP], h, atol=0.02)


def test_the_matrix_of_right_walks_is_doobs_transform_of_all_walks():
    """Between states, where what follows depends on the next state alone; whether to stop is known to tell more."""
    rng = np.random.default_rng(1)
    p, h, right_if_stopped = absorbing_chain(rng)
    traces = walks(p, right_if_stopped, 20_000, rng)
    counts = np.zeros((K, K))
    for states, right in traces:
        if right:
            for a, b in zip([0, *states], [*states, STOP], strict=True):
                counts[a, b] += 1
    inner = slice(1, STOP)
    seen = counts[:STOP, inner] / counts[:STOP, inner].sum(axis=1, keepdims=True)
    made = conditioned_on_end(p, np.append(h, 0.5))[:STOP, inner]
    np.testing.assert_allclose(made / made.sum(axis=1, keepdims=True), seen, atol=0.03)
    exact = p[:STOP, inner] * h[inner] / h[:STOP, None]
    np.testing.assert_allclose(made / exact, np.broadcast_to((made / exact)[:, :1], made.shape), rtol=1e-12)


def test_of_few_walks_values_come_closer_to_the_true_ratios_than_two_matrices():
    errors: dict[str, list[float]] = {"value": [], "em": []}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        p, h, right_if_stopped = absorbing_chain(rng)
        pairs = pairs_of(walks(p, right_if_stopped, 60, rng))
        for name, found in errors.items():
            fitted = make_estimator(EstimateConfig(estimator=name), K)(pairs)
            inner = slice(1, STOP)
            log_ratio = np.log(fitted["plus"].p[:STOP, inner] / fitted["all"].p[:STOP, inner])
            found.append(np.abs(log_ratio - np.log(h[inner] / h[:STOP, None])).mean())
    assert np.mean(errors["value"]) < 0.75 * np.mean(errors["em"])
    assert sum(one < other for one, other in zip(errors["value"], errors["em"], strict=True)) >= 10


def test_tables_side_by_side_are_those_one_by_one():
    rng = np.random.default_rng(2)
    p, _, right_if_stopped = absorbing_chain(rng)
    traces = walks(p, right_if_stopped, 50, rng)
    pairs = count_set_pairs([[(s,) for s in states] for states, _ in traces], K)
    plus, minus = rng.integers(5, size=(2, 3, len(pairs.multiplicities)))
    found = estimate_tables(EstimateConfig(estimator="value"), pairs, plus, minus)
    for place in range(3):
        times = {"plus": plus[place], "minus": minus[place], "all": plus[place] + minus[place]}
        of_class = {name: pairs._replace(multiplicities=counts) for name, counts in times.items()}
        alone = make_estimator(EstimateConfig(estimator="value"), K)(of_class)
        for name, tables in found.items():
            np.testing.assert_allclose(tables.p[place], alone[name].p, atol=1e-12)
            np.testing.assert_allclose(tables.counts[place], alone[name].counts, atol=1e-9)


def test_rows_sum_to_one_and_equal_values_change_nothing():
    rng = np.random.default_rng(3)
    p = absorbing_chain(rng)[0]
    np.testing.assert_allclose(conditioned_on_end(p, np.full(K, 0.3)), p, atol=1e-15)
    values = rng.random((4, K))
    made = conditioned_on_end(np.stack([p] * 4), values)
    np.testing.assert_allclose(made.sum(axis=-1), 1.0)
    assert (made[:, p == 0] == 0).all()


def test_a_state_that_was_hardly_visited_has_the_value_of_all():
    values = state_values(np.array([60.0, 1.0, 0.0]), np.array([20.0, 0.0, 0.0]), prior=10.0)
    base = 61.5 / 82
    np.testing.assert_allclose(values.mean, [(60 + 10 * base) / 90, (1 + 10 * base) / 11, base])
    np.testing.assert_allclose(values.right + values.wrong, [90, 11, 10])
    one_sided = state_values(np.array([0.0, 0.0]), np.array([5.0, 5.0]), prior=1.0).mean
    assert (one_sided > 0).all() and (one_sided < 0.1).all()
    with pytest.raises(ValueError, match="must be above 0"):
        state_values(np.ones(2), np.ones(2), prior=0.0)
