"""What the policy that wrote a rollout thinks of it: log π_old, V_old and its entropy, constants of the update.

What lives here: the two ways to know. "scored": a teacher-forced pass before the update, by the very computation that
the update repeats, so that the first ratios are exactly 1. "sampled": what decoding has already computed, which saves
that pass (a fifth of an iteration with one epoch); decoding and teacher-forced passes round differently, so the first
ratios are off by the rounding of the dtype. What does not: the reference, advantages (``ppo.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .advantages import masked_mean
from .batch import join
from .policy import ActorCritic, TokenEvaluation
from .rollout import Rollout


class OldPolicy(NamedTuple):
    """Tensors are (B, T), 0 off the response tokens."""

    log_probs: Tensor
    values: Tensor
    entropy: float  # mean over the tokens, nats


@torch.no_grad()
def scored(rollout: Rollout, micro_batches: list[Tensor], evaluate: Callable[[Tensor], TokenEvaluation]) -> OldPolicy:
    """By a teacher-forced pass over each micro-batch; ``evaluate`` takes its rows and returns entropies too."""
    columns = zip(*[evaluate(rows) for rows in micro_batches], strict=True)
    log_probs, values, entropy = (join(rollout, micro_batches, parts) for parts in columns)
    return OldPolicy(log_probs, values, float(masked_mean(entropy, rollout.response_mask)))


@torch.no_grad()
def sampled(rollout: Rollout, micro_batches: list[Tensor], policy: ActorCritic) -> OldPolicy:
    """From decoding; only a separate critic still needs a pass. The entropy is its one-sample estimate, −log π(a).

    Raises:
        ValueError: the rollout was collected without its hidden states.
    """
    if policy.critic is not None:
        parts = [policy.critic_values(*rollout.rows(rows)) for rows in micro_batches]
        values = join(rollout, micro_batches, parts)
    elif rollout.states is not None:
        values = rollout.scatter(policy.value_head(rollout.states))
    else:
        raise ValueError('old_log_probs="sampled" needs rollout.states; collect with with_states=True')
    log_probs = rollout.sampled_log_probs
    return OldPolicy(log_probs, values, -float(masked_mean(log_probs, rollout.response_mask)))
