"""Off-policy correction where what samples and what learns differ: truncated importance weights, and how far apart.

What lives here: `ImportanceConfig`, the weights, their diagnostics, and `weighed`, by which an algorithm applies them.
What does not: log-probs of the sampler, which come from the rollout (``rollout.py``), those of the learner
(``on_policy.py``), and the ratio π/π_old of the passes of one update (``losses.py``).

The rollout's log-probs are of the very distribution that was sampled, temperature, top-k, top-p and masks included, and
the learner's are warped alike. So where the two have the same weights and arithmetic the weights are 1, and no mass
that a nucleus cuts off is taken for a difference of policies. Where a nucleus differs (stale weights), a token outside
of the learner's is scored as if it were inside.

References:
    Ionides, "Truncated importance sampling" (2008).
    Yao et al., "Your efficient RL framework secretly brings you off-policy RL training" (2025): TIS per token.
    Liu et al., "When speed kills stability: demystifying RL collapse from the training-inference mismatch" (2025): of
    whole sequences, and masked instead of truncated (MIS).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..advantages import masked_mean
from ..losses import approx_kl, log_ratio
from .batch import Batch
from .setting_checks import POSITIVE, check, choice
from .trainer import OptimConfig


@dataclass
class ImportanceConfig(OptimConfig):
    """Settings of the correction for rollouts that another distribution wrote than the one that learns."""

    importance_weights: Literal["none", "token", "response"] = "none"
    """Weigh what is learned from a token by π/π_sampler of that token, or from a response by that of the whole
    response, π being the old log-probs; 1 with old_log_probs="sampled"."""
    importance_cap: float = 2.0
    """What a weight is at most."""
    importance_beyond: Literal["truncate", "mask"] = "truncate"
    """A weight above the cap is the cap (TIS), or 0 (MIS): what the sampler hardly ever writes is then not learned from
    at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, RULES)


RULES = {
    "importance_weights": choice("none", "token", "response"),
    "importance_cap": POSITIVE,
    "importance_beyond": choice("truncate", "mask"),
}


def importance_weights(
    log_prob: Tensor,
    sampled_log_prob: Tensor,
    response_mask: Tensor,
    cap: float,
    *,
    of_responses: bool = False,
    mask_beyond: bool = False,
) -> Tensor:
    """w = min(π/π_sampler, cap) of each token, or of each response at all of its tokens; (B, T), 0 off the responses.

    Weights of responses make an expectation over what the sampler writes one over what the learner would write, but for
    the cap. Those of tokens correct the choice of each token and leave the states to the sampler.

    Args:
        log_prob: log π(a|s) of the policy that learns, (B, T).
        sampled_log_prob: that of the distribution which the tokens were drawn from.
        response_mask: 1 on the agent's tokens.
        cap: what a weight is at most.
        of_responses: Π_t π/π_sampler instead of each factor.
        mask_beyond: a weight above the cap is 0.
    """
    mask = response_mask.bool()
    ratio = _log_ratios(log_prob.detach(), sampled_log_prob, mask, of_responses)
    weights = ratio.clamp(max=math.log(cap)).exp()  # no exp of what is above the cap, which might overflow
    if mask_beyond:
        weights = torch.where(ratio > math.log(cap), 0.0, weights)
    return torch.where(mask, weights, 0.0)


def effective_share(weights: Tensor, response_mask: Tensor, *, of_responses: bool = False) -> Tensor:
    """(Σw)²/(n·Σw²): effective sample size (Kong 1992) of n tokens, or responses, as a share; 1 if all are equal."""
    mask = response_mask.bool()
    chosen = weights.amax(dim=1)[mask.any(dim=1)] if of_responses else weights[mask]
    return chosen.sum().square() / (len(chosen) * chosen.square().sum()).clamp(min=1e-12)


def weighed(batch: Batch, config: ImportanceConfig) -> Batch:
    """Multiply a batch's advantages by its weights, if the config asks for any, and say how far apart the two are.

    To be called once the advantages are what they are to be (whitened, …). Values keep learning from the returns of the
    responses as they were sampled.
    """
    if config.importance_weights == "none":
        return batch
    rollout, of_responses = batch.rollout, config.importance_weights == "response"
    given = (batch.old_log_probs, rollout.sampled_log_probs, rollout.response_mask)
    mask_beyond = config.importance_beyond == "mask"
    weights = importance_weights(*given, config.importance_cap, of_responses=of_responses, mask_beyond=mask_beyond)
    beyond = _log_ratios(*given[:2], given[2].bool(), of_responses) > math.log(config.importance_cap)
    batch.importance = weights
    batch.advantages = batch.advantages * weights
    if batch.kl_weight is not None:
        batch.kl_weight = batch.kl_weight * weights
    batch.metrics |= {
        "sampler_kl": float(approx_kl(*given)),
        "importance_mean": float(masked_mean(weights, given[2])),
        "importance_ess": float(effective_share(weights, given[2], of_responses=of_responses)),
        "importance_capped": float(masked_mean(beyond.float(), given[2])),
    }
    return batch


def _log_ratios(log_prob: Tensor, sampled_log_prob: Tensor, mask: Tensor, of_responses: bool) -> Tensor:
    """(B, T) log(π/π_sampler) of tokens, or of the response at each of its tokens."""
    tokens = log_ratio(log_prob, sampled_log_prob, mask)
    return torch.where(mask, tokens.sum(dim=1, keepdim=True), 0.0) if of_responses else tokens
