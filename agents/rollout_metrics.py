"""The numbers that describe a set of responses: one definition for training, held-out prompts and Stable-Baselines3.

What lives here: `response_metrics`, of one number per response, and `rollout_metrics`, of a rollout. What does not:
what only an update knows (``batch.py``), standard errors (``evaluate.py``), files (``metrics.py``).
docs/metrics.md explains each number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from textgen_env.kl import k1

from .rollout import Rollout


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
