"""Advantage estimators over whole trajectories, and the masked statistics they need.

What lives here: pure functions of tensors. Every per-token tensor is (B, T) and ``response_mask`` (B, T) is 1 exactly
where the agent wrote the token; whatever stands elsewhere (padding, prompts, text written by tools), NaN included,
never reaches a result. What does not: models, losses (``losses.py``), anything that keeps state.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    gamma: float = 1.0,
    lam: float | Tensor = 0.95,
    bootstrap_value: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) along the response tokens.

    δ_t = r_t + γ·V(s_{t+1}) − V(s_t),   A_t = δ_t + γλ·A_{t+1},   R_t = A_t + V(s_t)

    where t+1 is the *next response token*: text between two of them that the agent did not write is skipped. With λ = 1
    the policy gradient that they make is unbiased whatever V is; below it is as right as V.

    Args:
        rewards: (B, T), the reward of the token in that column.
        values: (B, T), V of the state in which that token was chosen.
        response_mask: (B, T), 1 at response tokens.
        gamma: discount γ per response token.
        lam: λ, or (B,) one per row; 0 gives one-step advantages, 1 gives Monte-Carlo returns minus the value.
        bootstrap_value: (B,), V of the state after the last token: the value for cut trajectories, 0 for ended ones.
            None stands for 0 everywhere.

    Returns:
        advantages (B, T) and returns (B, T), both 0 outside the mask.

    Raises:
        ValueError: the shapes disagree.
    """
    _same_shape(response_mask, rewards=rewards, values=values)
    mask = response_mask.bool()
    next_value = torch.zeros_like(values[:, 0]) if bootstrap_value is None else bootstrap_value.to(values)
    next_advantage = torch.zeros_like(next_value)
    columns = []
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        columns.append(next_advantage)
    advantages = torch.where(mask, torch.stack(columns[::-1], dim=1), 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def decoupled_gae(
    rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    gamma: float,
    lam: float | Tensor,
    value_lam: float | Tensor,
    bootstrap_value: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`gae` with one λ for the policy's advantages and another for the critic's targets (VC-PPO; Yuan et al. 2025).

    Returns:
        A_t of ``lam`` and R_t of ``value_lam``, both (B, T).
    """
    advantages, returns = gae(rewards, values, response_mask, gamma, lam, bootstrap_value)
    if value_lam is not lam:
        _, returns = gae(rewards, values, response_mask, gamma, value_lam, bootstrap_value)
    return advantages, returns


def length_adaptive_lam(response_mask: Tensor, alpha: float) -> Tensor:
    """λ = 1 − 1/(α·l) of a response of l tokens, (B,), so that Σ_t λ^t ≈ α·l (VAPO; Yue et al. 2025).

    Where α·l is below 1 it is 0. VAPO's α of 0.05 is for thousands of tokens.
    """
    return (1 - 1 / (alpha * response_mask.sum(dim=1).clamp(min=1))).clamp(min=0.0)


def of_next_token(x: Tensor, response_mask: Tensor) -> Tensor:
    """At each response token, what (B, T) ``x`` is at the next one of its row; 0 at the last, and off the responses."""
    mask, following, columns = response_mask.bool(), torch.zeros_like(x[:, 0]), []
    for t in reversed(range(x.shape[1])):
        columns.append(torch.where(mask[:, t], following, 0.0))
        following = torch.where(mask[:, t], x[:, t], following)
    return torch.stack(columns[::-1], dim=1)


def to_go(x: Tensor, response_mask: Tensor) -> Tensor:
    """(B, T) Σ_{u≥t} x_u over the response tokens from column t on, at *every* column: 0 beyond the last of them."""
    return torch.where(response_mask.bool(), x, 0.0).flip(1).cumsum(dim=1).flip(1)


def self_critical(scores: Tensor, greedy_scores: Tensor, response_mask: Tensor) -> Tensor:
    """Self-critical sequence training (Rennie et al. 2017, eq. 7): A_t = r(sampled) − r(greedy) at every token.

    Args:
        scores: (B,), scores of the sampled responses; or (B, T), what each token is credited.
        greedy_scores: (B,) or (B, 1), scores of the greedy responses to the same prompts.
        response_mask: (B, T), 1 at response tokens.

    Returns:
        (B, T) advantages, 0 outside the mask.
    """
    return _spread(scores - greedy_scores, response_mask)


def leave_one_out(scores: Tensor, response_mask: Tensor, group_size: int) -> Tensor:
    """REINFORCE leave-one-out (Ahmadian et al. 2024, eq. 8): A_i = r_i − mean of the other rewards of the group.

    Args:
        scores: (B,), rows of one group adjacent: B = groups × group_size. Or (B, T), what each token is credited,
            defined at all columns: A_it = r_it − mean of the others' in that column.
        response_mask: (B, T), 1 at response tokens.
        group_size: responses per prompt, at least 2.

    Returns:
        (B, T) advantages, 0 outside the mask.

    Raises:
        ValueError: ``group_size`` is below 2 or does not divide B.
    """
    groups = _groups(scores, group_size)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return _spread((groups - others).flatten(0, 1), response_mask)


def group_relative(
    scores: Tensor, response_mask: Tensor, group_size: int, *, scale: bool = True, eps: float = 1e-4
) -> Tensor:
    """Group-relative advantages (GRPO; Shao et al. 2024, section 4.1): A_i = (r_i − mean) / (std + ε).

    Args:
        scores: (B,), rows of one group adjacent: B = groups × group_size.
        response_mask: (B, T), 1 at response tokens.
        group_size: responses per prompt, at least 2.
        scale: divide by the group's (unbiased) standard deviation; False is "Dr. GRPO" (Liu et al. 2025).
        eps: ε, keeps a group of equal scores at 0.

    Returns:
        (B, T) advantages, 0 outside the mask.

    Raises:
        ValueError: ``group_size`` is below 2 or does not divide B.
    """
    groups = _groups(scores, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if scale:
        centred = centred / (groups.std(dim=1, keepdim=True) + eps)
    return _spread(centred.flatten(), response_mask)


def informative(scores: Tensor, group_size: int) -> Tensor:
    """(B,) bool: whether the responses of a row's group differ in their scores at all, by exact equality.

    A deviation below some ε is no test for it: the mean of equal numbers may differ from them by rounding.

    Args:
        scores: (B,), rows of one group adjacent: B = groups × group_size.
        group_size: responses per prompt, at least 2.

    Raises:
        ValueError: ``group_size`` is below 2 or does not divide B.
    """
    groups = _groups(scores, group_size)
    return (groups != groups[:, :1]).any(dim=1).repeat_interleave(group_size)


def masked_mean(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of the entries of ``x`` at which ``mask`` is 1 (all of them for None); 0 when there are none."""
    if mask is None:
        return x.mean() if x.numel() else x.sum()
    mask = mask.bool()
    # where, not a product: inf·0 and NaN·0 are NaN
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """(x − mean) / √(variance + ε) over the masked entries: mean 0, variance 1, and 0 outside the mask.

    The variance is the biased one, so that a single entry is defined: it becomes 0.
    """
    return torch.where(mask.bool(), x - masked_mean(x, mask), 0.0) * whitening_scale(x, mask, eps)


def whitening_scale(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """1/√(variance + ε) over the masked entries: by what `masked_whiten` multiplies."""
    centred = torch.where(mask.bool(), x - masked_mean(x, mask), 0.0)
    return torch.rsqrt(masked_mean(centred.square(), mask) + eps)


def _same_shape(response_mask: Tensor, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != response_mask.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must be that of the mask, {tuple(response_mask.shape)}"
            )


def _groups(scores: Tensor, group_size: int) -> Tensor:
    if group_size < 2 or scores.shape[0] % group_size:
        raise ValueError(f"group_size={group_size} must be at least 2 and divide the batch of {scores.shape[0]}")
    return scores.unflatten(0, (-1, group_size))


def _spread(scores: Tensor, response_mask: Tensor) -> Tensor:
    """The same advantage at every response token of a row, (B,) → (B, T); what has one at each already stays."""
    if scores.shape not in (response_mask.shape[:1], response_mask.shape):
        raise ValueError(f"scores has shape {tuple(scores.shape)}; it must be ({response_mask.shape[0]},)")
    return torch.where(response_mask.bool(), scores.unsqueeze(1) if scores.dim() == 1 else scores, 0.0)
