"""Old log-probs and values from decoding, beside those of a teacher-forced pass over the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

from textgen_env.agents.policy import ActorCritic, PolicyConfig
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]


def trained_ppo(venv: gym.vector.VectorEnv, source: Path, dtype: str = "float32", **policy: Any) -> PPO:
    """After an update, so that the value head has something to say; slots are refilled, lengths differ."""
    agent = ActorCritic(LanguageModel(source, dtype=dtype), PolicyConfig(**policy))
    sizes = {"episodes": 20, "minibatch_size": 4, "micro_batch_size": 4}
    ppo = PPO(venv, agent, PPOConfig(**sizes, lr=1e-2, old_log_probs="sampled", top_k=7))
    ppo.train(1)
    return ppo


@pytest.mark.parametrize("policy", [{}, {"lora_rank": 4}, {"critic": "separate"}])
def test_decoding_knows_what_a_teacher_forced_pass_finds(make_venv: MakeVenv, word_model: Path, policy: dict[str, Any]):
    ppo = trained_ppo(make_venv(temperature=0.8, min_new_tokens=2), word_model, **policy)
    rollout = ppo.collect()
    assert (rollout.states is None) == ("critic" in policy)
    by_decoding = ppo.advantages(rollout)
    ppo.config = replace(ppo.config, old_log_probs="scored")
    by_scoring = ppo.advantages(rollout)
    assert by_decoding.values.std() > 0
    for name in ("old_log_probs", "values", "rewards", "advantages", "returns"):
        torch.testing.assert_close(getattr(by_decoding, name), getattr(by_scoring, name), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.15)])
def test_the_first_ratio_is_one_up_to_rounding(make_venv: MakeVenv, word_model: Path, dtype: str, tolerance: float):
    ppo = trained_ppo(make_venv(), word_model, dtype)
    batch = ppo.advantages(ppo.collect())
    errors = [float(ppo.loss(batch, rows)[1]["ratio_error"]) for rows in batch.micro_batches]
    assert 0 < max(errors) < tolerance


def test_the_entropy_is_the_one_sample_estimate(make_venv: MakeVenv, word_model: Path):
    ppo = trained_ppo(make_venv(), word_model)
    batch = ppo.advantages(ppo.collect())
    tokens = batch.rollout.response_mask.bool()
    assert batch.metrics["entropy"] == pytest.approx(-batch.old_log_probs[tokens].mean().item(), rel=1e-5)


def test_a_rollout_without_states_is_refused(make_venv: MakeVenv, word_model: Path):
    ppo = trained_ppo(make_venv(), word_model)
    with pytest.raises(ValueError, match="with_states=True"):
        ppo.advantages(replace(ppo.collect(), states=None))


def test_unknown_choice():
    with pytest.raises(ValueError, match="old_log_probs='guessed'"):
        PPOConfig(old_log_probs="guessed")  # type: ignore[arg-type]
