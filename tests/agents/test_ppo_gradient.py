"""PPO's expected gradient before the first step, by enumeration: what is unbiased, and what is not by how much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from two_tokens import TWO_TOKENS, groups, objective, true_values, write_values

from textgen_env.agents.policy import ActorCritic
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]


def make(make_venv: MakeVenv, source: Path, **settings: Any) -> PPO:
    """The policy's loss alone; whitening is off, since it only scales, by a number that depends on the sample."""
    sizes = {"episodes": 12, "minibatch_size": 12, "micro_batch_size": 12, "lr": 1e-2}
    config = PPOConfig(**{**sizes, "whiten": False, "value_coef": 0.0, **settings})
    return PPO(make_venv(**TWO_TOKENS), ActorCritic(LanguageModel(source)), config)


def expected_gradient(ppo: PPO, size: int, *, of_sums: bool) -> torch.Tensor:
    """E[∇L] over all minibatches of so many responses; ``of_sums``: of sums over tokens, as a mean over responses."""
    params = list(ppo.policy.actor.parameters())
    total = torch.zeros(sum(p.numel() for p in params))
    for weight, rollout in groups(ppo.policy.language_model, size):
        loss, parts = ppo.loss(ppo.advantages(rollout), torch.arange(size))
        assert parts["ratio_error"] == 0
        scale = float(rollout.lengths.sum()) / size if of_sums else 1.0
        gradients = torch.autograd.grad(scale * loss, params)
        total += weight * torch.cat([gradient.flatten() for gradient in gradients])
    return total


def exact_gradient(ppo: PPO, source: Path) -> torch.Tensor:
    gradients = torch.autograd.grad(-objective(ppo, source), list(ppo.policy.actor.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def test_with_lambda_1_the_sum_over_tokens_is_unbiased_whatever_the_values(make_venv: MakeVenv, word_model: Path):
    """E[∇Σ_t L_t] = −∇(E[score] − β·KL), away from the reference and with values that are wrong."""
    ppo = make(make_venv, word_model, lam=1.0, kl_coef=0.3)
    ppo.train(2)
    write_values(ppo, [-1.0, 4.0, 2.0])
    exact = exact_gradient(ppo, word_model)
    assert exact.norm() > 0.05
    torch.testing.assert_close(expected_gradient(ppo, 1, of_sums=True), exact, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_below_1_it_is_as_right_as_the_values(lam: float, make_venv: MakeVenv, word_model: Path):
    """No bias with V as it is; with a V that is wrong by one half at a single state there is."""
    ppo = make(make_venv, word_model, lam=lam, kl_coef=0.0)
    exact, values = exact_gradient(ppo, word_model), true_values(ppo)
    write_values(ppo, values)
    torch.testing.assert_close(expected_gradient(ppo, 1, of_sums=True), exact, atol=1e-5, rtol=1e-3)
    write_values(ppo, [values[0], values[1] + 0.5, values[2]])
    bias = (expected_gradient(ppo, 1, of_sums=True) - exact).norm() / exact.norm()
    assert bias > 0.1


def test_the_mean_over_tokens_is_biased_towards_short_responses_in_small_minibatches(
    make_venv: MakeVenv, word_model: Path
):
    """E[∇L]·E[length] beside −∇J for minibatches of 1, 2 and 3: a ratio of sums, whose bias shrinks as 1/B."""
    ppo = make(make_venv, word_model, lam=1.0, kl_coef=0.0)
    write_values(ppo, [0.5, 1.0, -0.2])
    exact = exact_gradient(ppo, word_model)
    length = sum(weight * float(rollout.lengths.sum()) for weight, rollout in groups(ppo.policy.language_model, 1))
    biases = []
    for size in (1, 2, 3):
        found = length * expected_gradient(ppo, size, of_sums=False)
        biases.append(float((found - exact).norm() / exact.norm()))
    assert biases[0] > 0.02
    assert biases[0] > 1.5 * biases[1] > 1.5 * 1.2 * biases[2]
