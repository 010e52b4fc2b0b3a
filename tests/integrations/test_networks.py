"""Policies made of a language model: the same distribution as the model's own forward, with and without gradient."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from small_task import letters

import textgen_env  # noqa: F401
from textgen_env import LanguageModel
from textgen_env.integrations.networks import LMHead, LMLogits
from textgen_env.wrappers import VectorLMFeatures


def own_logits(model: LanguageModel, observations: dict[str, Any]) -> torch.Tensor:
    """One plain forward of transformers a row."""
    rows = []
    for ids, length in zip(observations["input_ids"], observations["attention_mask"].sum(-1), strict=True):
        with torch.no_grad():
            rows.append(model.model(torch.from_numpy(ids[None, :length])).logits[0, -1, : model.vocab_size])
    return torch.stack(rows)


def test_head_on_features_is_the_reference_at_the_environments_temperature(byte_model: str, other_model: str) -> None:
    task = {"model": byte_model, "reference": other_model, "prompts": ["a", "bcd"], "scorer": letters}
    tokens = gym.make_vec("textgen/TextGen-v0", num_envs=3, temperature=0.7, **task)
    env = VectorLMFeatures(tokens)
    head = LMHead.of(env)
    features, _ = env.reset(seed=0)
    for _ in range(3):
        expected = own_logits(LanguageModel(other_model), tokens.engine.episodes.observation()) / 0.7
        torch.testing.assert_close(head(torch.from_numpy(features)), expected, rtol=1e-4, atol=1e-4)
        features = env.step(np.array([100, 101, 102]))[0]


def test_logits_agree_with_a_plain_forward_with_and_without_gradient(byte_model: str) -> None:
    tokens = gym.make_vec(
        "textgen/TextGen-v0", num_envs=3, model=byte_model, prompts=["a", "bcd"], scorer=letters, max_new_tokens=6
    )
    model = LanguageModel(byte_model)
    policy = LMLogits(model, rows=3, temperature=0.5)
    observations, _ = tokens.reset(seed=0)
    for _ in range(4):
        observations = tokens.step(np.array([100, 101, 102]))[0]
        expected = own_logits(model, observations) / 0.5
        batch = [torch.from_numpy(observations[key]) for key in ("input_ids", "attention_mask")]
        with torch.no_grad():
            cached, hidden = policy(*batch)
        logits, hidden_with_gradient = policy(*batch)
        stacked, _ = policy(*(part[None].expand(2, *part.shape) for part in batch))
        torch.testing.assert_close(cached, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(stacked, expected.expand(2, 3, -1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(hidden, hidden_with_gradient, rtol=1e-4, atol=1e-4)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.model.parameters())
