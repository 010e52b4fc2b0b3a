"""What trainers with a critic share: how values become advantages and targets, and a critic that learns first.

What lives here: `CriticConfig` and `CriticTrainer`, of which an algorithm fills in `advantages` (from `estimate`) and
`loss`. What does not: the value head (``policy.py``), the estimators (``advantages.py``), the losses (``losses.py``),
the loop (``on_policy.py``).

References:
    Yuan et al., "What's behind PPO's collapse in long-CoT? Value optimization holds the secret" (2025): VC-PPO, values
    learned before the policy moves, and from Monte-Carlo returns (λ = 1) whatever λ the policy has.
    Yue et al., "VAPO: efficient and reliable reinforcement learning for advanced reasoning tasks" (2025): λ by length.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import gymnasium as gym
import torch
from torch import Tensor

from ..advantages import decoupled_gae, length_adaptive_lam
from ..policy import ActorCritic, Reference, final_states
from ..rollout import Rollout
from ..rollout_metrics import mean_return
from .kl_in import KLIn, charged_kl
from .on_policy import Batch, OnPolicyConfig, OnPolicyTrainer
from .optim import lr_factor
from .setting_checks import COUNT_OR_ZERO, NOT_NEGATIVE, POSITIVE, SHARE, check, optional


@dataclass
class CriticConfig(OnPolicyConfig):
    """Settings of on-policy algorithms that have a critic."""

    value_lr: float = 1e-3
    """Peak learning rate of the value head."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    """λ of generalised advantage estimation."""
    lam_alpha: float | None = None
    """If set, λ = 1 − 1/(α·l) for a response of l tokens, with this α, instead of lam (VAPO)."""
    value_lam: float | None = None
    """λ of the critic's targets, if it is another (VC-PPO: 1)."""
    critic_warmup: int = 0
    """So many of the updates come first and teach the critic alone, on Monte-Carlo returns of the policy as it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, RULES)


RULES = {
    "value_lr": NOT_NEGATIVE,
    **dict.fromkeys(("gamma", "lam"), SHARE),
    "lam_alpha": optional(POSITIVE),
    "value_lam": optional(SHARE),
    "critic_warmup": COUNT_OR_ZERO,
}


class CriticTrainer(OnPolicyTrainer):
    """An on-policy trainer with values; see `OnPolicyTrainer` for the arguments.

    Raises:
        ValueError: the policy has no critic.
    """

    def __init__(
        self,
        venv: gym.vector.VectorEnv,
        policy: ActorCritic,
        config: CriticConfig,
        *,
        reference: Reference | None = None,
        seed: int = 1,
        total_updates: int = 100,
    ) -> None:
        super().__init__(venv, policy, config, reference=reference, seed=seed, total_updates=total_updates)
        if policy.value_head is None:
            raise ValueError(f"policy has no critic, and {type(self).__name__} learns values; give it a PolicyConfig")

    @property
    def policy_learns(self) -> bool:  # type: ignore[override]
        """Not while the critic warms up."""
        return self.updates >= int(self.config.critic_warmup)

    @property
    def lr_factor(self) -> float:
        """The schedule begins when the policy does; the critic warms up at the peak."""
        cfg = self.config
        past, total = self.updates - cfg.critic_warmup, self.total_updates - cfg.critic_warmup
        return 1.0 if past < 0 else lr_factor(past, total, cfg.warmup_updates, cfg.lr_decay)

    def update(self, batch: Batch) -> dict[str, float]:
        """See `OnPolicyTrainer.update`; while the critic warms up, no gradient reaches the actor."""
        with nullcontext() if self.policy_learns else self.policy.actor_frozen():
            return super().update(batch)

    def lams(self, response_mask: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """λ of the policy's advantages, one for all or (B,), and of the critic's targets."""
        cfg = self.config
        lam = cfg.lam if cfg.lam_alpha is None else length_adaptive_lam(response_mask, cfg.lam_alpha)
        if not self.policy_learns:
            return lam, 1.0
        return lam, lam if cfg.value_lam is None else cfg.value_lam

    def estimate(self, rollout: Rollout, *, kl_in: KLIn = "reward") -> tuple[Batch, float]:
        """Score a rollout; rewards with the KL to the reference, advantages, returns. And the entropy.

        Args:
            rollout: B trajectories.
            kl_in: what of the KL is paid as a reward; values are of the rewards as they are paid then.
        """
        cfg, mask, head = self.config, rollout.response_mask, self.policy.value_head
        assert head is not None
        head.start_at(mean_return(rollout, cfg.gamma))
        scores = self.score(rollout)
        assert scores.values is not None
        rewards = rollout.rewards - self.kl.value * charged_kl(scores, mask, kl_in, cfg.gamma)
        estimated = decoupled_gae(rewards, scores.values, mask, cfg.gamma, *self.lams(mask), self._bootstrap(rollout))
        return Batch(rollout, *scores[:4], rewards, *estimated), scores.entropy

    def _bootstrap(self, rollout: Rollout) -> Tensor:
        """(B,) V of the last state where a trajectory was cut without its score, 0 elsewhere.

        An end has no future, and a score that was paid is of the whole response: V on top would count it twice. Where
        values leave the KL of their own state out (``kl_in="both"``), the last token led to that, too. Which actions
        are allowed there nobody knows: those of the state before stand for them.
        """
        values = torch.zeros(len(rollout.texts), device=rollout.input_ids.device)
        for rows in rollout.bootstrapped.nonzero().flatten().split(self.config.micro_batch_size):
            if len(rows):
                tokens, mask = final_states(*rollout.rows(rows)[:2]), rollout.masks(rows)
                last = mask if mask is None else mask[rollout.lengths[rows].cumsum(dim=0) - 1]
                ref_logits = self.reference.logits(tokens) if self.exact_kl and self.reference is not None else None
                found = self.policy(tokens, self.sampling, mask=last, ref_logits=ref_logits)
                worth = found.values if found.kl is None else found.values - self.kl.value * found.kl
                values[rows] = worth[tokens.response_mask.bool()]
        return values
