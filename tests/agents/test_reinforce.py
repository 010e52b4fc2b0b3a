"""REINFORCE against the exact gradient by enumeration, its baselines by hand, and tasks that it must solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from two_tokens import (
    EOS,
    LEFT_OUT,
    TWO_TOKENS,
    A,
    B,
    groups,
    objective,
    rollout_of,
    score,
    true_values,
    write_values,
)

from textgen_env.agents.policy import ActorConfig, ActorCritic, PolicyConfig
from textgen_env.agents.reinforce import Reinforce, ReinforceConfig, ReinforceSettings
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]
BASELINES = ["leave_one_out", "mean", "greedy", "learned", "none"]


def make(venv: gym.vector.VectorEnv, source: Path, *, seed: int = 1, total_updates: int = 100, **settings: Any):
    weights = PolicyConfig(critic="detached") if settings.get("baseline") == "learned" else ActorConfig()
    policy = ActorCritic(LanguageModel(source), weights)
    defaults = {"episodes": 12, "minibatch_size": 12, "micro_batch_size": 4, "lr": 1e-2, "group_size": 2}
    config = ReinforceConfig(**{**defaults, **settings})
    return Reinforce(venv, policy, config, seed=seed, total_updates=total_updates)


@pytest.mark.parametrize("kl_in", ["reward", "both"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_expected_gradient_is_that_of_the_objective(
    baseline: str, kl_in: str, make_venv: MakeVenv, word_model: Path
):
    """E[∇loss] over all that can be drawn = −∇ Σ_y π(y)·(score(y) − β·log(π(y)/π_ref(y))), whatever the baseline.

    A learned one may be as wrong as it likes.
    """
    beta = 0.3
    size = 2 if baseline == "leave_one_out" else 1
    settings = {"baseline": baseline, "group_size": size, "kl_coef": beta, "kl_in": kl_in}
    trainer = make(make_venv(**TWO_TOKENS), word_model, **settings)
    trainer.train(2)  # away from the reference, and the running mean from 0
    if baseline == "learned":
        torch.nn.init.normal_(trainer.policy.value_head.out.weight, generator=torch.Generator().manual_seed(0))
    params = list(trainer.policy.actor.parameters())
    estimated = [torch.zeros_like(p) for p in params]
    for weight, rollout in groups(trainer.policy.language_model, size):
        loss, _ = trainer.loss(trainer.advantages(rollout), torch.arange(size))
        for total, gradient in zip(estimated, torch.autograd.grad(loss, params), strict=True):
            total += weight * gradient
    exact = torch.autograd.grad(-objective(trainer, word_model), params)
    assert max(gradient.abs().max() for gradient in exact) > 1e-2
    for ours, theirs in zip(estimated, exact, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_true_values_lower_the_variance_of_the_gradient(make_venv: MakeVenv, word_model: Path):
    """Σ_y π(y)·‖g(y)‖² − ‖∇J‖², over all responses: with V as it is, and with a wrong one, beside no baseline."""
    venv, none = make_venv(**TWO_TOKENS), make(make_venv(**TWO_TOKENS), word_model, baseline="none", group_size=1)
    learned = make(venv, word_model, baseline="learned", group_size=1)
    exact = torch.autograd.grad(objective(none, word_model), list(none.policy.actor.parameters()))
    start = sum(float(gradient.square().sum()) for gradient in exact)
    variances = [second_moment(none) - start]
    write_values(learned, true_values(learned))
    variances.append(second_moment(learned) - start)
    write_values(learned, [-5.0, 4.0, 9.0])
    variances.append(second_moment(learned) - start)
    assert 0 < variances[1] < 0.7 * variances[0] < variances[2]


def second_moment(trainer: Reinforce) -> float:
    """Σ_y π(y)·‖g(y)‖² of the actor's gradient."""
    params, total = list(trainer.policy.actor.parameters()), 0.0
    for weight, rollout in groups(trainer.policy.language_model, 1):
        loss, _ = trainer.loss(trainer.advantages(rollout), torch.arange(1))
        total += weight * sum(float(g.square().sum()) for g in torch.autograd.grad(loss, params))
    return total


def test_the_learned_baseline_by_hand(make_venv: MakeVenv, word_model: Path):
    """V = (1, 2, 3) at (nothing, "a", "b"); scores .3 (EOS), 2.3 ("a a"), −.1 ("b"), without KL: A = G − V."""
    trainer = make(make_venv(**TWO_TOKENS), word_model, baseline="learned", kl_coef=0.0)
    write_values(trainer, [1.0, 2.0, 3.0])
    batch = trainer.advantages(rollout_of([[EOS], [A, A], [B, EOS], [EOS]], trainer.policy.language_model))
    expected = [[-0.7, 0.0], [1.3, 0.3], [-1.1, -3.1], [-0.7, 0.0]]
    torch.testing.assert_close(batch.advantages[:, 2:], torch.tensor(expected), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        batch.returns[:, 2:], torch.tensor([[0.3, 0.0], [2.3, 2.3], [-0.1, -0.1], [0.3, 0.0]]), atol=1e-6, rtol=0
    )
    order = batch.micro_batches[0]
    _, parts = trainer.loss(batch, order)
    errors = [[0.7], [1.3, 0.3], [1.1, 3.1], [0.7]]  # ½ of the mean over responses of each one's own mean of squares
    squares = [sum(e * e for e in errors[i]) / len(errors[i]) for i in order.tolist()]
    assert parts["value_loss"].item() == pytest.approx(0.5 * sum(squares) / len(squares), rel=1e-4)


def test_the_learned_baseline_learns_and_leaves_the_actor_alone(make_venv: MakeVenv, word_model: Path):
    """With a learning rate of the actor of 0 the head alone moves, towards the returns."""
    trainer = make(make_venv(**TWO_TOKENS), word_model, baseline="learned", lr=0.0, value_lr=0.02, kl_coef=0.0)
    before = [p.clone() for p in trainer.policy.actor.parameters()]
    history = trainer.train(30)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.policy.actor.parameters(), strict=True))
    assert sum(m["value_loss"] for m in history[-5:]) < 0.7 * sum(m["value_loss"] for m in history[:5])


def test_a_baseline_whose_regression_would_move_the_actor_is_refused(make_venv: MakeVenv, word_model: Path):
    config = ReinforceConfig(baseline="learned", episodes=12)
    for weights in (ActorConfig(), PolicyConfig()):
        with pytest.raises(ValueError, match=r'baseline="learned" with critic=(None|\'shared\')'):
            Reinforce(make_venv(), ActorCritic(LanguageModel(word_model), weights), config)
    Reinforce(make_venv(), ActorCritic(LanguageModel(word_model), PolicyConfig(critic="separate")), config)
    settings = ReinforceSettings(policy=ActorConfig(lora_rank=3), reinforce=ReinforceConfig(baseline="learned"))
    assert settings.policy == PolicyConfig(lora_rank=3, critic="detached")


def test_advantages_by_hand(make_venv: MakeVenv, word_model: Path):
    """Scores .3 (EOS), 2.3 ("a a"), −.1 ("b"), without KL. RLOO of the pairs (.3, 2.3), (−.1, .3): ∓2, ∓.4."""
    venv = make_venv(num_envs=2, prompts=["d e"], scorer=score, max_new_tokens=2, forbidden_tokens=LEFT_OUT)
    group = [[EOS], [A, A], [B, EOS], [EOS]]
    expected = {"leave_one_out": [-2.0, 2.0, -0.4, 0.4], "none": [0.3, 2.3, -0.1, 0.3], "mean": [0.1, 2.1, -0.3, 0.1]}
    for baseline, wanted in expected.items():
        trainer = make(venv, word_model, baseline=baseline, kl_coef=0.0)
        trainer.mean_return = 0.2
        batch = trainer.advantages(rollout_of(group, trainer.policy.language_model))
        mask = batch.rollout.response_mask
        torch.testing.assert_close(batch.advantages, torch.tensor(wanted)[:, None] * mask)
        torch.testing.assert_close(batch.returns, torch.tensor([0.3, 2.3, -0.1, 0.3])[:, None] * mask)
        assert (batch.metrics["score"], batch.metrics["reward"]) == pytest.approx((0.7, 0.7))


def test_the_greedy_baseline_is_the_return_of_the_likeliest_response(make_venv: MakeVenv, word_model: Path):
    """Decoded here token by token by plain forwards; three prompts on four slots, each with two samples."""
    trainer = make(make_venv(min_new_tokens=1), word_model, baseline="greedy", episodes=6, kl_coef=0.2)
    trainer.train(2)
    rollout = trainer.collect([0, 0, 2, 2, 1, 1])
    batch = trainer.advantages(rollout)
    model, reference = trainer.policy.actor, LanguageModel(word_model).model
    baseline = {}
    for prompt in ("a b", "c d e", "f"):
        ids, kl = trainer.policy.language_model.encode(prompt), 0.0
        begin = len(ids)
        while len(ids) - begin < 6 and (len(ids) == begin or ids[-1] != EOS):
            with torch.no_grad():
                ours, theirs = (m(torch.tensor([ids])).logits[0, -1] for m in (model, reference))
            if len(ids) == begin:
                ours[EOS] = theirs[EOS] = -torch.inf
            ids.append(int(ours.argmax()))
            kl += (ours.log_softmax(-1) - theirs.log_softmax(-1))[ids[-1]].item()
        words = trainer.policy.language_model.decode(ids[begin:]).split()
        baseline[prompt] = words.count("a") / max(1, len(words)) - 0.2 * kl
    assert rollout.prompts == ["a b", "a b", "f", "f", "c d e", "c d e"]
    for row, prompt in enumerate(rollout.prompts):
        tokens = rollout.response_mask[row].bool()
        advantage = batch.rewards[row].sum().item() - baseline[prompt]
        assert batch.advantages[row][tokens].tolist() == pytest.approx([advantage] * int(tokens.sum()), abs=1e-4)


def test_groups_are_drawn_by_the_trainer_and_stand_side_by_side(make_venv: MakeVenv, word_model: Path):
    first, second = (make(make_venv(), word_model, group_size=3).collect() for _ in range(2))
    assert first.texts == second.texts
    assert first.chosen_prompts is not None
    assert len(set(first.chosen_prompts)) > 1
    for start in range(0, 12, 3):
        assert len({first.prompts[row] for row in range(start, start + 3)}) == 1
    assert first.chosen_prompts != make(make_venv(), word_model, group_size=3, seed=2).collect().chosen_prompts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_ratio_is_exactly_one(make_venv: MakeVenv, word_model: Path, dtype: str):
    """Also where nothing but the temperature, the nucleus and the masks of the samples would make it so."""
    policy = ActorCritic(LanguageModel(word_model, dtype=dtype), ActorConfig(lora_rank=2))
    config = ReinforceConfig(episodes=8, minibatch_size=4, micro_batch_size=2, top_p=0.8, lr=1e-2)
    trainer = Reinforce(make_venv(temperature=0.7, min_new_tokens=2), policy, config)
    assert [metrics["first_ratio_error"] for metrics in trainer.train(3)] == [0, 0, 0]


def test_micro_batches_weigh_by_their_responses(make_venv: MakeVenv, word_model: Path):
    """The gradient of a minibatch does not depend on how it is cut up."""
    gradients = []
    for micro_batch_size in (12, 4, 1):
        trainer = make(make_venv(), word_model, micro_batch_size=micro_batch_size)
        batch = trainer.advantages(trainer.collect())
        trainer._gradient(batch, batch.micro_batches)
        gradients.append(torch.cat([master.grad.flatten() for master in trainer.optimizer.masters]))
    assert gradients[0].norm() > 0
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-6)


def test_what_was_cut_without_a_score_has_no_return(make_venv: MakeVenv, word_model: Path):
    """A limit of steps outside: nobody knows what it was worth, and 0 would be a score."""
    trainer = make(make_venv(), word_model)
    rollout = rollout_of([[EOS], [A, A]], trainer.policy.language_model)
    rollout.terminated[1], rollout.truncated[1] = False, True
    trainer.advantages(replace(rollout, scored=torch.tensor([True, True])))
    with pytest.raises(ValueError, match="1 responses were cut from outside, without a score"):
        trainer.advantages(replace(rollout, scored=torch.tensor([True, False])))


def test_settings_that_do_not_fit_each_other():
    with pytest.raises(ValueError, match="group_size=3 must divide episodes=128"):
        ReinforceConfig(group_size=3)
    with pytest.raises(ValueError, match="group_size=1 must be at least 2"):
        ReinforceConfig(group_size=1)
    ReinforceConfig(group_size=1, baseline="greedy")
    with pytest.raises(ValueError, match="episodes=8 must be at least num_envs=64"):
        ReinforceSettings(reinforce=ReinforceConfig(episodes=8))


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_bandit_is_solved(baseline: str, make_venv: MakeVenv, word_model: Path):
    """One token, reward 1 for the word "g", which an untrained policy writes one time in sixteen."""

    def is_g(completions: list[str], **_: Any) -> list[float]:
        return [float(text.strip() == "g") for text in completions]

    venv = make_venv(num_envs=32, prompts=["a"], scorer=is_g, max_new_tokens=1)
    sizes = {"episodes": 64, "minibatch_size": 16, "micro_batch_size": 16, "group_size": 4}
    history = make(venv, word_model, baseline=baseline, kl_coef=0.0, total_updates=20, **sizes).train(20)
    assert history[0]["score"] < 0.3
    assert history[-1]["score"] > 0.95
