"""A scored rollout: what an update treats as constant, and the metrics that describe it.

What lives here: `Batch`, `describe` (docs/metrics.md explains each number), `mean_return`, and which trajectories share
a forward pass or an optimiser step. What does not: how the numbers came about (``rollout.py``, ``old_policy.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from textgen_env.kl import k3

from .advantages import gae, masked_mean
from .losses import explained_variance
from .rollout import Rollout
from .rollout_metrics import rollout_metrics


@dataclass
class Batch:
    """A rollout with everything that `PPO.update` treats as constant; tensors are (B, T), 0 off the response tokens."""

    rollout: Rollout
    micro_batches: list[Tensor]  # rows; each is one forward pass, of the same shape whenever it is run
    old_log_probs: Tensor
    values: Tensor
    ref_log_probs: Tensor | None
    rewards: Tensor  # with the KL penalty
    advantages: Tensor
    returns: Tensor
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def packs(self) -> list[Tensor]:
        """The former name of ``micro_batches``."""
        return self.micro_batches


def describe(batch: Batch) -> dict[str, float]:
    """`rollout_metrics` of a scored rollout, and what only an update knows; docs/metrics.md explains each."""
    rollout, mask = batch.rollout, batch.rollout.response_mask
    shared = rollout_metrics(rollout, batch.old_log_probs, batch.ref_log_probs)
    scores = rollout.scores[rollout.scores.isfinite()]  # a cut from outside has none
    metrics = {
        **{name: values[0] for name, values in shared.items()},
        "score_std": scores.std(correction=0) if len(scores) else torch.zeros(()),
        "reward": batch.rewards.sum(dim=1).mean(),
        "value": masked_mean(batch.values, mask),
        "explained_variance": explained_variance(batch.values, batch.returns, mask),
        "advantage_std": batch.advantages[mask.bool()].std(correction=0),
        "sampling_gap": masked_mean((batch.old_log_probs - rollout.sampled_log_probs).abs(), mask),
    }
    if batch.ref_log_probs is not None:
        metrics["kl_per_token_k3"] = masked_mean(k3(batch.old_log_probs, batch.ref_log_probs), mask)
    return {name: float(value) for name, value in metrics.items()}


def mean_return(rollout: Rollout, gamma: float) -> float:
    """Mean over the tokens of Σ_k γ^k·r_{t+k}: of all constants the best guess of a return, before any is learned."""
    no_values = torch.zeros_like(rollout.rewards)
    _, returns = gae(rollout.rewards, no_values, rollout.response_mask, gamma, lam=1.0)
    return float(masked_mean(returns, rollout.response_mask))


def join(rollout: Rollout, micro_batches: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """(b, t) tensors of the micro-batches, each cut as `Rollout.cut` does → (B, T), 0 where none has anything."""
    grid = torch.zeros(rollout.response_mask.shape, device=rollout.response_mask.device)
    for rows, part in zip(micro_batches, parts, strict=True):
        grid[rows, : part.shape[1]] = part
    return grid


def bucket_by_length(rollout: Rollout, size: int, generator: torch.Generator) -> list[Tensor]:
    """Rows in micro-batches of ``size``, of similar length so that little is padding; rows of one length shuffled."""
    order = torch.randperm(len(rollout.texts), generator=generator).to(rollout.input_ids.device)
    lengths = rollout.attention_mask.sum(dim=1)[order]
    return list(order[lengths.argsort(stable=True)].split(size))


similar_lengths = bucket_by_length  # its former name


def minibatches(
    micro_batches: list[Tensor], size: int, epochs: int, generator: torch.Generator
) -> Iterator[list[Tensor]]:
    """The micro-batches of each optimiser step, ``size`` of them, shuffled again in each of the epochs."""
    for _ in range(epochs):
        order = torch.randperm(len(micro_batches), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield [micro_batches[i] for i in order[start : start + size]]
