"""The numbers that describe a set of responses: one definition for training, held-out prompts and Stable-Baselines3.

What lives here: `response_metrics`, of one number per response, `rollout_metrics`, of a rollout, `batch_metrics`,
of one that an update learns from, and `surrogate_metrics`, of a step of that update. What does not: standard errors
(``training/evaluate.py``), files (``training/metrics_log.py``). docs/metrics.md explains each number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textgen_env.kl import k1, k3

from .advantages import gae, masked_mean
from .losses import approx_kl, clip_fraction, explained_variance, ratio_error
from .rollout import Rollout

if TYPE_CHECKING:
    from .training.on_policy import Batch


def batch_metrics(batch: Batch) -> dict[str, float]:
    """`rollout_metrics` of a scored rollout, and what only its advantages tell."""
    rollout, mask = batch.rollout, batch.rollout.response_mask
    shared = rollout_metrics(rollout, batch.old_log_probs, batch.ref_log_probs)
    scores = rollout.scores[rollout.scores.isfinite()]  # a cut from outside has none
    metrics = {
        **{name: values[0] for name, values in shared.items()},
        "score_std": scores.std(correction=0) if len(scores) else torch.zeros(()),
        "reward": batch.rewards.sum(dim=1).mean(),
        "advantage_std": batch.advantages[mask.bool()].std(correction=0),
        "sampling_gap": masked_mean((batch.old_log_probs - rollout.sampled_log_probs).abs(), mask),
        "failed_episodes": torch.tensor(rollout.failed_episodes),
    }
    if batch.values is not None:
        metrics["value"] = masked_mean(batch.values, mask)
        metrics["explained_variance"] = explained_variance(batch.values, batch.returns, mask)
    if batch.ref_log_probs is not None:
        metrics["kl_per_token_k3"] = masked_mean(k3(batch.old_log_probs, batch.ref_log_probs), mask)
    return {name: float(value) for name, value in metrics.items()}


def surrogate_metrics(
    log_prob: Tensor, old_log_prob: Tensor, clip: float, response_mask: Tensor, **clipping: Any
) -> dict[str, Tensor]:
    """How far the update has moved, of a trainer that clips ratios; ``clipping``: what `clip_fraction` also takes."""
    return {
        "approx_kl": approx_kl(log_prob, old_log_prob, response_mask),
        "clip_fraction": clip_fraction(log_prob, old_log_prob, clip, response_mask, **clipping),
        "ratio_error": ratio_error(log_prob, old_log_prob, response_mask),
    }


def mean_return(rollout: Rollout, gamma: float) -> float:
    """Mean over the tokens of Σ_k γ^k·r_{t+k}: of all constants the best guess of a return, before any is learned."""
    no_values = torch.zeros_like(rollout.rewards)
    _, returns = gae(rollout.rewards, no_values, rollout.response_mask, gamma, lam=1.0)
    return float(masked_mean(returns, rollout.response_mask))


def rollout_metrics(
    rollout: Rollout, log_probs: Tensor | None = None, ref_log_probs: Tensor | None = None
) -> dict[str, Tensor]:
    """`response_metrics` of a rollout.

    Args:
        rollout: B trajectories.
        log_probs, ref_log_probs: (B, T), log π and log π_ref of the response tokens; without them there is no KL.
    """
    if log_probs is None or ref_log_probs is None:
        return response_metrics(rollout.scores, rollout.lengths, rollout.finish_reasons)
    kl, ref = (_per_response(rollout, grid) for grid in (k1(log_probs, ref_log_probs), ref_log_probs))
    return response_metrics(rollout.scores, rollout.lengths, rollout.finish_reasons, kl=kl, ref_log_probs=ref)


def response_metrics(
    scores: Tensor,
    lengths: Tensor,
    finish_reasons: Sequence[str],
    *,
    kl: Tensor | None = None,
    ref_log_probs: Tensor | None = None,
) -> dict[str, Tensor]:
    """Means over responses or over their tokens, each a ratio of two sums.

    Args:
        scores: (B,), NaN for a response without a score (one that was cut from outside).
        lengths: (B,), in tokens.
        finish_reasons: B of them.
        kl: (B,), log π − log π_ref summed over the tokens of a response, nats.
        ref_log_probs: (B,), log π_ref summed likewise; both or neither.

    Returns:
        ``score``, ``response_length``, ``eos_rate``; with KL also ``kl_per_token``, ``kl_per_response`` and
        ``reference_perplexity``. Each (B + 1,) float64: of all responses, then of all but the first, but the second, …
    """
    scored = scores.isfinite()
    score, count = _sums(scores.where(scored, 0.0)), _sums(torch.ones_like(scores))
    length = _sums(lengths)
    metrics = {"score": score / _sums(scored).clamp(min=1)}
    if kl is not None and ref_log_probs is not None:
        metrics["kl_per_token"] = _sums(kl) / length
        metrics["kl_per_response"] = _sums(kl) / count
        metrics["reference_perplexity"] = torch.exp(-_sums(ref_log_probs) / length)
    ended = torch.tensor([reason == "eos" for reason in finish_reasons])
    return {**metrics, "response_length": length / count, "eos_rate": _sums(ended) / count}


def _per_response(rollout: Rollout, grid: Tensor) -> Tensor:
    """(B, T) → (B,) float64 sums over the response tokens."""
    return torch.stack([tokens.double().sum() for tokens in rollout.per_response(grid)])


def _sums(column: Tensor) -> Tensor:
    """(B,) → (B + 1,) float64: the sum, then the sum without the first, without the second, …"""
    column = column.cpu().double()
    return torch.cat([column.sum()[None], column.sum() - column])
