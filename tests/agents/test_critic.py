"""The critic: λ of its own, λ by length, and learning first, beside brute-force loops and what must not move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

from textgen_env.agents.advantages import decoupled_gae, gae, length_adaptive_lam
from textgen_env.agents.policy import ActorConfig, ActorCritic, PolicyConfig
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]
SIZES = {"episodes": 12, "minibatch_size": 4, "micro_batch_size": 4, "lr": 1e-2}


def make(venv: gym.vector.VectorEnv, source: Path, policy: PolicyConfig | None = None, **settings: Any) -> PPO:
    total_updates = settings.pop("total_updates", 100)
    agent = ActorCritic(LanguageModel(source), policy)
    return PPO(venv, agent, PPOConfig(**{**SIZES, **settings}), total_updates=total_updates)


def with_random_head(ppo: PPO) -> PPO:
    torch.nn.init.normal_(ppo.policy.value_head.out.weight, generator=torch.Generator().manual_seed(0))
    return ppo


def loop(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = δ_t + γλ·A_{t+1} over the tokens of one response that ended."""
    advantages, following, after = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        after = reward + gamma * following - value + gamma * lam * after
        following = value
        advantages.append(after)
    return advantages[::-1]


def test_each_lambda_has_its_own_estimate():
    """γ=1, V=(1, 2), r=(0, 3): A of λ=.5 is (1.5, 1) and R of λ=1 is (3, 3), where λ=.5 would give (2.5, 3)."""
    rewards, values, mask = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2)
    advantages, returns = decoupled_gae(rewards, values, mask, 1.0, 0.5, 1.0)
    assert advantages.tolist() == [[1.5, 1.0]]
    assert returns.tolist() == [[3.0, 3.0]]
    _, coupled = decoupled_gae(rewards, values, mask, 1.0, 0.5, 0.5)
    assert coupled.tolist() == [[2.5, 3.0]]


def test_lambda_by_length_by_hand():
    """α = .25: l = 8 → 1 − 1/2, l = 20 → 1 − 1/5; l = 3 would be negative. α = .05 of VAPO: l = 1000 → .98."""
    mask = torch.zeros(3, 21)
    mask[0, 2:10] = mask[1, 1:21] = mask[2, :3] = 1
    torch.testing.assert_close(length_adaptive_lam(mask, 0.25), torch.tensor([0.5, 0.8, 0.0]))
    torch.testing.assert_close(length_adaptive_lam(torch.ones(1, 1000), 0.05), torch.tensor([0.98]))


def test_each_row_may_have_a_lambda_of_its_own():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, 5, generator=generator)
    mask, lams = torch.ones(3, 5), torch.tensor([0.0, 0.6, 1.0])
    together = gae(rewards, values, mask, 0.9, lams)
    for row, lam in enumerate(lams.tolist()):
        alone = gae(rewards[row : row + 1], values[row : row + 1], mask[:1], 0.9, lam)
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[row], theirs[0])


@pytest.mark.parametrize(
    ("settings", "lam_of", "value_lam_of"),
    [
        ({"lam": 0.7}, lambda length: 0.7, lambda length: 0.7),
        ({"lam": 0.7, "value_lam": 1.0}, lambda length: 0.7, lambda length: 1.0),
        ({"lam_alpha": 0.4}, lambda length: max(0.0, 1 - 2.5 / length), lambda length: max(0.0, 1 - 2.5 / length)),
        ({"lam_alpha": 0.4, "value_lam": 0.9}, lambda length: max(0.0, 1 - 2.5 / length), lambda length: 0.9),
        ({"lam": 0.5, "critic_warmup": 1}, lambda length: 0.5, lambda length: 1.0),
    ],
)
def test_advantages_and_targets_are_those_of_two_loops(
    make_venv: MakeVenv, word_model: Path, settings, lam_of, value_lam_of
):
    """Of a rollout, response by response; the loop knows nothing of masks and columns."""
    ppo = with_random_head(make(make_venv(), word_model, kl_coef=0.1, whiten=False, gamma=0.95, **settings))
    batch = ppo.advantages(ppo.collect())
    mask = batch.rollout.response_mask.bool()
    assert len(set(batch.rollout.lengths.tolist())) > 1
    for row, length in enumerate(batch.rollout.lengths.tolist()):
        rewards, values = (grid[row][mask[row]].tolist() for grid in (batch.rewards, batch.values))
        expected = loop(rewards, values, 0.95, lam_of(length))
        assert batch.advantages[row][mask[row]].tolist() == pytest.approx(expected, abs=1e-5)
        targets = [a + v for a, v in zip(loop(rewards, values, 0.95, value_lam_of(length)), values, strict=True)]
        assert batch.returns[row][mask[row]].tolist() == pytest.approx(targets, abs=1e-5)


@pytest.mark.parametrize(
    "weights",
    [PolicyConfig(), PolicyConfig(critic="detached"), PolicyConfig(critic="separate"), PolicyConfig(lora_rank=2)],
    ids=["shared", "detached", "separate", "lora"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_critic_that_warms_up_leaves_the_policy_bit_equal(make_venv: MakeVenv, word_model: Path, weights, dtype):
    """Also its β and its optimiser's moments; then both learn."""
    settings = {"critic_warmup": 2, "weight_decay": 0.1, "adaptive_kl_target": 0.01, "kl_coef": 0.1, "ptx_coef": 0.5}
    policy = ActorCritic(LanguageModel(word_model, dtype=dtype), weights)
    ppo = PPO(make_venv(), policy, PPOConfig(**SIZES, **settings), ptx_texts=["j k l m"])
    actor = [p.clone() for p in policy.actor.parameters()]
    head = [p.clone() for p in policy.value_head.parameters()]
    for _ in range(2):
        metrics = ppo.iterate()[0]
        assert metrics["lr"] == SIZES["lr"], "the schedule begins when the policy does"
    assert all(torch.equal(a, b) for a, b in zip(actor, policy.actor.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(head, policy.value_head.parameters(), strict=True))
    assert ppo.kl.value == 0.1
    assert all("exp_avg" not in ppo.optimizer.state[p] for p in policy.actor.parameters())
    assert "ptx_loss" not in metrics
    metrics = ppo.iterate()[0]
    assert metrics["lr"] == pytest.approx(SIZES["lr"] / 3), "the first of three updates of warm-up"
    assert metrics["ptx_loss"] > 0
    assert not all(torch.equal(a, b) for a, b in zip(actor, policy.actor.parameters(), strict=True))


def test_the_schedule_of_the_policy_is_that_of_a_shorter_run(make_venv: MakeVenv, word_model: Path):
    warmed = make(make_venv(), word_model, critic_warmup=3, total_updates=9).train(9)
    plain = make(make_venv(), word_model, total_updates=6).train(6)
    assert [m["lr"] for m in warmed[3:]] == [m["lr"] for m in plain]


def test_a_critic_that_warmed_up_explains_the_prompts(make_venv: MakeVenv, word_model: Path):
    """The score follows from the prompt alone; the policy never moves, the head learns what it was taught."""

    def by_prompt(completions: list[str], *, prompts: list[str], **_: Any) -> list[float]:
        return [{"a b": 0.2, "c d e": 0.9, "f": 0.5}[prompt] for prompt in prompts]

    sizes = {"episodes": 48, "minibatch_size": 16, "micro_batch_size": 16, "kl_coef": 0.0, "value_lr": 3e-3}
    ppo = make(make_venv(num_envs=16, scorer=by_prompt), word_model, critic_warmup=18, **sizes)
    history = ppo.train(18)
    assert history[0]["explained_variance"] == pytest.approx(0, abs=1e-5)
    assert history[-1]["explained_variance"] > 0.7


def test_resumed_in_the_middle_of_the_warm_up_it_ends_with_the_same_bits(make_venv: MakeVenv, word_model: Path):
    straight = make(make_venv(), word_model, critic_warmup=2)
    straight.train(1)
    resumed = make(make_venv(), word_model, critic_warmup=2)
    resumed.load_state_dict(straight.state_dict())
    for ppo in (straight, resumed):
        ppo.train(3)
    pairs = zip(straight.policy.parameters(), resumed.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critic_warmup": -1}, "critic_warmup=-1 must be a whole number"),
        ({"value_lam": 1.5}, "value_lam=1.5 must be"),
        ({"lam_alpha": 0.0}, "lam_alpha=0.0 must be"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**settings)


def test_a_policy_without_a_critic_is_refused(make_venv: MakeVenv, word_model: Path):
    with pytest.raises(ValueError, match="policy has no critic, and PPO learns values"):
        PPO(make_venv(), ActorCritic(LanguageModel(word_model), ActorConfig()), PPOConfig(**SIZES))
