"""Where the KL is and what estimates it: the rows of ``gradients.py`` in which there is one.

What lives here: estimators in reward, loss and both, as plug-ins and as this package's trainers. What does not: rows of
scores alone, what a row is (``gradient_rows.py``).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from benchmarks.gradient_rows import GROUPS, RIGHT, Row, Sample, plugged_in, trained_by
from textgen_env.agents import losses
from textgen_env.agents.advantages import leave_one_out
from textgen_env.agents.grpo import GRPO, GRPOConfig
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.agents.reinforce import Reinforce, ReinforceConfig
from textgen_env.kl import k1, k2, k3


def in_the_loss(estimate: Callable[[Tensor, Tensor], Tensor], *, ratio: bool = False) -> Callable[[Sample], Tensor]:
    """β·Σ_t of an estimator at the sampled tokens, differentiated; ``ratio``: times π/π_old."""

    def loss(sample: Sample) -> Tensor:
        kl = estimate(sample.log_probs, sample.ref_log_probs)
        if ratio:
            kl = kl * (sample.log_probs - sample.old_log_probs).exp()
        return sample.kl_coef * losses.constant_mean(1)(kl, sample.mask)

    return loss


def full_in_the_loss(sample: Sample) -> Tensor:
    """β·Σ_t of the exact sum over all tokens, at the states that were visited."""
    return sample.kl_coef * losses.constant_mean(1)(sample.full_kl, sample.mask)


def in_the_reward(estimate: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Sample], Tensor]:
    """REINFORCE, leave-one-out, with −β·Σ_t of an estimator paid as a constant."""

    def loss(sample: Sample) -> Tensor:
        return _leave_one_out(sample, estimate(sample.log_probs.detach(), sample.ref_log_probs))

    return loss


def full_in_the_reward(sample: Sample) -> Tensor:
    """The same with the exact sum over all tokens, ``kl_estimator="full"`` of the environment."""
    return _leave_one_out(sample, sample.full_kl.detach())


def full_in_both(sample: Sample) -> Tensor:
    """∇E[Σ_t KL(s_t)] = E[Σ_t ∇KL(s_t) + Σ_t ∇log π(a_t|s_t)·Σ_{u>t} KL(s_u)]: the sum over tokens is done exactly in
    the loss, and what is paid *after* a token is its return (Amini et al. 2025, the Rao-Blackwellised gradient).
    """
    kl = sample.full_kl.detach() * sample.mask
    later = kl.flip(1).cumsum(1).flip(1) - kl
    return losses.reinforce_loss(sample.log_probs, -sample.kl_coef * later, sample.mask) + full_in_the_loss(sample)


def _leave_one_out(sample: Sample, kl: Tensor) -> Tensor:
    returns = sample.scores - sample.kl_coef * (kl * sample.mask).sum(dim=1)
    return losses.reinforce_loss(sample.log_probs, leave_one_out(returns, sample.mask, sample.group_size), sample.mask)


BOTH = {"kl_in": "both"}
PAIRED = {"group_size": 2}
CRITIC = {"critic": RIGHT}


def in_both() -> list[Row]:
    """This package's trainers with ``kl_in="both"``."""
    return [
        Row("RLOO: full in both", trained_by(Reinforce, ReinforceConfig, **PAIRED, **BOTH), GROUPS),
        Row("GRPO: full in both", trained_by(GRPO, GRPOConfig, **PAIRED), GROUPS, default=True),
        Row("PPO, V right: full in both", trained_by(PPO, PPOConfig, **CRITIC, **BOTH)),
        Row("PPO, V right, not whitened: full in both", trained_by(PPO, PPOConfig, whiten=False, **CRITIC, **BOTH)),
    ]


def in_the_rewards() -> list[Row]:
    """The same with k1 in the reward."""
    return [
        Row("RLOO: k1 in the reward", trained_by(Reinforce, ReinforceConfig, **PAIRED), GROUPS, default=True),
        Row("GRPO: k1 in the reward", trained_by(GRPO, GRPOConfig, kl_in="reward", **PAIRED), GROUPS),
        Row("PPO, V right: k1 in the reward", trained_by(PPO, PPOConfig, **CRITIC), default=True),
        Row("PPO, V right, not whitened: k1 in the reward", trained_by(PPO, PPOConfig, whiten=False, **CRITIC)),
    ]


GRPO_LOSS = Row("GRPO: ratio · k3 in the loss", trained_by(GRPO, GRPOConfig, kl_in="loss", **PAIRED), GROUPS)
KL = [
    *in_the_rewards(),
    *in_both(),
    GRPO_LOSS,
    Row("k1 in the loss", plugged_in(in_the_loss(k1))),
    Row("k2 in the loss", plugged_in(in_the_loss(k2))),
    Row("k3 in the loss (GRPO as published)", plugged_in(in_the_loss(k3))),
    Row("full in the loss", plugged_in(full_in_the_loss)),
    Row("k2 in the reward", plugged_in(in_the_reward(k2))),
    Row("k3 in the reward", plugged_in(in_the_reward(k3))),
    Row("full in the reward", plugged_in(full_in_the_reward)),
    Row("full in both, without a baseline", plugged_in(full_in_both)),
]
SCORE_AND_KL = [*in_the_rewards(), *in_both(), GRPO_LOSS]
OFF_POLICY_KL = [
    Row("k2 in the loss", plugged_in(in_the_loss(k2))),
    Row("k3 in the loss (GRPO as published)", plugged_in(in_the_loss(k3))),
    Row("ratio · k3 in the loss", plugged_in(in_the_loss(k3, ratio=True))),
]
