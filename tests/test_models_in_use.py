"""The environment, PPO and policies on models that decode in ways of their own: the numbers of the plain forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode
from model_zoo import batch, build, own_output
from tiny_models import byte_tokenizer

from textgen_env.agents.policy import ActorCritic, PolicyConfig
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.integrations.networks import LMLogits
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.log_probs import predicting, states


def saved(name: str, folder: Path) -> LanguageModel:
    """A model over bytes in a folder."""
    tokenizer = byte_tokenizer()
    build(name, vocab_size=len(tokenizer) + 5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LanguageModel(folder)


@pytest.mark.parametrize("name", ["mamba", "roberta", "llama-dynamic"])
def test_the_reference_of_the_environment_is_the_models_own(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    task: dict[str, Any] = {"model": str(tmp_path), "prompts": ["I like cats"], "scorer": "distinct", "kl_coef": 0.1}
    env = gym.make("textgen/TextGen-v0", **task, max_prompt_tokens=16, max_new_tokens=4)
    observation, _ = env.reset(seed=0)
    for action in (20, 30, 40):
        text = observation["input_ids"][: int(observation["attention_mask"].sum())]
        observation, _, _, _, info = env.step(action)
        with torch.no_grad():
            logits = own_output(model.model, text).logits[0, -1, : model.vocab_size]
        assert info["ref_logprob"] == pytest.approx(float(logits.log_softmax(-1)[action]), abs=1e-3)


@pytest.mark.parametrize("name", ["mamba", "roberta", "llama-dynamic", "phi3-longrope"])
def test_ppo_samples_from_the_model_itself(name: str, tmp_path: Path) -> None:
    """The log-probs that `collect` notes down are the plain forward's, and so are those of the reference."""
    model = saved(name, tmp_path)
    task: dict[str, Any] = {"model": str(tmp_path), "prompts": ["I like cats", "Dog", "a"], "scorer": "distinct"}
    venv = gym.make_vec(
        *("textgen/TextGen-v0", 3),
        **task,
        **{"max_prompt_tokens": 16, "max_new_tokens": 6, "autoreset_mode": AutoresetMode.DISABLED},
    )
    sizes = {"episodes": 5, "minibatch_size": 5, "micro_batch_size": 5}
    ppo = PPO(venv, ActorCritic(model, PolicyConfig(critic="separate")), PPOConfig(**sizes, old_log_probs="sampled"))
    rollout = ppo.collect()
    with torch.no_grad():
        for row, column in rollout.response_mask.nonzero().tolist():
            logits = own_output(model.model, rollout.input_ids[row, :column]).logits[0, -1, : model.vocab_size]
            expected = logits.log_softmax(-1)[rollout.input_ids[row, column]]
            torch.testing.assert_close(rollout.sampled_log_probs[row, column], expected, atol=1e-3, rtol=0)
    batch = ppo.advantages(rollout)
    assert batch.metrics["kl_per_token"] == pytest.approx(0.0, abs=1e-3)
    assert float(ppo.loss(batch, batch.micro_batches[0])[1]["ratio_error"]) < 1e-3


@pytest.mark.parametrize("name", ["mamba", "bart", "phi3-longrope", "llama-dynamic"])
def test_a_critics_states_are_the_bodys_own(name: str) -> None:
    body = build(name).base_model
    ids, attention, response = batch()
    found, _ = states(body, ids, attention, predicting(response))
    with torch.no_grad():
        expected = [
            own_output(body, ids[row, :column]).last_hidden_state[0, -1] for row, column in response.nonzero().tolist()
        ]
    torch.testing.assert_close(found.detach(), torch.stack(expected), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["mamba", "roberta", "xlnet"])
def test_a_policy_in_plain_torch_is_the_models_own(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    ids, attention, _ = batch()
    policy = LMLogits(model, rows=4)
    for gradient in (False, True):
        with torch.set_grad_enabled(gradient):
            logits, _ = policy(ids, attention)
        for row, length in enumerate(attention.sum(1).tolist()):
            expected = own_output(model.model, ids[row, :length]).logits[0, -1, : model.vocab_size]
            torch.testing.assert_close(logits[row].log_softmax(-1), expected.log_softmax(-1), atol=1e-3, rtol=0)
