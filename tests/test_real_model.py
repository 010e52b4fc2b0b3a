"""A short run of a real model: SmolLM2-135M, fetched once into the cache folder."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch

from textgen_env import LanguageModel
from textgen_env.agents.policy import ActorCritic
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.assets.fetch import fetch

pytestmark = pytest.mark.slow
PROMPTS = ["The capital of France is", "Water boils at a temperature of", "I went to the cinema and"]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    fetch("smollm2-135m")
    return LanguageModel("smollm2-135m")


def make(num_envs: int, **more: Any) -> gym.vector.VectorEnv:
    task = {"model": "smollm2-135m", "prompts": PROMPTS, "scorer": "distinct", "autoreset_mode": "Disabled"}
    return gym.make_vec("textgen/TextGen-v0", num_envs=num_envs, **task, **more)


def test_env_decodes_greedily_what_generate_does(model: LanguageModel) -> None:
    env = make(3, kl_coef=0.1, max_new_tokens=8)
    env.unwrapped.bind_policy(model)  # policy = reference: nothing to pay
    observation, _ = env.reset(options={"prompt": [0, 1, 2]})
    cache = model.prefix_cache(3)
    for _ in range(8):
        lengths = observation["attention_mask"].sum(axis=1)
        actions = cache.next_logits(observation["input_ids"], lengths).argmax(dim=-1).numpy()
        observation, _, terminated, _, infos = env.step(actions)
        assert abs(infos["reward_parts"]["kl"]).max() < 1e-5
    assert terminated.all()
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([model.encode(prompt)])
        expected = model.model.generate(ids, max_new_tokens=8, do_sample=False)[0]
        assert observation["input_ids"][row][: len(expected)].tolist() == expected.tolist()
    assert "Paris" in infos["text"][0]


def test_an_update_of_ppo(model: LanguageModel) -> None:
    envs = make(2, max_new_tokens=4)
    policy = ActorCritic(LanguageModel("smollm2-135m"))
    ppo = PPO(envs, policy, PPOConfig(episodes=4, epochs=1, minibatch_size=4, micro_batch_size=4, lr=1e-5))
    batch = ppo.advantages(ppo.collect())
    assert batch.metrics["kl_per_token"] == pytest.approx(0, abs=1e-6)
    metrics = ppo.update(batch)
    assert metrics["first_ratio_error"] == 0
    after = ppo.advantages(ppo.collect())
    assert after.metrics["kl_per_token_k3"] > 0  # the actor has moved, the reference has not


def test_a_conversation_is_answered(model: LanguageModel) -> None:
    """The template's text is encoded as the tokenizer of transformers does it by itself, and the answer is one."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    scorer = {"name": "keywords", "keywords": ["Paris"]}
    env = gym.make("textgen/TextGen-v0", model="smollm2-135m", prompts=[messages], scorer=scorer)
    observation, info = env.reset()
    ids = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert observation["input_ids"][: observation["attention_mask"].sum()].tolist() == ids
    assert info["prompt"] == "What is the capital of France?"
    cache, terminated = model.prefix_cache(1), False
    while not terminated:
        length = observation["attention_mask"].sum()
        logits = cache.next_logits(observation["input_ids"][None, :length], observation["attention_mask"].sum()[None])
        observation, reward, terminated, _, info = env.step(int(logits.argmax()))
    assert reward == 1.0, info["text"]
