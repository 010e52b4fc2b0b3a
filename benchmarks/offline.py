"""Learning from recorded episodes: cloning, cloning the best, and IQL; and off-policy estimates beside the truth.

    python -m benchmarks.offline --seeds 1 2 3 > offline.jsonl

What lives here: recording with the untrained policy, the methods, the control and the sweep over seeds. What does not:
the methods (``agents/sft.py``, ``agents/iql.py``), the estimators (``agents/offline_estimates.py``).

Everything is judged on 400 prompts that nothing was recorded for. The settings were chosen with seed 101 on other 200
prompts (``--tune``), on which the seeds that are reported may train.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast

import gymnasium as gym
import torch
import tyro
from gymnasium.vector import AutoresetMode, VectorEnv

from textgen_env.agents.iql import IQL, IQLConfig
from textgen_env.agents.minari_data import RecordedEpisodes
from textgen_env.agents.ope import off_policy
from textgen_env.agents.policy import ActorConfig, ActorCritic, PolicyConfig
from textgen_env.agents.record import record
from textgen_env.agents.sft import SFT, SFTConfig, recorded_examples
from textgen_env.agents.training.environments import split_prompts, task_spec, token_env_spec
from textgen_env.agents.training.evaluate import evaluate
from textgen_env.agents.training.run_settings import TaskSettings
from textgen_env.lm.language_model import LanguageModel
from textgen_env.prompts import load_prompts

HELD_OUT, TUNING = 400, 200


@dataclass
class Settings:
    """Record, learn offline, judge, and estimate without playing."""

    env: str = "textgen/Sentiment-v0"
    """The task."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Each records, and learns, anew."""
    episodes: int = 2000
    """Recorded for each seed."""
    responses: int = 4
    """Per prompt."""
    updates: int = 250
    """Optimiser steps of cloning."""
    iql_updates: int = 500
    """Optimiser steps of IQL."""
    methods: tuple[str, ...] = ("clone all", "clone best 25%", "clone best 10%", "iql", "iql, shuffled rewards")
    """Which."""
    tune: bool = False
    """Judge on the prompts for choosing settings."""
    estimated: tuple[str, ...] = ("iql",)
    """Of which methods' policies the score is also estimated off-policy, and played."""
    critic: Literal["shared", "detached", "separate"] = "detached"
    """Of IQL."""
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(lr=4e-4))
    """Cloning."""
    iql: IQLConfig = field(default_factory=IQLConfig)
    """Implicit Q-learning."""


class Task:
    """A task's prompts in three parts, and environments on them."""

    def __init__(self, env: str, tune: bool) -> None:
        self.spec = task_spec(TaskSettings(env=env))
        self.prompts = load_prompts(self.spec.kwargs["prompts"])
        _, held_out = split_prompts(self.prompts, HELD_OUT + TUNING)
        self.judged = held_out[HELD_OUT:] if tune else held_out[:HELD_OUT]
        kept_out = {id(prompt) for prompt in (held_out if tune else self.judged)}
        self.playable = [number for number, prompt in enumerate(self.prompts) if id(prompt) not in kept_out]

    def make(self, prompts: Sequence[Any], slots: int = 64) -> VectorEnv:
        """An environment on some prompts."""
        spec = token_env_spec(self.spec.id)
        kwargs = {**self.spec.kwargs, "prompts": list(prompts)}
        return gym.make_vec(spec, num_envs=slots, autoreset_mode=AutoresetMode.DISABLED, **kwargs)

    def record(self, episodes: int, responses: int, seed: int, policy: ActorCritic | None = None) -> RecordedEpisodes:
        """Episodes of a policy, or of the untrained model, on prompts that are not judged."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.playable), generator=generator)[: episodes // responses].tolist()
        prompts = [self.playable[i] for i in order for _ in range(responses)]
        venv = self.make(self.prompts)
        policy = policy or ActorCritic(cast(Any, venv.unwrapped).language_model, ActorConfig())
        return record(venv, self.spec, policy, untrained_reference(), prompts, seed=seed)


def untrained_reference() -> Any:
    """log π_ref of the untrained model."""
    return ActorCritic(LanguageModel("tiny"), ActorConfig()).reference()


def learn(method: str, recorded: RecordedEpisodes, settings: Settings, seed: int) -> ActorCritic:
    """A policy that has learned from the episodes."""
    updates = settings.iql_updates if method.startswith("iql") else settings.updates
    options: dict[str, Any] = {"seed": seed, "total_updates": updates}
    generator = torch.Generator().manual_seed(seed)
    if method.startswith("iql"):
        policy = ActorCritic(LanguageModel("tiny"), PolicyConfig(critic=settings.critic), generator=generator)
        episodes = shuffled(recorded, seed) if "shuffled" in method else recorded
        IQL(policy, settings.iql, episodes, **options).train(updates)
        return policy
    policy = ActorCritic(LanguageModel("tiny"), ActorConfig(), generator=generator)
    share = 1.0 if method == "clone all" else float(method.split()[2].rstrip("%,")) / 100
    episodes = shuffled(recorded, seed) if "shuffled" in method else recorded
    examples = recorded_examples(episodes, share)
    SFT(policy, settings.sft, examples, **options).train(updates)
    return policy


def shuffled(recorded: RecordedEpisodes, seed: int) -> RecordedEpisodes:
    """Each episode is paid, at its end, what another one was: the control."""
    rollout = recorded.rollout
    order = torch.randperm(len(rollout.texts), generator=torch.Generator().manual_seed(seed))
    rewards = torch.zeros_like(rollout.rewards)
    rewards[torch.arange(len(order)), rollout.tokens.lengths - 1] = rollout.rewards.sum(dim=1)[order]
    return replace(recorded, rollout=replace(rollout, rewards=rewards, scores=rollout.scores[order]))


def estimates(policy: ActorCritic, task: Task, settings: Settings, seed: int) -> dict[str, Any]:
    """Of a policy, from episodes that it did not learn from; and from its own, which is the truth."""
    fresh = task.record(settings.episodes, settings.responses, seed + 1000)
    found = off_policy(fresh, policy).estimate(seed=seed)
    own = task.record(settings.episodes, settings.responses, seed + 1000, policy).rollout.scores.double()
    per_prompt = own.view(-1, settings.responses).mean(dim=1)
    return {"played": per_prompt.mean().item(), "stderr": (per_prompt.std() / len(per_prompt) ** 0.5).item()} | {
        "estimates": found._asdict()
    }


def main() -> None:
    """One JSON line per seed and method."""
    settings = tyro.cli(Settings)
    task, reference = Task(settings.env, settings.tune), untrained_reference()
    venv = task.make(task.judged)
    for seed in settings.seeds:
        recorded = task.record(settings.episodes, settings.responses, seed)
        untrained = evaluate(venv, ActorCritic(LanguageModel("tiny"), ActorConfig()), reference, samples=2)
        record_of = {"seed": seed, "recorded": float(recorded.rollout.scores.mean())}
        print(json.dumps({**record_of, "method": "untrained", **untrained.metrics}), flush=True)
        for method in settings.methods:
            begin = time.perf_counter()
            policy = learn(method, recorded, settings, seed)
            seconds = time.perf_counter() - begin
            metrics = evaluate(venv, policy, reference, samples=2).metrics
            line: dict[str, Any] = {**record_of, "method": method, "seconds": seconds, **metrics}
            if method in settings.estimated:
                line |= estimates(policy, task, settings, seed)
            print(json.dumps(line | {"settings": asdict(settings)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
