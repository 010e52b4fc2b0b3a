"""The losses of policy-gradient training, one short function each with its equation.

What lives here: pure functions of per-token tensors of one shape, (B, T) in the trainers; only the tokens of
``response_mask`` count, and whatever stands elsewhere, NaN included, reaches neither a result nor a gradient. A
``…_loss`` returns a scalar to be minimised, the *mean over tokens* (but `reinforce_loss`: over responses); the
diagnostics below them carry no gradient. What does not: advantages (``advantages.py``), KL estimators
(`textgen_env.kl`), models, coefficients (the trainers weigh the terms).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from textgen_env.kl import k3_of_log_ratio

from .advantages import masked_mean

Mean: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(B, T) and response mask → scalar: over what a loss is a mean."""


def clipped_surrogate(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip: float,
    response_mask: Tensor,
    *,
    clip_high: float | None = None,
    of_responses: bool = False,
    mean: Mean = masked_mean,
) -> Tensor:
    """PPO's policy loss (Schulman et al. 2017, eq. 7): −E[min(ρ·A, clip(ρ, 1−ε, 1+ε)·A)], ρ = π(a|s) / π_old(a|s).

    Args:
        log_prob: log π(a|s), with gradient.
        old_log_prob: log π_old(a|s) of the policy at the start of the update.
        advantage: A(s, a), a constant.
        clip: ε.
        response_mask: 1 on the agent's tokens.
        clip_high: the upper ε, if it is another (DAPO; Yu et al. 2025, eq. 10).
        of_responses: ρ is (π(y)/π_old(y))^(1/|y|) of the whole response (GSPO; Zheng et al. 2025, eq. 7).
        mean: over tokens by default; `response_mean` and `constant_mean` are others.

    At ρ = 1 the gradient of the *sum* over tokens, as a mean over responses, is in expectation −∇J for advantages of
    λ = 1. A mean over the tokens of a minibatch is a ratio of sums: biased towards short responses, by 1/B to first
    order in B responses; a mean over each response's own tokens stays so however large B is.
    """
    ratio = log_ratio(log_prob, old_log_prob, response_mask, of_responses=of_responses).exp()
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return -mean(torch.minimum(ratio * advantage, clipped * advantage), response_mask)


def reinforce_loss(log_prob: Tensor, advantage: Tensor, response_mask: Tensor) -> Tensor:
    """−1/B·Σ_i Σ_t A_t·log π(a_t|s_t) over B responses (REINFORCE; Williams 1992).

    A sum over the tokens of a response and a mean over *responses*: with returns R_i less a baseline that does not
    depend on response i, its expected gradient is −∇E[R]. A mean over tokens would weigh each response by 1/length.

    Args:
        log_prob: log π(a|s) of the sampled tokens, (B, T), with gradient.
        advantage: A(s, a), a constant.
        response_mask: 1 on the agent's tokens.
    """
    mask = response_mask.bool()
    terms = torch.where(mask, log_prob, 0.0) * torch.where(mask, advantage, 0.0)
    return -terms.sum(dim=1).mean()


def clipped_value_loss(
    value: Tensor,
    old_value: Tensor,
    returns: Tensor,
    clip: float | None,
    response_mask: Tensor,
    *,
    mean: Mean = masked_mean,
) -> Tensor:
    """½·E[max((V − R)², (V_clip − R)²)], V_clip = V_old + clip(V − V_old, −ε, ε) (Schulman's baselines; Ziegler 2019).

    ``clip`` is ε in units of reward; None switches clipping off: ½·E[(V − R)²]. ``mean`` is over tokens by default.
    """
    value, old_value, returns = (torch.where(response_mask.bool(), x, 0.0) for x in (value, old_value, returns))
    error = (value - returns).square()
    if clip is not None:
        clipped = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * mean(error, response_mask)


def entropy_loss(entropy: Tensor, response_mask: Tensor) -> Tensor:
    """−E[H(π(·|s))], in nats: minimised, it keeps the policy from collapsing (Williams & Peng 1991)."""
    return -masked_mean(entropy, response_mask)


def kl_loss(
    log_prob: Tensor,
    ref_log_prob: Tensor,
    response_mask: Tensor,
    *,
    old_log_prob: Tensor,
    weight: Tensor | None = None,
    mean: Mean = masked_mean,
) -> Tensor:
    """E_old[ρ·k3], ρ = π/π_old, k3 = e^d − d − 1, d = log π_ref(a|s) − log π(a|s): KL(π‖π_ref) in the loss.

    For tokens drawn from π_old the value is unbiased, and so is the gradient: Σ_a π(a|s)·k3(a) is KL(π‖π_ref) up to a
    constant, and ρ carries π's share of the derivative. Through k3 alone (GRPO's eq. 4) the expected gradient would be
    that of KL(π_ref‖π) (arXiv 2510.01555). The states are those that π_old visited.

    Args:
        log_prob: log π(a|s) of the sampled tokens, with gradient, nats.
        ref_log_prob: log π_ref(a|s), a constant.
        response_mask: 1 on the agent's tokens; whatever stands elsewhere is never read.
        old_log_prob: log π_old(a|s) of the policy that sampled, a constant. On-policy it equals ``log_prob``.
        weight: of each token, where π_old is not quite what sampled (``training/importance.py``); None: 1.
        mean: over tokens by default.
    """
    ratio = log_ratio(log_prob, old_log_prob.detach(), response_mask).exp()
    d = log_ratio(ref_log_prob.detach(), log_prob, response_mask)
    return mean((ratio if weight is None else weight * ratio) * k3_of_log_ratio(d), response_mask)


def language_model_loss(log_prob: Tensor, response_mask: Tensor) -> Tensor:
    """−E[log π(x_t | x_<t)] on given text: supervised training, or InstructGPT's "ptx" term (Ouyang 2022, eq. 2)."""
    return -masked_mean(log_prob, response_mask)


def response_mean(x: Tensor, response_mask: Tensor) -> Tensor:
    """1/B·Σ_i 1/|y_i|·Σ_t x_it: each of B responses weighs the same, so that tokens of long ones weigh less (GRPO)."""
    mask = response_mask.bool()
    return (torch.where(mask, x, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()


def constant_mean(length: int) -> Mean:
    """1/(B·length)·Σ_i Σ_t x_it: a sum per response on a scale of its own, whatever the lengths (Dr. GRPO)."""

    def mean(x: Tensor, response_mask: Tensor) -> Tensor:
        return torch.where(response_mask.bool(), x, 0.0).sum(dim=1).mean() / length

    return mean


def log_ratio(log_prob: Tensor, other_log_prob: Tensor, response_mask: Tensor, *, of_responses: bool = False) -> Tensor:
    """log(π/π_other) per token, 0 outside the mask: masked *before* any ``exp``, since inf·0 would be NaN.

    ``of_responses`` gives every token of a response the mean of them all.
    """
    mask = response_mask.bool()
    tokens = torch.where(mask, log_prob - other_log_prob, 0.0)
    if not of_responses:
        return tokens
    return torch.where(mask, (tokens.sum(dim=1) / mask.sum(dim=1).clamp(min=1))[:, None], 0.0)


def approx_kl(log_prob: Tensor, old_log_prob: Tensor, response_mask: Tensor) -> Tensor:
    """How far the update has moved, nats per token: KL(π_old‖π) by k3 on tokens of π_old, e^d − 1 − d with d = log ρ.

    d is held within ±2, beyond which a token only says "far": e^d of a single one could outweigh all the others.
    """
    d = log_ratio(log_prob, old_log_prob, response_mask).clamp(-2.0, 2.0)
    return masked_mean(k3_of_log_ratio(d), response_mask).detach()


def clip_fraction(
    log_prob: Tensor,
    old_log_prob: Tensor,
    clip: float,
    response_mask: Tensor,
    *,
    clip_high: float | None = None,
    of_responses: bool = False,
) -> Tensor:
    """Share of tokens whose ratio has left [1 − ε, 1 + ε]; arguments as those of `clipped_surrogate`."""
    ratio = log_ratio(log_prob, old_log_prob, response_mask, of_responses=of_responses).exp()
    outside = (ratio < 1 - clip) | (ratio > 1 + (clip if clip_high is None else clip_high))
    return masked_mean(outside.float(), response_mask).detach()


def ratio_error(log_prob: Tensor, old_log_prob: Tensor, response_mask: Tensor) -> Tensor:
    """Largest |π/π_old − 1| of any token: exactly 0 before the first step of an update."""
    return torch.expm1(log_ratio(log_prob.detach(), old_log_prob, response_mask)).abs().max()


def explained_variance(value: Tensor, returns: Tensor, response_mask: Tensor) -> Tensor:
    """1 − Var(R − V) / Var(R): 1 is a perfect critic, 0 one no better than a constant; 0 when R does not vary."""

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, response_mask)).square(), response_mask)

    total = variance(returns)
    return torch.where(total > 0, 1 - variance(returns - value) / total.clamp(min=1e-12), 0.0).detach()
