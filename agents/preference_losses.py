"""The losses of pairs of responses, one short function each with its equation.

What lives here: pure functions of one number per pair, (B,). A ``…_loss`` returns a scalar to be minimised, the mean
over pairs. What does not: losses of tokens (``losses.py``), what the numbers are (``dpo.py``, ``reward_model.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def preference_loss(margin: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """−E[t·log σ(m) + (1 − t)·log σ(−m)] of (B,) pairs: cross-entropy under P(first ≻ second) = σ(m).

    With m = r(first) − r(second) it fits rewards (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1), with m = β·Δ,
    Δ = log π/π_ref(first) − log π/π_ref(second), it is DPO (Rafailov et al. 2023, eq. 7).

    Args:
        margin: m, with gradient.
        target: t, 1 where the first is preferred, ½ for a tie.
        weight: of each pair, a mean of 1 in the long run; None: all count alike.
    """
    log_likelihood = target * logsigmoid(margin) + (1 - target) * logsigmoid(-margin)
    return -(log_likelihood if weight is None else weight * log_likelihood).mean()


def ipo_loss(difference: Tensor, beta: float, target: Tensor) -> Tensor:
    """E[(Δ − (2t − 1)/(2β))²] of (B,) pairs (IPO; Azar et al. 2023, eq. 17): no reward for a Δ beyond 1/(2β).

    Args:
        difference: Δ = log π/π_ref(first) − log π/π_ref(second) of whole responses, summed over tokens; with gradient.
        beta: β, the paper's τ.
        target: t, 1 where the first is preferred, ½ for a tie.
    """
    return (difference - (2 * target - 1) / (2 * beta)).square().mean()


def kto_loss(log_ratio: Tensor, reference_point: Tensor, beta: float, desirable: Tensor) -> Tensor:
    """E[1 − σ(±β·(r − z))] of (n,) responses (KTO; Ethayarajh et al. 2024, eq. 7 and 8, with λ_D = λ_U = 1).

    The sign is + where a response is desirable, − where it is not: what is gained or lost beside z, how far the policy
    has moved on average, counts less and less.

    Args:
        log_ratio: r = log π/π_ref of whole responses, with gradient.
        reference_point: z ≥ 0, a constant: KL(π‖π_ref), estimated on responses to other prompts.
        beta: β.
        desirable: 1 where the response is, 0 where it is not, ½ where nobody can say: that has no gradient.
    """
    gain = torch.sigmoid(beta * (log_ratio - reference_point.detach()))
    return 1 - (desirable * gain + (1 - desirable) * (1 - gain)).mean()


def preference_accuracy(margin: Tensor, target: Tensor) -> Tensor:
    """Share of (B,) pairs whose preferred response has the larger reward; a tie, or a margin of 0, counts ½."""
    return torch.where(target == 0.5, 0.5, (margin.sign() + 1) / 2).mean().detach()
