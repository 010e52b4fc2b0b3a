"""The check of critics by continuations: its estimators and its states, beside a task that can be enumerated."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from two_tokens import EOS, LEFT_OUT, RESPONSES, A, B, masked_log_probs, score

from benchmarks.critic import PARTS, States, explained, interval, sample_states, variances
from textgen_env.agents.policy import ActorCritic
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.agents.vine_ppo import play_on
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]
PREFIXES: list[list[int]] = [[], [A], [B]]
GUESSES = [0.9, 1.3, -0.4]  # of some critic


def make(make_venv: MakeVenv, source: Path, beta: float) -> PPO:
    venv = make_venv(num_envs=8, prompts=["d e"], scorer=score, max_new_tokens=2, forbidden_tokens=LEFT_OUT)
    sizes = {"episodes": 12, "minibatch_size": 12, "micro_batch_size": 12}
    return PPO(venv, ActorCritic(LanguageModel(source)), PPOConfig(**sizes, lr=1e-2, kl_coef=beta))


def outcomes(ppo: PPO, reference: Any, prefix: list[int], beta: float) -> list[tuple[float, float]]:
    """What may follow a prefix: probability and return, score − β·KL of the tokens behind it."""
    found, model = [], ppo.policy.language_model
    for response in (r for r in RESPONSES if r[: len(prefix)] == prefix and r != prefix):
        with torch.no_grad():
            log_probs = [masked_log_probs(m, response) - masked_log_probs(m, prefix) for m in (model.model, reference)]
        paid = score([model.decode(response)])[0]
        found.append((log_probs[0].exp().item(), paid - beta * (log_probs[0] - log_probs[1]).item()))
    assert sum(probability for probability, _ in found) == pytest.approx(1)
    return found


def test_the_estimates_are_unbiased(make_venv: MakeVenv, word_model: Path):
    """Averaged over every pair of continuations of every state, Var(V) and Var(V − V̂) come out exactly."""
    ppo = make(make_venv, word_model, 0.3)
    ppo.train(2)
    reference = LanguageModel(word_model).model
    trees = [outcomes(ppo, reference, prefix, 0.3) for prefix in PREFIXES]
    truth = [sum(p * g for p, g in tree) for tree in trees]
    means = torch.zeros(3, dtype=torch.float64)
    for drawn in product(*(product(tree, repeat=2) for tree in trees)):
        weight = 1.0
        for pair in drawn:
            weight *= pair[0][0] * pair[1][0]
        returns = torch.tensor([[pair[0][1], pair[1][1]] for pair in drawn], dtype=torch.float64)
        means += weight * torch.tensor(variances(torch.tensor(GUESSES), returns), dtype=torch.float64)
    noise = statistics.fmean(sum(p * (g - v) ** 2 for p, g in tree) for tree, v in zip(trees, truth, strict=True))
    left = statistics.variance(v - guess for v, guess in zip(truth, GUESSES, strict=True))
    assert means.tolist() == pytest.approx([statistics.variance(truth), left, noise], rel=1e-6)


def test_continuations_of_the_environment_give_the_exact_share(make_venv: MakeVenv, word_model: Path):
    """2,000 from each of the three states; the exact numbers are those of the enumeration."""
    ppo = make(make_venv, word_model, 0.3)
    ppo.train(2)
    reference = LanguageModel(word_model).model
    states = States([0] * 3, PREFIXES, ["all"] * 3, torch.tensor(GUESSES))
    returns = play_on(ppo, states.prompts, states.responses, 2000)
    trees = [outcomes(ppo, reference, prefix, 0.3) for prefix in PREFIXES]
    for tree, row in zip(trees, returns.tolist(), strict=True):
        assert {round(g, 3) for g in row} == {round(g, 3) for p, g in tree if p > 0.005}
    truth = [sum(p * g for p, g in tree) for tree in trees]
    assert returns.mean(dim=1).tolist() == pytest.approx(truth, abs=0.06)
    left = statistics.variance(v - guess for v, guess in zip(truth, GUESSES, strict=True))
    share = 1 - left / statistics.variance(truth)
    assert explained(torch.tensor(GUESSES), returns).share == pytest.approx(share, abs=0.05)


def test_truth_and_constant_by_hand():
    """G = (0, 2), (4, 6), (8, 10): m = (1, 5, 9), s² = 2, Var(V) = 16 − 1 = 15; V̂ = m leaves 0 − 1 of it."""
    returns = torch.tensor([[0.0, 2.0], [4.0, 6.0], [8.0, 10.0]])
    found = explained(torch.full((3,), 5.0), returns)
    assert (found.share, found.attainable, found.explained, found.bias) == pytest.approx((0, 15 / 17, 0, 0))
    assert found.error == pytest.approx((32 / 3 - 1) ** 0.5)
    found = explained(torch.tensor([1.0, 5.0, 12.0]), returns)
    assert found.share == pytest.approx(1 - (3 - 1) / 15)  # errors (0, 0, 3): variance 3
    assert found.bias == pytest.approx(1)
    with pytest.raises(ValueError, match=r"values \(3,\) and returns \(3, 1\) must be"):
        explained(torch.zeros(3), torch.zeros(3, 1))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """V ~ N(0, 1), V̂ = V + N(0, ½), noise N(0, 1) of 4 continuations: share 1 − ¼ = .75."""
    generator, hits = torch.Generator().manual_seed(0), 0
    for trial in range(60):
        truth = torch.randn(80, generator=generator)
        values = truth + 0.5 * torch.randn(80, generator=generator)
        returns = truth[:, None] + torch.randn(80, 4, generator=generator)
        low, high = interval(values, returns, torch.arange(80), seed=trial)
        hits += low <= 0.75 <= high
    assert hits >= 51  # of 60 at 95 %: fewer in one of 1,000 times


def test_states_lie_in_their_thirds(make_venv: MakeVenv, word_model: Path):
    ppo = make_ppo(make_venv, word_model)
    torch.nn.init.normal_(ppo.policy.value_head.out.weight, generator=torch.Generator().manual_seed(0))
    states = sample_states(ppo, 3, torch.Generator().manual_seed(0))
    assert states.parts == list(PARTS) * 3
    assert sorted(set(states.prompts)) == [0, 1, 2]
    for row in range(0, 9, 3):
        begun = states.responses[row : row + 3]
        assert len(begun[0]) <= len(begun[1]) <= len(begun[2]) < 6
        assert begun[2][: len(begun[1])] == begun[1]
        assert EOS not in begun[2]
    prompts = ["a b", "c d e", "f"]
    for prompt, response, value in zip(states.prompts, states.responses, states.values.tolist(), strict=True):
        ids = torch.tensor([ppo.policy.language_model.encode(prompts[prompt]) + response])
        with torch.no_grad():
            hidden = ppo.policy.actor.model(ids).last_hidden_state[0, -1]
        assert value == pytest.approx(ppo.policy.value_head(hidden).item(), abs=1e-4)


def make_ppo(make_venv: MakeVenv, source: Path) -> PPO:
    sizes = {"episodes": 12, "minibatch_size": 12, "micro_batch_size": 12}
    return PPO(make_venv(), ActorCritic(LanguageModel(source)), PPOConfig(**sizes))
