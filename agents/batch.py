"""A scored rollout: what an update treats as constant, and the metrics that describe it.

What lives here: `Batch`, `describe` (docs/metrics.md explains each number), `mean_return`, and which trajectories share
a forward pass or an optimiser step. What does not: how the numbers came about (``rollout.py``, ``old_policy.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from textgen_env.kl import k1, k3

from .advantages import gae, masked_mean
from .losses import explained_variance
from .rollout import Rollout, on_grid


@dataclass
class Batch:
    """A rollout with everything that `PPO.update` treats as constant; tensors are (B, T), 0 off the response tokens."""

    rollout: Rollout
    packs: list[Tensor]  # row numbers; each pack is one forward pass, of the same shape whenever it is run
    old_log_probs: Tensor
    values: Tensor
    ref_log_probs: Tensor | None
    rewards: Tensor  # with the KL penalty
    advantages: Tensor
    returns: Tensor
    metrics: dict[str, float] = field(default_factory=dict)


def describe(batch: Batch) -> dict[str, float]:
    """Metrics of a scored rollout; docs/metrics.md explains each."""
    rollout, mask = batch.rollout, batch.rollout.response_mask
    scores = rollout.scores[rollout.scores.isfinite()]  # a cut from outside has none
    scores = scores if len(scores) else torch.zeros(1)
    metrics = {
        "score": scores.mean(),
        "score_std": scores.std(correction=0),
        "reward": batch.rewards.sum(dim=1).mean(),
        "response_length": rollout.lengths.float().mean(),
        "value": masked_mean(batch.values, mask),
        "explained_variance": explained_variance(batch.values, batch.returns, mask),
        "advantage_std": batch.advantages[mask.bool()].std(correction=0),
        "sampling_gap": masked_mean((batch.old_log_probs - rollout.sampled_log_probs).abs(), mask),
    }
    if batch.ref_log_probs is not None:
        kl = k1(batch.old_log_probs, batch.ref_log_probs) * mask
        metrics["kl_per_token"] = masked_mean(kl, mask)
        metrics["kl_per_token_k3"] = masked_mean(k3(batch.old_log_probs, batch.ref_log_probs), mask)
        metrics["kl_per_response"] = kl.sum(dim=1).mean()
        metrics["reference_perplexity"] = torch.exp(-masked_mean(batch.ref_log_probs, mask))
    reasons = rollout.finish_reasons
    return {"eos_rate": reasons.count("eos") / len(reasons)} | {name: float(value) for name, value in metrics.items()}


def mean_return(rollout: Rollout, gamma: float) -> float:
    """Mean over the tokens of Σ_k γ^k·r_{t+k}: of all constants the best guess of a return, before any is learned."""
    no_values = torch.zeros_like(rollout.rewards)
    _, returns = gae(rollout.rewards, no_values, rollout.response_mask, gamma, lam=1.0)
    return float(masked_mean(returns, rollout.response_mask))


def to_grid(rollout: Rollout, packs: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Per-token values that were computed pack by pack → (B, T), 0 outside the response tokens."""
    grid = torch.zeros(rollout.response_mask.shape, device=rollout.response_mask.device)
    for rows, part in zip(packs, parts, strict=True):
        grid[rows] = on_grid(rollout.response_mask[rows], part)
    return grid


def similar_lengths(rollout: Rollout, size: int, generator: torch.Generator) -> list[Tensor]:
    """Row numbers in packs of ``size``, of similar length so that little is padding; rows of one length shuffled."""
    order = torch.randperm(len(rollout.texts), generator=generator).to(rollout.input_ids.device)
    lengths = rollout.attention_mask.sum(dim=1)[order]
    return list(order[lengths.argsort(stable=True)].split(size))


def minibatches(packs: list[Tensor], size: int, epochs: int, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """The packs of each optimiser step, ``size`` of them, shuffled anew in each of the epochs."""
    for _ in range(epochs):
        order = torch.randperm(len(packs), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield [packs[i] for i in order[start : start + size]]
