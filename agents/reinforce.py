"""REINFORCE on whole responses, with the baselines that make it work: RLOO, self-critical, learned, running mean, none.

What lives here: advantages and loss, settings, and the command (``python -m textgen_env.agents.reinforce``). What does
not: the loop (``training/on_policy.py``), estimators (``advantages.py``), the run (``training/run.py``).

A response is one action here: its return, score − β·KL, is credited to each of its tokens, EOS included. Only the
learned baseline tells tokens apart: it is a regression of what is still to come on the state, as the literature means
the term. It plays no part in the returns themselves, and its gradient does not reach the actor.

References:
    Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning" (1992).
    Ranzato et al., "Sequence level training with recurrent neural networks" (2016): the learned baseline of each state.
    Rennie et al., "Self-critical sequence training for image captioning" (2017): the greedy baseline.
    Ahmadian et al., "Back to basics: revisiting REINFORCE style optimization for learning from human feedback" (2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym
import torch
from torch import Tensor

from .advantages import gae, leave_one_out, self_critical, to_go
from .losses import approx_kl, clipped_value_loss, constant_mean, ratio_error, reinforce_loss, response_mean
from .policy import ActorConfig, ActorCritic, PolicyConfig, Reference
from .rollout import Rollout
from .rollout_metrics import mean_return
from .rollout_parts import beginnings
from .training.command_line import run as run_program
from .training.extra import OmitArgPrefixes
from .training.groups import GroupConfig, GroupTrainer
from .training.importance import weighed
from .training.kl_in import KL_IN, KLIn, charged_kl, kl_term
from .training.on_policy import Batch, Scores
from .training.run import Run, run_of_command_line
from .training.run_settings import RunSettings
from .training.setting_checks import NOT_NEGATIVE, check, choice


@dataclass
class ReinforceConfig(GroupConfig):
    """Settings of the algorithm, beside those of every one that plays groups, which say how they are checked."""

    baseline: Literal["leave_one_out", "mean", "greedy", "learned", "none"] = "leave_one_out"
    """What is taken off a return: the mean of the others of its group (RLOO), a running mean over updates, the return
    of the greedy response to the same prompt (SCST), V of the state before the token (a value head that regresses on
    what is still to come), or nothing."""
    kl_in: KLIn = "reward"
    """−β·k1 in the reward of each token, β·ratio·k3 in the loss, or "both": β·KL of each state, summed over the
    vocabulary, in the loss, and −β·KL of the later states in the reward, which has the same expected gradient as k1
    and less noise, for the logits of the reference once more."""
    value_lr: float = 1e-3
    """Peak learning rate of the value head of baseline="learned"."""
    value_coef: float = 0.1
    """Weight of its squared error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        baselines = ("leave_one_out", "mean", "greedy", "learned", "none")
        check(self, {"baseline": choice(*baselines), "value_lr": NOT_NEGATIVE, "value_coef": NOT_NEGATIVE})
        check(self, {"kl_in": KL_IN})
        if self.group_size < 2 and self.baseline == "leave_one_out":
            raise ValueError('group_size=1 must be at least 2 with baseline="leave_one_out": there is no other')


@dataclass
class ReinforceSettings(RunSettings):
    """Train a language model with REINFORCE."""

    policy: OmitArgPrefixes[ActorConfig] = field(default_factory=ActorConfig)
    """Which weights learn."""
    reinforce: OmitArgPrefixes[ReinforceConfig] = field(default_factory=ReinforceConfig)
    """The algorithm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reinforce.check_slots(self.num_envs)
        if self.reinforce.baseline == "learned" and not isinstance(self.policy, PolicyConfig):
            self.policy = PolicyConfig(**vars(self.policy), critic="detached")


class Reinforce(GroupTrainer):
    """The plain policy gradient of whole responses, one pass per rollout; see `OnPolicyTrainer` for the arguments.

    With ``baseline="learned"`` the policy has a critic that is "detached" or "separate".
    """

    mean_return = 0.0  # running: each update brings it half the way to its own mean

    def __init__(
        self,
        venv: gym.vector.VectorEnv,
        policy: ActorCritic,
        config: ReinforceConfig,
        *,
        reference: Reference | None = None,
        seed: int = 1,
        total_updates: int = 100,
    ) -> None:
        kind = getattr(policy.config, "critic", None)
        if config.baseline == "learned" and kind not in ("detached", "separate"):
            raise ValueError(
                f'baseline="learned" with critic={kind!r} needs a policy of PolicyConfig(critic="detached") or '
                '"separate": the regression may not move the actor'
            )
        super().__init__(venv, policy, config, reference=reference, seed=seed, total_updates=total_updates)

    @torch.no_grad()
    def advantages(self, rollout: Rollout) -> Batch:
        """Score a rollout, whose groups are adjacent: R_i = Σ_t (r_t − β·k1_t), A_i = R_i − baseline.

        With ``kl_in="both"`` R_it = Σ_u r_u − β·Σ_{u>t} KL(s_u), and A_it = R_it − baseline.
        With the learned baseline A_t = G_t − V(s_t), where G_t is the part of R_i from token t on: what came before
        does not depend on that token, and its share in the expected gradient is 0.
        """
        if self.config.baseline == "learned":
            return self._with_values(rollout)
        scores, rewards = self._rewards(rollout)
        mask, size = rollout.response_mask, self.config.group_size
        returns = rewards.sum(dim=1, keepdim=True).expand_as(rewards)  # (B, T)
        if self.exact_kl:
            returns = rollout.rewards.sum(dim=1, keepdim=True) + to_go(rewards - rollout.rewards, mask)
        if self.config.baseline == "leave_one_out":
            advantages = leave_one_out(returns, mask, size)
        elif self.config.baseline == "greedy":
            advantages = self_critical(returns, self._greedy_returns(rollout).repeat_interleave(size)[:, None], mask)
        else:
            constant = self.mean_return if self.config.baseline == "mean" else 0.0
            advantages = self_critical(returns, torch.full_like(returns, constant), mask)
        return self._batch(rollout, scores, rewards, advantages, returns * mask)

    def _batch(self, rollout: Rollout, scores: Scores, rewards: Tensor, advantages: Tensor, returns: Tensor) -> Batch:
        batch = Batch(rollout, *scores[:4], rewards, advantages, returns, kl_weight=torch.ones_like(rewards))
        batch.metrics = self.describe(batch, scores.entropy)
        return weighed(batch, self.config)

    def _with_values(self, rollout: Rollout) -> Batch:
        head = self.policy.value_head
        assert head is not None
        head.start_at(mean_return(rollout, 1.0))
        scores, rewards = self._rewards(rollout)
        assert scores.values is not None
        advantages, returns = gae(rewards, scores.values, rollout.response_mask, 1.0, 1.0)
        return self._batch(rollout, scores, rewards, advantages, returns)

    def _rewards(self, rollout: Rollout) -> tuple[Scores, Tensor]:
        """What policy and reference say, and (B, T) rewards with the KL penalty."""
        if cut := int(rollout.bootstrapped.sum()):
            what = f"{cut} responses were cut from outside, without a score, and REINFORCE guesses none"
            raise ValueError(f"{what}; take the limit of steps away (max_new_tokens pays the score), or use PPO")
        scores = self.score(rollout)
        charged = charged_kl(scores, rollout.response_mask, self.config.kl_in)
        return scores, rollout.rewards - self.kl.value * charged

    def _greedy_returns(self, rollout: Rollout) -> Tensor:
        """(groups,) returns of the greedy responses to the prompts of a rollout."""
        if rollout.chosen_prompts is None:
            raise ValueError('baseline="greedy" needs rollout.chosen_prompts; collect with prompts=')
        prompts = rollout.chosen_prompts[:: self.config.group_size]
        spare = max(0, self.venv.num_envs - len(prompts))  # every slot plays at least one
        begun = None if rollout.begun is None else beginnings(rollout)[:: self.config.group_size]
        responses = None if begun is None else [*begun, *begun[:1] * spare]
        greedy = self.collect([*prompts, *prompts[:1] * spare], responses=responses, greedy=True)
        return self._rewards(greedy)[1].sum(dim=1)[: len(prompts)]

    def loss(self, batch: Batch, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """−E[Σ_t A·log π(a_t|s_t)] (+ β·KL, + c_v·L_value): the mean over some responses; and its diagnostics."""
        constants = (batch.old_log_probs, batch.advantages, batch.returns, batch.rollout.response_mask)
        old_log_probs, advantages, returns, mask = batch.rollout.cut(rows, *constants)  # (b, t)
        new = self.evaluate(batch.rollout, rows, with_kl=self.exact_kl)
        loss = reinforce_loss(new.log_probs, advantages, mask)
        told = (new.log_probs, old_log_probs, mask)
        parts = {"approx_kl": approx_kl(*told), "ratio_error": ratio_error(*told)}
        if (kl_loss := kl_term(self, batch, rows, new, constant_mean(1))) is not None:
            parts["kl_loss"] = kl_loss
            loss = loss + self.kl.value * kl_loss
        if self.config.baseline == "learned":
            assert new.values is not None
            parts["value_loss"] = clipped_value_loss(new.values, new.values, returns, None, mask, mean=response_mean)
            loss = loss + self.config.value_coef * parts["value_loss"]
        return loss, {name: part.detach() for name, part in {"loss": loss, **parts}.items()}

    def weight(self, batch: Batch, rows: Tensor) -> int:
        """The loss is a mean over responses."""
        return len(rows)

    def update(self, batch: Batch) -> dict[str, float]:
        """See `OnPolicyTrainer.update`; the running mean moves."""
        self.mean_return += 0.5 * (batch.metrics["reward"] - self.mean_return)
        return {**super().update(batch), "mean_return": self.mean_return}

    def state_dict(self) -> dict[str, Any]:
        """See `OnPolicyTrainer.state_dict`."""
        return {**super().state_dict(), "mean_return": self.mean_return}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `OnPolicyTrainer.load_state_dict`."""
        super().load_state_dict(state)
        self.mean_return = float(state["mean_return"])


def make_run(arguments: Sequence[str] | None = None) -> Run:
    """Everything up to the first update; see `main`."""

    def make_trainer(run: Run) -> Reinforce:
        return Reinforce(run.venv, run.policy, run.settings.reinforce, **run.options)

    return run_of_command_line("textgen_env.agents.reinforce", ReinforceSettings, make_trainer, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.reinforce --help``"""
    make_run(arguments).execute()


if __name__ == "__main__":
    run_program(make_run)
