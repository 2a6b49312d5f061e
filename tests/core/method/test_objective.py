import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.method.objective import implicit_reward, kl_baseline, kto_loss

PAPER = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.5}
FLOATS = st.floats(-50, 50)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_reward_worked_by_hand():
    policy = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0]])
    reference = torch.tensor([[-2.0, -1.5, -3.5], [-3.0, -1.0, -9.0]])
    weights = torch.tensor([[2.0, 0.5, 1.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    # 2 · 1 − 0.5 · 0.5 + 0.5, and 2 + 0.
    assert implicit_reward(policy, reference, weights, mask).tolist() == [2.25, 2.0]


def test_whatever_is_masked_is_ignored_in_value_and_gradient():
    policy = torch.tensor([[-1.0, -math.inf]], requires_grad=True)
    reference = torch.tensor([[-3.0, math.nan]])
    reward = implicit_reward(policy, reference, torch.ones(1, 2), torch.tensor([[1, 0]]))
    reward.sum().backward()
    assert reward.tolist() == [2.0]
    assert policy.grad is not None
    assert policy.grad.tolist() == [[1.0, 0.0]]


def test_baseline_is_clamped_and_has_no_gradient():
    policy = torch.tensor([-3.0, -4.0], requires_grad=True)
    low = kl_baseline(policy, torch.tensor([-2.0, -2.0]))
    high = kl_baseline(policy, torch.tensor([-5.0, -5.0]))
    assert (low.raw.item(), low.clamped.item()) == (-1.5, 0.0)
    assert (high.raw.item(), high.clamped.item()) == (1.5, 1.5)
    assert not any(value.requires_grad for value in (*low, *high))


def test_baseline_needs_a_pair():
    with pytest.raises(ValueError, match="none"):
        kl_baseline(torch.empty(0), torch.empty(0))


def test_loss_worked_by_hand():
    losses = kto_loss(torch.tensor([10.0, 10.0]), torch.tensor(5.0), torch.tensor([True, False]), **PAPER)
    # 1 − σ(0.1 · 5) and 1.5 · (1 − σ(0.1 · −5)).
    assert losses.tolist() == pytest.approx([1 - sigmoid(0.5), 1.5 * (1 - sigmoid(-0.5))])


@given(FLOATS, FLOATS, st.floats(0.01, 1), st.floats(0, 3), st.floats(0, 3))
def test_loss_equals_the_paper_term_by_term(reward, baseline, beta, desirable, undesirable):
    implicit_rewards = torch.tensor([reward, reward], dtype=torch.float64)
    losses = kto_loss(
        implicit_rewards,
        torch.tensor(baseline, dtype=torch.float64),
        torch.tensor([True, False]),
        beta=beta,
        desirable_weight=desirable,
        undesirable_weight=undesirable,
    )
    expected = [
        desirable * (1 - sigmoid(beta * (reward - baseline))),
        undesirable * (1 - sigmoid(beta * (baseline - reward))),
    ]
    assert losses.tolist() == pytest.approx(expected, abs=1e-12)


def test_loss_keeps_its_digits_far_out():
    losses = kto_loss(torch.tensor([1000.0]), torch.tensor(0.0), torch.tensor([True]), **(PAPER | {"beta": 0.05}))
    assert losses.item() == pytest.approx(math.exp(-50))


def batch():
    generator = torch.Generator().manual_seed(0)
    policy = -torch.rand(4, 6, generator=generator, dtype=torch.float64) * 5
    reference = -torch.rand(4, 6, generator=generator, dtype=torch.float64) * 5
    weights = torch.rand(4, 6, generator=generator, dtype=torch.float64) * 2 + 0.4
    mask = torch.arange(6) < torch.tensor([[6], [4], [5], [2]])
    return policy, reference, weights, mask, torch.tensor([True, False, True, False])


def mean_loss(policy, weights):
    _, reference, _, mask, is_positive = batch()
    implicit_rewards = implicit_reward(policy, reference, weights, mask)
    return kto_loss(implicit_rewards, torch.tensor(0.3, dtype=torch.float64), is_positive, **PAPER).mean()


def test_gradient_equals_finite_differences():
    policy, _, weights, mask, _ = batch()
    policy.requires_grad_()
    (gradient,) = torch.autograd.grad(mean_loss(policy, weights), policy)
    step = 1e-6
    for index in torch.cartesian_prod(torch.arange(4), torch.arange(6)).tolist():
        bump = torch.zeros_like(policy)
        bump[tuple(index)] = step
        with torch.no_grad():
            slope = (mean_loss(policy + bump, weights) - mean_loss(policy - bump, weights)) / (2 * step)
        assert gradient[tuple(index)].item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-10)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).all()


def test_a_token_pulls_in_proportion_to_its_weight():
    policy, _, weights, mask, is_positive = batch()
    policy.requires_grad_()
    (gradient,) = torch.autograd.grad(mean_loss(policy, weights), policy)
    pull = gradient / weights
    for row in range(4):
        own = pull[row][mask[row]]
        assert own.tolist() == pytest.approx([own[0].item()] * len(own))
        assert (own[0] < 0) == is_positive[row], "a positive trace is made likelier, a negative one less likely"
