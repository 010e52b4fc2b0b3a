"""Token-level PPO in the real environment: ratios of exactly 1, gradients, resumption, and tasks that it must solve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from textgen_env.agents.policy import ActorCritic, PolicyConfig
from textgen_env.agents.ppo import PPO
from textgen_env.agents.ppo_config import PPOConfig

from textgen_env.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]


def make_ppo(venv: gym.vector.VectorEnv, source: Path, dtype: str = "float32", **settings: Any) -> PPO:
    lora_rank, critic = settings.pop("lora_rank", 0), settings.pop("critic", "shared")
    policy = ActorCritic(LanguageModel(source, dtype=dtype), PolicyConfig(lora_rank=lora_rank, critic=critic))
    defaults = {"episodes": 12, "epochs": 2, "minibatch_size": 4, "micro_batch_size": 4, "lr": 1e-2}
    return PPO(venv, policy, PPOConfig(**{**defaults, **settings}))


SAMPLING = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "masks": {"min_new_tokens": 3, "forbidden_tokens": ["<pad>", "b"]},
    "all": {"temperature": 1.5, "top_k": 8, "top_p": 0.9, "min_new_tokens": 2},
}


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampling", SAMPLING)
def test_the_first_ratio_is_exactly_one(make_venv: MakeVenv, word_model: Path, sampling, dtype, lora_rank):
    """Old and new log-probs come from the same kind of forward: before the first step nothing has moved at all."""
    options = dict(SAMPLING[sampling])
    agent = {key: options.pop(key) for key in ("top_k", "top_p") if key in options}
    ppo = make_ppo(make_venv(**options), word_model, dtype, lora_rank=lora_rank, **agent)
    ppo.train(1)  # so that adapters and masters have moved away from their start
    batch = ppo.advantages(ppo.collect())
    for rows in batch.packs:
        _, parts = ppo.loss(batch, rows)
        assert parts["ratio_error"] == 0
        assert parts["approx_kl"] == 0
    assert ppo.update(batch)["first_ratio_error"] == 0
