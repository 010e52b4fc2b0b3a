"""GRPO: the exact gradient by enumeration, each variant's loss by loops, advantages by hand, a task to solve."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from two_tokens import EOS, LEFT_OUT, RESPONSES, A, B, groups, masked_log_probs, objective, rollout_of, score

from textgen_env.agents.advantages import informative
from textgen_env.agents.grpo import GRPO, GRPOConfig, GRPOSettings
from textgen_env.agents.policy import ActorConfig, ActorCritic
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]


def make(venv: gym.vector.VectorEnv, source: Path, *, total_updates: int = 100, **settings: Any) -> GRPO:
    policy = ActorCritic(LanguageModel(source), ActorConfig())
    defaults = {"episodes": 12, "minibatch_size": 12, "micro_batch_size": 4, "lr": 1e-2, "group_size": 2}
    return GRPO(venv, policy, GRPOConfig(**{**defaults, **settings}), total_updates=total_updates)


def two_tokens(make_venv: MakeVenv, **arguments: Any) -> gym.vector.VectorEnv:
    defaults = {"num_envs": 2, "prompts": ["d e"], "scorer": score, "max_new_tokens": 2, "forbidden_tokens": LEFT_OUT}
    return make_venv(**{**defaults, **arguments})


def test_the_expected_gradient_of_the_default_is_that_of_the_score(make_venv: MakeVenv, word_model: Path):
    """E[∇L] = −(1 − 1/G)/max_new_tokens · ∇Σ_y π(y)·score(y), but for the share of groups that count.

    A score less the mean of its own group is (1 − 1/G) times the score less the mean of the others. The groups that do
    not count have no gradient, so that leaving them out is a factor: that of each group by itself is 1.
    """
    size = 2
    trainer = make(two_tokens(make_venv), word_model, kl_coef=0.0)
    trainer.train(2)
    params = [p for p in trainer.policy.parameters() if p.requires_grad]
    estimated = [torch.zeros_like(p) for p in params]
    for weight, rollout in groups(trainer.policy.language_model, size):
        loss, parts = trainer.loss(trainer.advantages(rollout), torch.arange(size))
        assert parts["ratio_error"] == 0
        for total, gradient in zip(estimated, torch.autograd.grad(loss, params), strict=True):
            total += weight * gradient
    objective = torch.zeros(())
    for response in RESPONSES:
        paid = score([trainer.policy.language_model.decode(response)])[0]
        objective = objective + masked_log_probs(trainer.policy.actor, response).exp() * paid
    exact = torch.autograd.grad(-(1 - 1 / size) / 2 * objective, params)
    assert max(gradient.abs().max() for gradient in exact) > 1e-3
    for ours, theirs in zip(estimated, exact, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_the_expected_gradient_with_an_exact_kl_is_that_of_the_objective(
    size: int, make_venv: MakeVenv, word_model: Path
):
    """E[∇L] = −(1 − 1/G)/max_new_tokens·∇J, groups of equal scores and of equal responses included."""
    trainer = make(two_tokens(make_venv), word_model, kl_coef=0.3, kl_in="both", group_size=size)
    trainer.train(2)
    params = [p for p in trainer.policy.parameters() if p.requires_grad]
    estimated = [torch.zeros_like(p) for p in params]
    for weight, rollout in groups(trainer.policy.language_model, size):
        loss, _ = trainer.loss(trainer.advantages(rollout), torch.arange(size))
        for total, gradient in zip(estimated, torch.autograd.grad(loss, params), strict=True):
            total += weight * gradient
    exact = torch.autograd.grad(-(1 - 1 / size) / 2 * objective(trainer, word_model), params)
    assert max(gradient.abs().max() for gradient in exact) > 1e-3
    for ours, theirs in zip(estimated, exact, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=2e-4)


VARIANTS = list(
    product(["token", "sequence"], ["constant", "response", "token"], [None, 0.5], ["none", "group", "batch"])
)


@pytest.mark.parametrize(("ratio", "length_norm", "clip_high", "scale"), VARIANTS)
def test_the_loss_of_every_variant_by_loops(
    ratio: str, length_norm: str, clip_high: float | None, scale: str, make_venv: MakeVenv, word_model: Path
):
    """Away from the old policy, so that ratios are clipped; one group of three has no variance."""
    beta, clip, limit = 0.2, 0.05, 2
    options = {"ratio": ratio, "length_norm": length_norm, "clip_high": clip_high, "scale": scale, "clip": clip}
    trainer = make(two_tokens(make_venv), word_model, kl_coef=beta, kl_in="loss", **options)
    responses = [[EOS], [A, A], [B, EOS], [A, B], [EOS], [EOS], [B, A], [A, EOS]]
    batch = trainer.advantages(rollout_of(responses, trainer.policy.language_model))
    old, reference = batch.old_log_probs.clone(), batch.ref_log_probs
    assert reference is not None
    trainer.update(batch)
    loss, parts = trainer.loss(batch, torch.arange(len(responses)))
    log_probs = trainer.evaluate(batch.rollout, torch.arange(len(responses))).log_probs.detach()

    paid = [score([trainer.policy.language_model.decode(response)])[0] for response in responses]
    mean = sum(paid) / len(paid)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in paid) / (len(paid) - 1))
    total, kl_total, responses_used, tokens_used = 0.0, 0.0, 0, 0
    for i, response in enumerate(responses):
        pair = paid[i - i % 2 : i - i % 2 + 2]
        spread = abs(pair[0] - pair[1]) / math.sqrt(2)
        advantage = paid[i] - sum(pair) / 2
        advantage /= {"none": 1.0, "group": spread + 1e-4, "batch": deviation + 1e-4}[scale]
        columns = [column for column in range(old.shape[1]) if batch.rollout.response_mask[i, column]]
        moved = [float(log_probs[i, column] - old[i, column]) for column in columns]
        weight = {"constant": 1 / limit, "response": 1 / len(response), "token": 1.0}[length_norm]
        for column, own in zip(columns, moved, strict=True):
            rho = math.exp(sum(moved) / len(moved) if ratio == "sequence" else own)
            held = min(max(rho, 1 - clip), 1 + (clip if clip_high is None else clip_high))
            total += weight * min(rho * advantage, held * advantage)
            d = float(reference[i, column] - log_probs[i, column])
            kl_total += weight * math.exp(own) * (math.exp(d) - 1 - d)
        if pair[0] != pair[1]:
            responses_used += 1
            tokens_used += len(response)
    assert responses_used == 6
    used, everything = (tokens_used, sum(map(len, responses))) if length_norm == "token" else (responses_used, 8)
    assert float(parts["policy_loss"]) == pytest.approx(-total / used, abs=1e-5)
    assert float(parts["kl_loss"]) == pytest.approx(kl_total / everything, abs=1e-5)
    assert float(loss) == pytest.approx(-total / used + beta * kl_total / everything, abs=1e-5)
    assert parts["clip_fraction"] > 0
    assert batch.metrics["uniform_groups"] == pytest.approx(1 / 4)


def test_groups_without_variance_are_found_by_exact_equality():
    """The mean of three times 0.1 is not 0.1 in floating point, and 1e-8 is a difference."""
    equal, close = [0.1, 0.1, 0.1], [0.1, 0.1, 0.1 + 1e-8]
    scores = torch.tensor([*equal, *close], dtype=torch.float64)
    assert scores[:3].sum() / 3 != 0.1
    assert informative(scores, 3).tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_when_no_group_differs_nothing_moves(scale: str, make_venv: MakeVenv, word_model: Path):
    venv = two_tokens(make_venv, scorer=lambda completions, **_: [0.1] * len(completions))
    trainer = make(venv, word_model, kl_coef=0.0, scale=scale)
    before = [p.clone() for p in trainer.policy.parameters()]
    (metrics,) = trainer.train(1)
    assert (metrics["uniform_groups"], metrics["share_used"], metrics["grad_norm"]) == (1.0, 0.0, 0.0)
    assert all(torch.equal(p, old) for p, old in zip(trainer.policy.parameters(), before, strict=True))


def test_responses_that_were_cut_can_be_left_out(make_venv: MakeVenv, word_model: Path):
    """Scores .3, 2.3, −.1, .3; the second was cut. The others keep what they are worth beside it, times 4/3."""
    trainer = make(two_tokens(make_venv), word_model, kl_coef=0.0, drop_overlong=True)
    rollout = rollout_of([[EOS], [A, A], [B, EOS], [EOS]], trainer.policy.language_model)
    rollout.finish_reasons = ["eos", "length", "eos", "eos"]
    batch = trainer.advantages(rollout)
    wanted = torch.tensor([-1.0, 0.0, -0.2, 0.2]) * 4 / 3
    torch.testing.assert_close(batch.advantages, wanted[:, None] * batch.rollout.response_mask)
    assert (batch.metrics["uniform_groups"], batch.metrics["share_used"]) == (0.0, 0.75)


def test_parts_are_compared_by_themselves(make_venv: MakeVenv, word_model: Path):
    """Parts (0, 1) and (0, 100) beside (0, 1) and (100, 0): their sums differ by 101 and 99, ranked by the large part.

    By themselves, the parts of the first pair agree, ∓√½ twice, and those of the second cancel out. One token each, so
    that whitening divides by the root of the mean of (√2, √2, 0, 0)² = 1, up to ε.
    """

    def pair(completions: list[str], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    trainer = make(two_tokens(make_venv, scorer=pair), word_model, kl_coef=0.0, scale="group", normalize_parts=True)
    rollout = rollout_of([[EOS]] * 4, trainer.policy.language_model)
    small, large = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0.0, 100.0, 100.0, 0.0])
    rollout.reward_parts = {"small": small, "large": large}
    rollout.rewards[:, 2] = small + large
    advantages = trainer.advantages(rollout).advantages[:, 2]
    torch.testing.assert_close(advantages, torch.tensor([-math.sqrt(2), math.sqrt(2), 0.0, 0.0]), atol=1e-3, rtol=0)


def test_a_rollout_knows_what_each_part_paid(make_venv: MakeVenv, word_model: Path):
    def is_a(completions: list[str], **_: Any) -> list[float]:
        return [float("a" in text.split()) for text in completions]

    def length(completions: list[str], **_: Any) -> list[float]:
        return [0.5 * len(text.split()) for text in completions]

    dense = {"name": "dense", "scorer": length}
    trainer = make(two_tokens(make_venv, scorer={"sum": {"a": is_a, "length": dense}}), word_model, kl_coef=0.1)
    rollout = trainer.collect()
    assert rollout.reward_parts["a"].tolist() == is_a(rollout.texts)
    assert rollout.reward_parts["length"].tolist() == pytest.approx(length(rollout.texts))
    torch.testing.assert_close(sum(rollout.reward_parts.values()), rollout.rewards.sum(dim=1))


@pytest.mark.parametrize("length_norm", ["constant", "response", "token"])
def test_micro_batches_weigh_by_what_they_hold(length_norm: str, make_venv: MakeVenv, word_model: Path):
    """The gradient of a minibatch does not depend on how it is cut up."""
    gradients = []
    for micro_batch_size in (12, 4, 1):
        trainer = make(make_venv(), word_model, micro_batch_size=micro_batch_size, length_norm=length_norm)
        batch = trainer.advantages(trainer.collect())
        trainer._gradient(batch, batch.micro_batches)
        gradients.append(torch.cat([master.grad.flatten() for master in trainer.optimizer.masters]))
    assert gradients[0].norm() > 0
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-6)


def test_kl_in_the_reward_is_part_of_what_is_compared(make_venv: MakeVenv, word_model: Path):
    trainer = make(two_tokens(make_venv), word_model, kl_coef=0.3, kl_in="reward")
    trainer.train(2)
    batch = trainer.advantages(rollout_of([[EOS], [A, A]], trainer.policy.language_model))
    assert batch.ref_log_probs is not None
    kl = (batch.old_log_probs - batch.ref_log_probs).sum(dim=1)
    returns = torch.tensor([0.3, 2.3]) - 0.3 * kl
    expected = (returns - returns.mean())[:, None] * batch.rollout.response_mask
    torch.testing.assert_close(batch.advantages, expected, atol=1e-5, rtol=0)
    assert "kl_loss" not in trainer.loss(batch, torch.arange(2))[1]


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_an_exact_kl_stands_beside_what_is_compared(ratio: str, scale: str, make_venv: MakeVenv, word_model: Path):
    """Scores .3, 2.3 and .3, .3 are compared as ever; less the KL of later states, beside that of the other response.

    One group does not differ in its scores, and one response was cut: that alone is left out. Where all tokens share a
    ratio they share a KL: that of all states but the first, which the two have in common.
    """
    options = {"kl_coef": 0.3, "ratio": ratio, "scale": scale}
    trainer = make(two_tokens(make_venv), word_model, kl_in="both", drop_overlong=True, **options)
    trainer.train(2)
    rollout = rollout_of([[A, A], [EOS], [B, EOS], [A, EOS]], trainer.policy.language_model)
    paid = torch.tensor([2.3, 0.3, 0.3, 0.3])
    rollout.rewards = torch.zeros_like(rollout.rewards).scatter(1, rollout.tokens.lengths[:, None] - 1, paid[:, None])
    rollout.finish_reasons = ["eos", "eos", "eos", "length"]
    kls = trainer.evaluate(rollout, torch.arange(4), with_kl=True).kl[:, 3].detach().tolist()  # of the second states
    batch = trainer.advantages(rollout)
    deviation = {"none": 1.0, "group": 1.0, "batch": float(paid.std()) + 1e-4}[scale]
    compared = {"none": 1.0, "group": 1 / (math.sqrt(2) + 1e-4), "batch": 1 / deviation}[scale]
    charged = [0.3 * (kl - other) / 2 / deviation for kl, other in ((kls[0], 0), (0, kls[0]), (kls[2], kls[3]))]
    assert charged[2] != 0
    assert kls[0] > 0.01
    at_first = [compared - charged[0], -compared - charged[1], -charged[2], 0.0]
    at_second = at_first if ratio == "sequence" else [compared, 0.0, 0.0, 0.0]
    wanted = torch.tensor([at_first, [x * (i != 1) for i, x in enumerate(at_second)]]).T * 4 / 3
    torch.testing.assert_close(batch.advantages[:, 2:], wanted, atol=1e-5, rtol=1e-4)
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None] * rollout.response_mask / 2 / deviation * 4 / 3
    torch.testing.assert_close(batch.kl_weight, weight)
    assert (batch.metrics["share_used"], batch.metrics["uniform_groups"]) == (0.75, 0.5)


def test_settings_that_do_not_fit_each_other():
    with pytest.raises(ValueError, match="group_size=1 must be at least 2"):
        GRPOConfig(group_size=1)
    with pytest.raises(ValueError, match="group_size=7 must divide episodes=128"):
        GRPOConfig(group_size=7)
    with pytest.raises(ValueError, match=r"normalize_parts=True with scale='none' must be with scale=\"group\""):
        GRPOConfig(normalize_parts=True)
    with pytest.raises(ValueError, match="episodes=8 must be at least num_envs=64"):
        GRPOSettings(grpo=GRPOConfig(episodes=8))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale": "group", "length_norm": "response"},
        {"clip_high": 0.28, "length_norm": "token"},
        {"ratio": "sequence"},
    ],
    ids=["Dr. GRPO", "GRPO", "DAPO", "GSPO"],
)
def test_a_bandit_is_solved(settings: dict[str, Any], make_venv: MakeVenv, word_model: Path):
    """One token, reward 1 for the word "g", which an untrained policy writes one time in sixteen."""

    def is_g(completions: list[str], **_: Any) -> list[float]:
        return [float(text.strip() == "g") for text in completions]

    venv = make_venv(num_envs=32, prompts=["a"], scorer=is_g, max_new_tokens=1)
    sizes = {"episodes": 64, "minibatch_size": 16, "micro_batch_size": 16, "group_size": 8}
    history = make(venv, word_model, kl_coef=0.0, total_updates=20, **sizes, **settings).train(20)
    assert history[0]["score"] < 0.3
    assert history[-1]["score"] > 0.95
