"""Implicit Q-learning against what can be counted: expectiles by bisection, policies by weighted frequencies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from two_tokens import EOS, PROMPT, A, B, rollout_of, score
from words import WORDS

pytest.importorskip("minari")
pytest.importorskip("h5py")

from textgen_env.agents.iql import IQL, IQLConfig, IQLSettings
from textgen_env.agents.minari_data import RecordedEpisodes
from textgen_env.agents.offline_losses import advantage_weighted_loss, advantage_weights, expectile_loss
from textgen_env.agents.policy import ActorConfig, ActorCritic, PolicyConfig
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import PLAIN
from textgen_env.lm.token_batch import TokenBatch

State = tuple[int, ...]
NAN = float("nan")
PLAYED = [[EOS]] * 3 + [[A, EOS]] * 5 + [[A, B]] * 2 + [[B, EOS]] * 4 + [[B, A]] * 1 + [[B, B]] * 3
"""Who played never wrote "a a", the best of all."""


# --- losses -----------------------------------------------------------------------------------------------------------


def expectile(values: list[float], tau: float) -> float:
    """m with τ·Σ(x − m)₊ = (1 − τ)·Σ(m − x)₊, by bisection."""
    low, high = min(values), max(values)
    for _ in range(100):
        m = (low + high) / 2
        more = tau * sum(max(x - m, 0) for x in values) > (1 - tau) * sum(max(m - x, 0) for x in values)
        low, high = (m, high) if more else (low, m)
    return (low + high) / 2


def test_expectile_loss_by_hand():
    value = torch.tensor([[NAN, 1.0, 2.0], [0.5, NAN, NAN]], requires_grad=True)
    target = torch.tensor([[NAN, 3.0, 1.0], [0.5, 7.0, NAN]])
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])
    loss = expectile_loss(value, target, 0.8, mask)
    assert loss.item() == pytest.approx((0.8 * 4 + 0.2 * 1 + 0) / 3)
    loss.backward()
    expected = torch.tensor([[0, -0.8 * 2 * 2 / 3, 0.2 * 2 * 1 / 3], [0, 0, 0]])
    torch.testing.assert_close(value.grad, expected)


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.7, 0.95])
def test_its_minimum_is_the_expectile(tau: float):
    data = torch.tensor([[-1.0, 0.2, 0.4, 0.4, 2.5]])
    best = expectile(data[0].tolist(), tau)
    values = torch.tensor([best - 1e-2, best, best + 1e-2])
    low, middle, high = (
        expectile_loss(v.expand_as(data), data, tau, torch.ones_like(data)).item() for v in values.unbind()
    )
    assert middle < min(low, high)
    if tau == 0.5:
        assert best == pytest.approx(0.5)  # the mean


def test_advantage_weights_by_hand():
    advantage, mask = torch.tensor([[0.0, 0.2, -0.2, 9.0, NAN]]), torch.tensor([[1, 1, 1, 1, 0]])
    found = advantage_weights(advantage, 0.1, 20.0, mask)
    torch.testing.assert_close(found, torch.tensor([[1.0, math.e**2, math.e**-2, 20.0, 0.0]]))
    log_prob = torch.tensor([[-1.0, -2.0, -3.0, -0.5, NAN]], requires_grad=True)
    loss = advantage_weighted_loss(log_prob, found, mask)
    assert loss.item() == pytest.approx((1 + 2 * math.e**2 + 3 * math.e**-2 + 0.5 * 20) / 4, rel=1e-5)
    loss.backward()
    torch.testing.assert_close(log_prob.grad, -found / 4)


# --- the trainer ------------------------------------------------------------------------------------------------------


def recorded_of(responses: list[list[int]], source: Path) -> RecordedEpisodes:
    rollout, spec = rollout_of(responses, LanguageModel(source)), gym.spec("textgen/TextGen-v0")
    zeros = torch.zeros(rollout.rewards.shape)
    return RecordedEpisodes(rollout, zeros, {}, list(range(len(responses))), PLAIN, spec, {"vocab_size": len(WORDS)})


def make(source: Path, updates: int, **settings: Any) -> IQL:
    policy = ActorCritic(LanguageModel(source), PolicyConfig(critic="separate"))
    given = {"minibatch_size": len(PLAYED), "micro_batch_size": len(PLAYED), "lr": 3e-3, "value_lr": 1e-2}
    config = IQLConfig(**{**given, "max_weight": 1e6, "warmup_updates": 0, "lr_decay": "cosine", **settings})
    return IQL(policy, config, recorded_of(PLAYED, source), total_updates=updates)


def worth(response: list[int], source: Path) -> float:
    return score([LanguageModel(source).decode(response)])[0]


def fixed_point(source: Path, tau: float, lam: float) -> tuple[dict[State, float], dict[State, list[list[float]]]]:
    """V of the three states, and the targets R of each token that was played there, of a table without a network."""
    counts = Counter(tuple(response) for response in PLAYED)
    paid = {response: worth(list(response), source) for response in counts}
    values: dict[State, float] = {}
    targets: dict[State, list[list[float]]] = {}
    for state in ((A,), (B,), ()):
        found: list[list[float]] = []
        for response, count in counts.items():
            if response[: len(state)] == state and len(response) > len(state):
                rest = response[: len(state) + 1]
                ahead = 0.0 if rest == response else (1 - lam) * values[rest] + lam * paid[response]
                found += [[response[len(state)], paid[response] if rest == response else ahead]] * count
        targets[state], values[state] = found, expectile([target for _, target in found], tau)
    return values, targets


def learned_values(trainer: IQL) -> dict[State, float]:
    with torch.no_grad():
        found = trainer.policy(TokenBatch.from_tokens([PROMPT] * 2, [[A, EOS], [B, EOS]])).values
    at = len(PROMPT)
    return {(): found[0, at].item(), (A,): found[0, at + 1].item(), (B,): found[1, at + 1].item()}


@pytest.mark.parametrize(("tau", "lam"), [(0.5, 1.0), (0.7, 0.0), (0.9, 0.0), (0.8, 0.5), (0.8, 1.0)])
def test_values_are_expectiles_of_what_was_played(tau: float, lam: float, word_model: Path):
    trainer = make(word_model, 500, expectile=tau, lam=lam, critic_warmup=500)
    before = {name: weight.clone() for name, weight in trainer.policy.actor.named_parameters()}
    trainer.train(500)
    expected, _ = fixed_point(word_model, tau, lam)
    assert learned_values(trainer) == pytest.approx(expected, abs=0.02)
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.policy.actor.named_parameters())


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_towards_one_they_are_the_best_that_was_played(lam: float, word_model: Path):
    """1.3 by "a", not the 2.3 of "a a", which nobody has tried."""
    trainer = make(word_model, 800, expectile=0.995, lam=lam, critic_warmup=800)
    trainer.train(800)
    best = {
        state: max(worth(r, word_model) for r in PLAYED if tuple(r[: len(state)]) == state)
        for state in ((A,), (B,), ())
    }
    assert (best[()], worth([A, A], word_model)) == pytest.approx((1.3, 2.3))
    assert learned_values(trainer) == pytest.approx(best, abs=0.06)


@pytest.mark.parametrize(("tau", "lam", "alpha"), [(0.5, 1.0, 1.0), (0.7, 0.0, 0.5)])
def test_the_policy_is_who_played_weighted_by_advantage(tau: float, lam: float, alpha: float, word_model: Path):
    """π(a|s) ∝ Σ exp((R − V(s))/α) over the times that a was played in s."""
    settings = {"expectile": tau, "lam": lam, "advantage_temperature": alpha, "critic_warmup": 300}
    trainer = make(word_model, 1000, **settings)
    trainer.train(1000)
    values, targets = fixed_point(word_model, tau, lam)
    model = trainer.policy.actor
    for state in values:
        weights = torch.zeros(3)
        for token, target in targets[state]:
            weights[[EOS, A, B].index(int(token))] += math.exp((target - values[state]) / alpha)
        with torch.no_grad():
            logits = model(torch.tensor([[*PROMPT, *state]])).logits[0, -1][[EOS, A, B]]
        torch.testing.assert_close(logits.softmax(0), weights / weights.sum(), atol=0.03, rtol=0)


def test_an_episode_cut_from_outside_goes_on_with_the_value_of_its_last_state(word_model: Path):
    trainer = make(word_model, 10, lam=0.0)
    rollout = trainer.rollout
    rollout.terminated[0], rollout.truncated[0] = False, True
    rollout.scored = torch.ones(len(PLAYED), dtype=torch.bool)
    rollout.scored[0] = False
    trainer.policy.value_head.out.bias.data.fill_(0.75)
    found = trainer._bootstrap(torch.arange(3))
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([0.75, 0.0, 0.0]))
    assert trainer._bootstrap(torch.arange(1, 3)) is None


def test_micro_batches_add_up(word_model: Path):
    one, four = make(word_model, 3, critic_warmup=0), make(word_model, 3, critic_warmup=0)
    four.config.micro_batch_size = 5
    four.config.minibatch_size = one.config.minibatch_size
    first, second = one.train(3), four.train(3)
    for ours, other in zip(first, second, strict=True):
        for name in ("loss", "value_loss", "policy_loss", "weight"):
            assert ours[name] == pytest.approx(other[name], rel=1e-3), name


def test_bad_arguments(word_model: Path):
    with pytest.raises(ValueError, match="policy has no critic, and IQL learns values"):
        IQL(ActorCritic(LanguageModel(word_model), ActorConfig()), IQLConfig(), recorded_of(PLAYED, word_model))
    with pytest.raises(ValueError, match="expectile=1 must be a number above 0 and below 1"):
        IQLConfig(expectile=1)
    with pytest.raises(ValueError, match="advantage_temperature=0 must be"):
        IQLConfig(advantage_temperature=0)
    with pytest.raises(ValueError, match="dataset=None: name the folder"):
        IQLSettings()


def test_replies_are_not_certain(word_model: Path):
    """Where an environment replies, an expectile above ½ is warned of."""
    recorded = recorded_of([[A, B], [B, A]], word_model)
    mask = torch.tensor([[0, 1, 0, 1]]).repeat(2, 1)
    recorded.rollout.tokens = recorded.rollout.tokens._replace(response_mask=mask)
    policy: Callable[[], ActorCritic] = lambda: ActorCritic(LanguageModel(word_model))  # noqa: E731
    with pytest.warns(UserWarning, match="its luck is taken for skill"):
        IQL(policy(), IQLConfig(expectile=0.7), recorded)
    IQL(policy(), IQLConfig(expectile=0.5), recorded)
