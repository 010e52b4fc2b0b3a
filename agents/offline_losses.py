"""The losses of learning from episodes that somebody else has played, one short function each with its equation.

What lives here: pure functions of per-token tensors, (B, T); only the tokens of ``response_mask`` count. A ``…_loss``
returns a scalar to be minimised, the mean over tokens. What does not: returns (``advantages.py``), the algorithm
(``iql.py``), losses of one's own samples (``losses.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .advantages import masked_mean


def expectile_loss(value: Tensor, target: Tensor, expectile: float, response_mask: Tensor) -> Tensor:
    """E[|τ − 1(R < V)|·(R − V)²] (Kostrikov et al. 2021, eq. 5): minimised by the τ-expectile of R in each state.

    τ = ½ is half the squared error, whose minimiser is the mean; as τ → 1 it becomes the largest R in the data.

    Args:
        value: V(s), with gradient.
        target: R, a constant.
        expectile: τ, above 0 and below 1.
        response_mask: 1 on the tokens of the agent.
    """
    error = torch.where(response_mask.bool(), target.detach() - value, 0.0)
    weight = torch.where(error < 0, 1 - expectile, expectile)
    return masked_mean(weight * error.square(), response_mask)


def advantage_weights(advantage: Tensor, temperature: float, largest: float, response_mask: Tensor) -> Tensor:
    """min(exp(A/α), w_max), 0 off the mask: how much each token of somebody else is to be imitated."""
    scaled = torch.where(response_mask.bool(), advantage / temperature, -torch.inf)
    return scaled.exp().clamp(max=largest)


def advantage_weighted_loss(log_prob: Tensor, weight: Tensor, response_mask: Tensor) -> Tensor:
    """−E[w·log π(a|s)] (Peng et al. 2019, eq. 9): minimised by π(a|s) ∝ π_b(a|s)·w(s, a), of what is in the data.

    Args:
        log_prob: log π(a|s), with gradient.
        weight: w, a constant, as `advantage_weights` makes it.
        response_mask: 1 on the tokens of the agent.
    """
    return -masked_mean(weight.detach() * torch.where(response_mask.bool(), log_prob, 0.0), response_mask)
