"""What the tests of Stable-Baselines3 share: environments on tiny random models, PPO on them, what its buffer held."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from textgen_env import TextGenVectorEnv
from textgen_env.integrations.sb3 import EpisodeRolloutBuffer, LMActorCriticPolicy, SB3VecEnv

VOCAB, EOS = 259, 2


def make(arguments: dict[str, Any], slots: int = 4, **more: Any) -> SB3VecEnv:
    return SB3VecEnv(TextGenVectorEnv(slots, **arguments, **more))


def ppo(venv: Any, model: str, **more: Any) -> PPO:
    settings = {"n_steps": 12, "batch_size": 24, "gamma": 1.0, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    more["policy_kwargs"] = {"model": model} | more.get("policy_kwargs", {})
    return PPO(LMActorCriticPolicy, venv, rollout_buffer_class=EpisodeRolloutBuffer, **settings | more)


class Snapshot(BaseCallback):
    """Keeps what the buffer holds at the end of a rollout."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        names = ("rewards", "actions", "log_probs", "values", "episode_starts")
        self.columns = {name: getattr(buffer, name).copy() for name in names}
        self.observations = {key: value.copy() for key, value in buffer.observations.items()}
