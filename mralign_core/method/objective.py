"""The KTO objective with segment weights (Eq. 2–4, 9, 11, 12).

Decisions where the paper is silent: the KL baseline is not weighted, and its raw value is returned beside the
clamped one. With all weights 1 this is KTO.

Shapes: B batch, T completion tokens. Use float32 or wider log-probabilities: bfloat16 loses their difference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KLBaseline(NamedTuple):
    """The reference point z0 of the loss: as estimated, and clamped at 0; scalars without gradient."""

    raw: Tensor
    clamped: Tensor


def implicit_reward(policy_logps_BT: Tensor, reference_logps_BT: Tensor, weights_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Weighted sum of the log-ratios of policy to reference over a completion's tokens.

    Implements Eq. 9 of arXiv 2510.24794.

    Args:
        policy_logps_BT: log-probability of each token under the policy.
        reference_logps_BT: the same under the reference.
        weights_BT: weight of each token (1 outside the thinking).
        mask_BT: true for completion tokens; whatever stands elsewhere is ignored, even if it is not finite.

    Returns:
        (B,) implicit rewards.

    >>> policy, reference = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, -1.0, 0.0]])
    >>> weights, mask = torch.tensor([[2.0, 1.0, 1.0]]), torch.tensor([[1, 1, 0]])
    >>> implicit_reward(policy, reference, weights, mask).tolist()
    [0.0]
    """
    logratios_BT = (policy_logps_BT - reference_logps_BT) * weights_BT
    return logratios_BT.masked_fill(~mask_BT.bool(), 0.0).sum(dim=-1)


def kl_baseline(policy_logps_B: Tensor, reference_logps_B: Tensor) -> KLBaseline:
    """Estimate of KL(policy ‖ reference) from mismatched prompt–completion pairs, without gradient.

    Implements z0 of Eq. 3 of arXiv 2510.24794, unweighted.

    Args:
        policy_logps_B: log-probability of each mismatched completion under the policy, summed over tokens.
        reference_logps_B: the same under the reference.

    Raises:
        ValueError: the batch is empty.

    >>> kl_baseline(torch.tensor([-3.0, -4.0]), torch.tensor([-2.0, -4.5]))
    KLBaseline(raw=tensor(-0.2500), clamped=tensor(0.))
    """
    if policy_logps_B.numel() == 0:
        raise ValueError("the KL baseline needs at least one mismatched pair, the batch has none")
    raw = (policy_logps_B - reference_logps_B).mean().detach()
    return KLBaseline(raw, raw.clamp(min=0))


def kto_loss(
    implicit_rewards_B: Tensor,
    kl_baseline: Tensor,
    is_positive_B: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """KTO loss of each row; the mean over the batch is left to the caller.

    Implements Eq. 2, 4, 11 and 12 of arXiv 2510.24794: λ_c (1 − σ(β (r − z0))) for a positive trace,
    λ_r (1 − σ(β (z0 − r))) for a negative one.

    Args:
        implicit_rewards_B: implicit rewards r.
        kl_baseline: scalar z0, clamped at 0.
        is_positive_B: true for positive traces.
        beta: scale of the implicit reward.
        desirable_weight: λ_c, weight of positive traces.
        undesirable_weight: λ_r, weight of negative traces.

    Returns:
        (B,) losses, each between 0 and its λ.

    >>> losses = kto_loss(torch.tensor([0.0, 0.0]), torch.tensor(0.0), torch.tensor([True, False]),
    ...                   beta=0.1, desirable_weight=1.0, undesirable_weight=1.5)
    >>> losses.tolist()
    [0.5, 0.75]
    """
    margins_B = beta * (implicit_rewards_B - kl_baseline)
    # 1 − σ(x) = σ(−x), which keeps its digits where σ(x) rounds to 1.
    positive_B = desirable_weight * torch.sigmoid(-margins_B)
    negative_B = undesirable_weight * torch.sigmoid(margins_B)
    return torch.where(is_positive_B.bool(), positive_B, negative_B)
