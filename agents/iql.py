"""Implicit Q-learning: better than who played the recorded episodes, without playing any.

What lives here: the algorithm, its settings and the door of the command line (``python -m textgen_env.agents.iql``).
What does not: the losses (``offline_losses.py``), the data set (``minari_data.py``), minibatches and epochs
(``training/supervised.py``), the run (``training/run.py``), which judges responses to held-out prompts.

What a token leads to is certain, Q(s, a) = r + γ·V(s ⊕ a), so that one network does for V and Q. V(s) is regressed on
R_t = r_t + γ·((1 − λ)·V(s_{t+1}) + λ·R_{t+1}) by the expectile loss: it leans towards the best that was seen to follow
s, and asks of no token that nobody has tried. The policy imitates each token by exp((R_t − V(s_t))/α) and stays a plain
language model, which every other command takes. λ = 0 is the algorithm of the paper. Where an environment replies, what
a token leads to is not certain, and an expectile above ½ takes its luck for skill.

References:
    Kostrikov, Nair & Levine, "Offline reinforcement learning with implicit Q-learning" (2021).
    Peng et al., "Advantage-weighted regression" (2019): the policy's loss.
    Snell et al., "Offline RL for natural language generation with implicit language Q learning" (2022): on tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from textgen_env.lm.sampling import SamplingParams
from textgen_env.lm.token_batch import TokenBatch
from textgen_env.notices import warn_user

from .advantages import gae
from .losses import explained_variance
from .minari_data import RecordedEpisodes, read
from .offline_losses import advantage_weighted_loss, advantage_weights, expectile_loss
from .policy import ActorCritic, PolicyConfig
from .rollout import Rollout
from .rollout_metrics import mean_return
from .training.command_line import run as run_program
from .training.extra import OmitArgPrefixes
from .training.run import Run, run_of_command_line
from .training.run_settings import RunSettings
from .training.setting_checks import COUNT_OR_ZERO, NOT_NEGATIVE, POSITIVE, SHARE, TEXT, check, number, optional
from .training.supervised import SupervisedTrainer
from .training.trainer import OptimConfig


@dataclass
class IQLConfig(OptimConfig):
    """Settings of the algorithm."""

    warmup_updates: int = 10
    """Updates of linear warm-up."""
    value_lr: float = 1e-3
    """Peak learning rate of the value head."""
    expectile: float = 0.7
    """τ of the values: ½ values who played; towards 1 it is the best that was played. Above 0 and below 1."""
    advantage_temperature: float = 0.05
    """α of the policy's weights exp(A/α), in units of reward: small follows the best, large clones."""
    max_weight: float = 20.0
    """The largest weight of a token."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    """λ of the targets: 1 is what was in fact paid, 0 what the next state is thought to be worth."""
    critic_warmup: int = 50
    """So many of the updates come first and teach the critic alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, RULES)


RULES = {
    "value_lr": NOT_NEGATIVE,
    "expectile": number("a number above 0 and below 1", lambda x: 0 < x < 1),
    **dict.fromkeys(("advantage_temperature", "max_weight"), POSITIVE),
    **dict.fromkeys(("gamma", "lam"), SHARE),
    "critic_warmup": COUNT_OR_ZERO,
}


@dataclass
class IQLSettings(RunSettings):
    """Learn from recorded episodes alone, to do better than they did."""

    dataset: str | None = None
    """Recorded episodes: a folder that `textgen record` has written."""
    updates: int = 500
    """Optimiser steps, those of the critic's warm-up among them."""
    eval_every: int | None = 50
    """Updates between evaluations on the held-out prompts, the best of which is kept in best/; None: only before and
    after the run."""
    sample_every: int = 50
    """Updates between tables of samples."""
    policy: OmitArgPrefixes[PolicyConfig] = field(default_factory=lambda: PolicyConfig(critic="detached"))
    """Which weights there are, and which of them learn. A critic that is more than a head soon knows the data by heart:
    then nothing in it is better than expected any more."""
    iql: OmitArgPrefixes[IQLConfig] = field(default_factory=IQLConfig)
    """The algorithm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, {"dataset": optional(TEXT)})
        if self.dataset is None:
            raise ValueError("dataset=None: name the folder that `textgen record` has written")


@dataclass
class OfflineBatch:
    """Some recorded episodes, by their rows in the rollout; what a run shows of an update."""

    numbers: Tensor  # (B,)
    tokens: TokenBatch  # (B, T) each
    prompts: list[str]
    texts: list[str]
    scores: Tensor  # (B,)


class IQL(SupervisedTrainer):
    """Learns from recorded episodes; see `SupervisedTrainer` for the other arguments.

    Args:
        policy: with a critic; trained in place.
        config: settings.
        recorded: the episodes. Log-probs are of what they were sampled with, top-k and top-p apart.

    Raises:
        ValueError: the policy has no critic.
    """

    def __init__(
        self,
        policy: ActorCritic,
        config: IQLConfig,
        recorded: RecordedEpisodes,
        *,
        sampling: SamplingParams | None = None,
        seed: int = 1,
        total_updates: int = 100,
    ) -> None:
        if policy.value_head is None:
            raise ValueError("policy has no critic, and IQL learns values; give it a PolicyConfig")
        sampling = recorded.sampling.of_reference if sampling is None else sampling
        options: dict[str, Any] = {"sampling": sampling, "seed": seed, "total_updates": total_updates}
        super().__init__(policy, config, range(len(recorded.rollout.texts)), **options)
        self.rollout: Rollout = recorded.rollout.to(policy.device)
        self._lengths = self.rollout.tokens.lengths.tolist()
        policy.value_head.start_at(mean_return(self.rollout, config.gamma))
        if config.expectile > 0.5 and bool((self.rollout.response_mask.diff(dim=1) == 1).sum(dim=1).gt(1).any()):
            warn_user(
                f"expectile={config.expectile}: the environment replies, and its luck is taken for skill; try 0.5"
            )

    @property
    def policy_learns(self) -> bool:
        """Not while the critic warms up."""
        return self.updates >= int(self.config.critic_warmup)

    def size(self, example: int) -> int:
        """Tokens of an episode."""
        return int(self._lengths[example])

    def batch(self, examples: Sequence[int]) -> OfflineBatch:
        """Some episodes."""
        rollout, numbers = self.rollout, torch.tensor(examples, device=self.policy.device)
        texts = [rollout.prompts[i] for i in examples], [rollout.texts[i] for i in examples]
        return OfflineBatch(numbers, rollout.rows(numbers), *texts, rollout.scores.to(numbers.device)[numbers])

    def iterate(self) -> tuple[dict[str, float], Any]:
        """See `SupervisedTrainer.iterate`; while the critic warms up, no gradient reaches the actor."""
        with nullcontext() if self.policy_learns else self.policy.actor_frozen():
            return super().iterate()

    def loss(self, batch: OfflineBatch, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The values' and the policy's loss of some episodes."""
        cfg, numbers = self.config, batch.numbers[rows]
        tokens = self.rollout.rows(numbers)
        (rewards,), mask = self.rollout.cut(numbers, self.rollout.rewards), tokens.response_mask
        evaluated = self.policy(tokens, self.sampling, mask=self.rollout.masks(numbers))
        values = evaluated.values
        advantages, returns = gae(rewards, values.detach(), mask, cfg.gamma, cfg.lam, self._bootstrap(numbers))
        value_loss = expectile_loss(values, returns, cfg.expectile, mask)
        weights = advantage_weights(advantages, cfg.advantage_temperature, cfg.max_weight, mask)
        policy_loss = advantage_weighted_loss(evaluated.log_probs, weights, mask)
        loss = value_loss + policy_loss if self.policy_learns else value_loss
        parts = {"loss": loss, "value_loss": value_loss, "policy_loss": policy_loss}
        count = mask.sum()
        told = {
            "value": values.detach().sum() / count,
            "advantage": advantages.sum() / count,
            "weight": weights.sum() / count,
            "weight_ess": weights.sum().square() / (weights.square().sum() * count).clamp(min=1e-12),
            "explained_variance": explained_variance(values, returns, mask),
        }
        return loss, {**{name: part.detach() for name, part in parts.items()}, **told}

    def _bootstrap(self, numbers: Tensor) -> Tensor | None:
        """(b,) V of the last state of an episode that was cut without its score, 0 elsewhere; None where none was."""
        cut = self.rollout.bootstrapped[numbers]
        if not cut.any():
            return None
        values = self.policy.final_values(*self.rollout.rows(numbers)[:2])
        return torch.where(cut, values, 0.0)


def make_trainer(run: Run) -> IQL:
    """The trainer of a run, on the episodes that its settings name."""
    settings = run.settings
    recorded = read(settings.dataset)
    recorded.check_fits(run.venv, run.eval_venv)
    run.run_folder.bind(dataset=recorded.fingerprint)
    options: Mapping[str, Any] = {"seed": settings.seed, "total_updates": settings.updates}
    return IQL(run.policy, settings.iql, recorded, sampling=SamplingParams(settings.temperature), **options)


def make_run(arguments: Sequence[str] | None = None) -> Run:
    """Everything up to the first update; see `main`."""
    return run_of_command_line("textgen_env.agents.iql", IQLSettings, make_trainer, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.iql --help``"""
    make_run(arguments).execute()


if __name__ == "__main__":
    run_program(make_run)
