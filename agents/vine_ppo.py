"""VinePPO: PPO without a critic, whose values are means of responses played on from states on the way.

What lives here: branch points, their values, advantages and loss, settings, and the command
(``python -m textgen_env.agents.vine_ppo``). What does not: the loop (``training/on_policy.py``), playing on from a
prefix (`collect` with ``responses``), responses that branch and are all learned from (``response_tree.py``), the loss
itself (``losses.py``), the run (``training/run.py``).

An environment of text can begin anywhere: a response's first t tokens are a state, and k responses that go on from
there say what it is worth, without bias, which no critic does. They cost k decodes each, where a critic costs none;
they pay where values are hard to learn and what decides comes late. ``learn_from="all"`` throws none of them away.

References:
    Kazemnejad et al., "VinePPO: refining credit assignment in RL training of LLMs" (2025).
    Schulman et al., "Trust region policy optimization" (2015), section 5.2: the vine procedure.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

from textgen_env.kl import k1

from . import losses
from .advantages import masked_whiten, to_go
from .policy import ActorConfig, ActorCritic, Reference
from .response_tree import BranchEstimates, grow, play, tree_advantages
from .rollout import Rollout
from .rollout_metrics import surrogate_metrics
from .rollout_parts import begun_lengths, whole_responses
from .training.command_line import run as run_program
from .training.extra import OmitArgPrefixes
from .training.importance import weighed
from .training.kl_in import charged_kl
from .training.on_policy import Batch, OnPolicyConfig, OnPolicyTrainer
from .training.run import Run, run_of_command_line
from .training.run_settings import RunSettings
from .training.setting_checks import COUNT, FLAG, POSITIVE, check, choice


@dataclass
class VinePPOConfig(OnPolicyConfig):
    """Settings of the algorithm, beside those of every on-policy one."""

    continuations: int = 4
    """Responses that are played on from each branch point."""
    branch_every: int = 4
    """Tokens between two branch points; the first is before the first token."""
    learn_from: Literal["responses", "all"] = "responses"
    """The continuations serve the values of the responses alone, as published; or they are learned from as well and
    branch in turn, so that `continuations` responses part at each branch point."""
    epochs: int = 2
    """Passes over the trajectories of an update."""
    clip: float = 0.2
    """ε of the clipped surrogate."""
    whiten: bool = True
    """Whiten the advantages over the whole batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = dict.fromkeys(("continuations", "branch_every", "epochs"), COUNT)
        check(self, {**counts, "learn_from": choice("responses", "all"), "clip": POSITIVE, "whiten": FLAG})
        if self.learn_from == "all" and (self.continuations < 2 or self.episodes % self.continuations):
            what = f"continuations={self.continuations} must be at least 2 and divide episodes={self.episodes}"
            raise ValueError(f'{what} with learn_from="all": so many responses to a prompt are compared')
        if self.learn_from == "all" and self.reset_share:
            raise ValueError(f'reset_share={self.reset_share} must be 0 with learn_from="all", which branches from 0')


@dataclass
class VinePPOSettings(RunSettings):
    """Train a language model with VinePPO."""

    policy: OmitArgPrefixes[ActorConfig] = field(default_factory=ActorConfig)
    """Which weights learn."""
    vine_ppo: OmitArgPrefixes[VinePPOConfig] = field(default_factory=VinePPOConfig)
    """The algorithm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.vine_ppo.check_slots(self.num_envs)


class VinePPO(OnPolicyTrainer):
    """Proximal policy optimisation with Monte-Carlo values; see `OnPolicyTrainer` for the arguments.

    Raises:
        ValueError: the environment answers, and no response with answers inside can be begun with.
    """

    def __init__(
        self,
        venv: gym.vector.VectorEnv,
        policy: ActorCritic,
        config: VinePPOConfig | None = None,
        *,
        reference: Reference | None = None,
        seed: int = 1,
        total_updates: int = 100,
    ) -> None:
        config = config or VinePPOConfig()
        super().__init__(venv, policy, config, reference=reference, seed=seed, total_updates=total_updates)
        self.epochs = config.epochs
        if self.env.engine.turns is not None:
            raise ValueError("VinePPO branches inside of a response, and this environment answers: use PPO there")

    def collect(
        self,
        prompts: Sequence[Any] | None = None,
        *,
        responses: Sequence[Sequence[int]] | None = None,
        greedy: bool = False,
    ) -> Rollout:
        """Play ``episodes`` responses to prompts that are drawn, since each is played again; or see the base."""
        cfg = self.config
        if prompts is None and cfg.learn_from == "all":
            drawn = self.draw_prompts(cfg.episodes // cfg.continuations)
            return grow(self, [prompt for prompt in drawn for _ in range(cfg.continuations)], *self._branching)
        if prompts is None:
            prompts = self.draw_prompts(cfg.episodes)
            responses = self.draw_beginnings(prompts)
        return super().collect(prompts, responses=responses, greedy=greedy)

    @torch.no_grad()
    def advantages(self, rollout: Rollout) -> Batch:
        """Score a rollout and play on from its branch points s_0, s_1, …: A = Σ r + V̂(s_{i+1}) − V̂(s_i).

        All tokens between two branch points share it: the sum is over the rewards of that stretch, KL included, and the
        end of the response is worth 0. V̂(s_i) knows nothing of the tokens that follow s_i, and V̂(s_{i+1}) is unbiased:
        the expected gradient of the first step is that of the objective.
        """
        cfg, mask, scores = self.config, rollout.response_mask, self.score(rollout)
        rewards = rollout.rewards - self.kl.value * charged_kl(scores, mask, "reward")
        if cfg.learn_from == "all":
            estimated = tree_advantages(rollout, rewards, *self._branching)
        else:
            estimated = self._vine(rollout, rewards)
        advantages, values, weights, branch_points = estimated
        returns = torch.where(mask.bool(), to_go(rewards, mask), 0.0)
        batch = Batch(rollout, *scores[:2], values, scores.ref_log_probs, rewards, advantages, returns)
        batch.metrics = {**self.describe(batch, scores.entropy), "branch_points": float(branch_points)}
        if cfg.whiten:
            batch.advantages = masked_whiten(batch.advantages, mask)
        batch.advantages = batch.advantages * weights
        return weighed(batch, cfg)

    @property
    def _branching(self) -> tuple[int, int]:
        return self.config.continuations, self.config.branch_every

    def _vine(self, rollout: Rollout, rewards: Tensor) -> BranchEstimates:
        """From continuations that are played here; all tokens weigh alike."""
        of_states, every = self._values(rollout), self.config.branch_every
        advantages, values = torch.zeros_like(rewards), torch.zeros_like(rewards)
        for row, (columns, way) in enumerate(zip(rollout.response_mask.bool(), self._states(rollout), strict=True)):
            paid = rewards[row, columns]
            here = torch.tensor([of_states[state] for state in way]).to(paid)
            later = torch.cat([here[1:], here.new_zeros(1)])
            gained = torch.stack([stretch.sum() for stretch in paid.split(every)]) + later - here
            stretch = torch.arange(len(paid)) // every
            advantages[row, columns], values[row, columns] = gained[stretch], here[stretch]
        return BranchEstimates(advantages, values, torch.ones_like(rewards), len(of_states))

    def _states(self, rollout: Rollout) -> list[list[State]]:
        """The branch points of each response: its prompt, and what is written already."""
        count, found = len(rollout.texts), []
        prompts = range(count) if rollout.chosen_prompts is None else rollout.chosen_prompts
        begun = begun_lengths(rollout).tolist()
        for row, (prompt, start, written) in enumerate(zip(prompts, begun, whole_responses(rollout), strict=True)):
            # a prompt that is not a number may not be hashable; its row stands for it
            key = prompt if isinstance(prompt, int) else ("row", row)
            places = range(start, len(written), self.config.branch_every)
            found.append([State(key, tuple(written[:at])) for at in places])
        return found

    def _values(self, rollout: Rollout) -> dict[State, float]:
        """V̂ of every branch point, each played on once however many responses pass through it."""
        if rollout.chosen_prompts is None:
            raise ValueError("rollout.chosen_prompts is None: what was played is played on; collect with prompts=")
        places = {state: row for row, way in enumerate(self._states(rollout)) for state in way}
        states, count = list(places), self.config.continuations
        prompts = [rollout.chosen_prompts[places[state]] for state in states]
        means = play_on(self, prompts, [state.written for state in states], count).mean(dim=1)
        return dict(zip(states, means.tolist(), strict=True))

    def weight(self, batch: Batch, rows: Tensor) -> int:
        """The loss is a mean over responses."""
        return len(rows)

    def loss(self, batch: Batch, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_clip of some responses, each a sum over max_new_tokens as in Dr. GRPO; and its diagnostics."""
        clip, constants = self.config.clip, (batch.old_log_probs, batch.advantages, batch.rollout.response_mask)
        old_log_probs, advantages, mask = batch.rollout.cut(rows, *constants)  # (b, t)
        log_probs = self.evaluate(batch.rollout, rows).log_probs
        mean = losses.constant_mean(self.env.max_new_tokens)
        loss = losses.clipped_surrogate(log_probs, old_log_probs, advantages, clip, mask, mean=mean)
        with torch.no_grad():
            parts = surrogate_metrics(log_probs, old_log_probs, clip, mask)
        return loss, {name: part.detach() for name, part in {"loss": loss, **parts}.items()}


class State(NamedTuple):
    """A prompt, and what is written of the response."""

    prompt: Hashable
    written: tuple[int, ...]


@torch.no_grad()
def play_on(trainer: OnPolicyTrainer, prompts: Sequence[Any], responses: Sequence[Sequence[int]], count: int) -> Tensor:
    """(n, count) float64 returns of responses that go on from n states: of what comes after them, KL included.

    Args:
        trainer: whose policy, environment, β and generator are used.
        prompts: n, anything that `collect` takes.
        responses: n, the tokens that are written already.
        count: how many from each state.

    Raises:
        ValueError: a response was cut from outside, without a score, and is not worth anything that is known.
    """
    rows = [i for i in range(len(prompts)) for _ in range(count)]
    rollout = play(trainer, [prompts[i] for i in rows], [responses[i] for i in rows])
    rewards = rollout.rewards
    if trainer.reference is not None:
        log_probs, ref = rollout.sampled_log_probs, trainer.reference_log_probs(rollout)
        rewards = rewards - trainer.kl.value * k1(log_probs, ref)
    return torch.where(rollout.response_mask.bool(), rewards, 0.0).double().sum(dim=1).view(-1, count)


def make_run(arguments: Sequence[str] | None = None) -> Run:
    """Everything up to the first update; see `main`."""

    def make_trainer(run: Run) -> VinePPO:
        return VinePPO(run.venv, run.policy, run.settings.vine_ppo, **run.options)

    return run_of_command_line("textgen_env.agents.vine_ppo", VinePPOSettings, make_trainer, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.vine_ppo --help``"""
    make_run(arguments).execute()


if __name__ == "__main__":
    run_program(make_run)
