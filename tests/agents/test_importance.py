"""Weights for what another policy sampled: by hand, in the trainers, and 1 where there is nothing to correct."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

from textgen_env.agents.grpo import GRPO, GRPOConfig
from textgen_env.agents.losses import kl_loss
from textgen_env.agents.policy import ActorConfig, ActorCritic
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.agents.reinforce import Reinforce, ReinforceConfig
from textgen_env.agents.training.importance import effective_share, importance_weights
from textgen_env.agents.training.on_policy import Batch, OnPolicyConfig, OnPolicyTrainer
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]
SMALL = {"episodes": 8, "minibatch_size": 4, "micro_batch_size": 4, "lr": 1e-2}
MASK = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 1]])
LEARNER = torch.tensor([[9.0, 0.5, 0.2, 9.0], [9.0, 0.9, 9.0, 9.0], [9.0, 0.1, 0.3, 0.6]]).log()
SAMPLER = torch.tensor([[1.0, 0.25, 0.4, 1.0], [1.0, 0.3, 1.0, 1.0], [1.0, 0.2, 0.1, 0.6]]).log()


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"cap": 100.0}, [[0, 2, 0.5, 0], [0, 3, 0, 0], [0, 0.5, 3, 1]]),
        ({"cap": 2.5}, [[0, 2, 0.5, 0], [0, 2.5, 0, 0], [0, 0.5, 2.5, 1]]),
        ({"cap": 2.5, "mask_beyond": True}, [[0, 2, 0.5, 0], [0, 0, 0, 0], [0, 0.5, 0, 1]]),
        ({"cap": 100.0, "of_responses": True}, [[0, 1, 1, 0], [0, 3, 0, 0], [0, 1.5, 1.5, 1.5]]),
        ({"cap": 1.2, "of_responses": True}, [[0, 1, 1, 0], [0, 1.2, 0, 0], [0, 1.2, 1.2, 1.2]]),
        ({"cap": 1.2, "of_responses": True, "mask_beyond": True}, [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_by_hand(settings: dict[str, Any], wanted: list[list[float]]):
    cap = settings.pop("cap")
    found = importance_weights(LEARNER, SAMPLER, MASK, cap, **settings)
    torch.testing.assert_close(found, torch.tensor(wanted).float())


def test_a_ratio_without_bounds_is_held_and_not_overflown():
    far = torch.tensor([[0.0, 0.0, -400.0]]), torch.tensor([[0.0, -300.0, -700.0]])
    mask = torch.tensor([[0, 1, 1]])
    for of_responses in (False, True):
        assert importance_weights(*far, mask, 2.0, of_responses=of_responses).tolist() == [[0.0, 2.0, 2.0]]


def test_what_stands_off_the_responses_is_never_read():
    nan = torch.where(MASK.bool(), LEARNER, math.nan)
    found = importance_weights(nan, torch.where(MASK.bool(), SAMPLER, -math.inf), MASK, 100.0)
    assert torch.equal(found, importance_weights(LEARNER, SAMPLER, MASK, 100.0))


def test_the_effective_sample_size():
    """Kong: (2 + 0.5 + 3 + 0.5 + 3 + 1)² / (6·(4 + 0.25 + 9 + 0.25 + 9 + 1)), of responses 5.5² / (3·12.25)."""
    tokens = importance_weights(LEARNER, SAMPLER, MASK, 100.0)
    assert float(effective_share(tokens, MASK)) == pytest.approx(100 / (6 * 23.5))
    responses = importance_weights(LEARNER, SAMPLER, MASK, 100.0, of_responses=True)
    assert float(effective_share(responses, MASK, of_responses=True)) == pytest.approx(5.5**2 / (3 * 12.25))
    assert float(effective_share(MASK.float(), MASK)) == 1


def test_the_kl_in_the_loss_takes_the_weights():
    old, ref = torch.tensor([[0.5, 0.2]]).log(), torch.tensor([[0.25, 0.4]]).log()
    weight, mask = torch.tensor([[3.0, 0.5]]), torch.ones(1, 2)
    k3 = [0.5 - 1 - math.log(0.5), 2 - 1 - math.log(2)]
    found = kl_loss(old, ref, mask, old_log_prob=old, weight=weight)
    assert float(found) == pytest.approx((3 * k3[0] + 0.5 * k3[1]) / 2, rel=1e-6)


TRAINERS: list[tuple[type[OnPolicyTrainer], Any, dict[str, Any]]] = [
    (PPO, PPOConfig, {}),
    (PPO, PPOConfig, {"kl_in": "loss"}),
    (PPO, PPOConfig, {"kl_in": "both"}),
    (GRPO, GRPOConfig, {"group_size": 4, "kl_in": "loss"}),
    (GRPO, GRPOConfig, {"group_size": 4, "kl_in": "both"}),
    (Reinforce, ReinforceConfig, {}),
    (Reinforce, ReinforceConfig, {"baseline": "mean"}),
    (Reinforce, ReinforceConfig, {"kl_in": "both"}),
]


def make(venv: Any, source: Path, trainer: type[OnPolicyTrainer], config: Any, **settings: Any) -> Any:
    policy = ActorCritic(LanguageModel(source), None if trainer is PPO else ActorConfig())
    return trainer(venv, policy, config(**{**SMALL, **settings}))


@pytest.mark.parametrize(("trainer", "config", "settings"), TRAINERS)
@pytest.mark.parametrize("level", ["token", "response"])
def test_where_sampler_and_learner_agree_the_weights_are_one(
    make_venv: MakeVenv, word_model: Path, trainer: Any, config: Any, settings: dict[str, Any], level: str
):
    """Under top-p, top-k, a temperature and masks: up to rounding scored anew, exactly from decoding."""
    venv = make_venv(temperature=0.8, min_new_tokens=2)
    warp = {"top_p": 0.9, "top_k": 5, "importance_weights": level, **settings}
    made = make(venv, word_model, trainer, config, **warp)
    batch = made.advantages(made.collect())
    mask = batch.rollout.response_mask.bool()
    assert not batch.importance[~mask].any()
    torch.testing.assert_close(batch.importance[mask], torch.ones(int(mask.sum())), atol=1e-4, rtol=0)
    assert batch.metrics["importance_ess"] == pytest.approx(1, abs=1e-4)
    assert (batch.metrics["importance_capped"], batch.metrics["sampler_kl"]) == (0, pytest.approx(0, abs=1e-6))
    decoded = make(make_venv(temperature=0.8), word_model, trainer, config, **warp, old_log_probs="sampled")
    batch = decoded.advantages(decoded.collect())
    assert torch.equal(batch.importance, batch.rollout.response_mask.float())


@pytest.mark.parametrize(("trainer", "config", "settings"), TRAINERS)
def test_advantages_of_a_stale_rollout_are_weighed(
    make_venv: MakeVenv, word_model: Path, trainer: Any, config: Any, settings: dict[str, Any]
):
    """After two updates, each response by Π π/π_sampler, at most the cap; the advantages are otherwise the same."""
    made = make(make_venv(), word_model, trainer, config, kl_coef=0.1, **settings)
    rollout = made.collect()
    made.train(2)
    plain = made.advantages(rollout)
    assert plain.importance is None
    mask = rollout.response_mask.bool()
    gaps = [float((plain.old_log_probs[i] - rollout.sampled_log_probs[i])[mask[i]].sum()) for i in range(len(mask))]
    cap = math.exp(sum(sorted(gaps)[3:5]) / 2)  # half of the responses are beyond
    made.config.importance_weights, made.config.importance_cap = "response", cap
    batch = made.advantages(rollout)
    for row, gap in enumerate(gaps):
        wanted = min(math.exp(gap), cap)
        assert batch.importance[row, mask[row]].tolist() == pytest.approx([wanted] * int(mask[row].sum()), rel=1e-4)
        torch.testing.assert_close(batch.advantages[row], plain.advantages[row] * wanted, rtol=1e-4, atol=1e-5)
    tokens = rollout.lengths.tolist()
    capped = sum(n for n, gap in zip(tokens, gaps, strict=True) if gap > math.log(cap))
    assert 0 < capped < sum(tokens)
    assert batch.metrics["importance_capped"] == pytest.approx(capped / sum(tokens))
    assert batch.metrics["sampler_kl"] > 1e-5
    assert made.update(batch)["optimizer_steps"] > 0


def test_an_algorithm_that_does_not_weigh_is_told(make_venv: MakeVenv, word_model: Path):
    class Plain(OnPolicyTrainer):
        def advantages(self, rollout: Any) -> Batch:
            ones = rollout.response_mask.float()
            return Batch(rollout, *self.score(rollout)[:4], rollout.rewards, ones, ones)

    made = make(make_venv(), word_model, Plain, OnPolicyConfig, importance_weights="token")
    batch = made.advantages(made.collect())
    with pytest.raises(ValueError, match=r"importance_weights='token'.*weighed\(batch, self\.config\)"):
        made.update(batch)
