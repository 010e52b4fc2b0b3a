"""The numbers of a rollout by hand, and that training and held-out prompts speak of the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from textgen_env.agents.policy import ActorCritic
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.agents.rollout_metrics import response_metrics
from textgen_env.agents.training.evaluate import Played, summarize
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]
SHARED = ["score", "kl_per_token", "kl_per_response", "reference_perplexity", "response_length", "eos_rate"]


def test_response_metrics_by_hand():
    """Lengths 1, 2, 5; the second has no score. KL 0.5 + 1 + 0.5 = 2 nats over 8 tokens; log π_ref −16 in all."""
    metrics = response_metrics(
        torch.tensor([1.0, math.nan, 4.0]),
        torch.tensor([1, 2, 5]),
        ["eos", "cut", "length"],
        kl=torch.tensor([0.5, 1.0, 0.5]),
        ref_log_probs=torch.tensor([-1.0, -5.0, -10.0]),
    )
    expected = {  # of all; without the first, the second, the third
        "score": [2.5, 4, 2.5, 1],
        "kl_per_token": [2 / 8, 1.5 / 7, 1 / 6, 1.5 / 3],
        "kl_per_response": [2 / 3, 0.75, 0.5, 0.75],
        "reference_perplexity": [math.exp(x) for x in (16 / 8, 15 / 7, 11 / 6, 6 / 3)],
        "response_length": [8 / 3, 3.5, 3, 1.5],
        "eos_rate": [1 / 3, 0, 0.5, 0.5],
    }
    assert metrics.keys() == expected.keys()
    for name, values in expected.items():
        assert metrics[name].tolist() == pytest.approx(values), name


def test_without_a_reference_there_is_no_kl_and_without_scores_the_score_is_0():
    metrics = response_metrics(torch.tensor([math.nan, math.nan]), torch.tensor([1, 3]), ["cut", "cut"])
    assert {name: values[0].item() for name, values in metrics.items()} == {
        "score": 0,
        "response_length": 2,
        "eos_rate": 0,
    }


def test_training_and_held_out_numbers_are_the_same_of_the_same_responses(make_venv: MakeVenv, word_model: Path):
    """And those of a loop over the tokens of each response, in Python's floats."""
    config = PPOConfig(episodes=12, minibatch_size=4, micro_batch_size=4, lr=1e-2)
    ppo = PPO(make_venv(), ActorCritic(LanguageModel(word_model)), config)
    ppo.train(2)
    batch = ppo.advantages(ppo.collect())
    rollout, ref = batch.rollout, batch.ref_log_probs
    assert ref is not None
    held_out = summarize(Played(rollout, batch.old_log_probs, ref, batch.values)).metrics
    for name in SHARED:
        assert batch.metrics[name] == held_out[name]
    tokens = [
        [(batch.old_log_probs[row, t].item(), ref[row, t].item()) for t in mask.nonzero().flatten().tolist()]
        for row, mask in enumerate(rollout.response_mask)
    ]
    count = sum(map(len, tokens))
    kl = math.fsum(log_prob - other for response in tokens for log_prob, other in response)
    expected = {
        "score": math.fsum(rollout.scores.tolist()) / 12,
        "kl_per_token": kl / count,
        "kl_per_response": kl / 12,
        "reference_perplexity": math.exp(-math.fsum(other for response in tokens for _, other in response) / count),
        "response_length": count / 12,
        "eos_rate": sum(reason == "eos" for reason in rollout.finish_reasons) / 12,
    }
    assert kl != 0
    assert {name: held_out[name] for name in SHARED} == pytest.approx(expected, rel=1e-5)
