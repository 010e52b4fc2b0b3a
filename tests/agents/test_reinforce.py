"""REINFORCE against the exact gradient by enumeration, its baselines by hand, and tasks that it must solve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from words import WORDS

from textgen_env.agents.action_masks import MaskTable
from textgen_env.agents.policy import ActorConfig, ActorCritic
from textgen_env.agents.reinforce import Reinforce, ReinforceConfig, ReinforceSettings
from textgen_env.agents.rollout import Rollout
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.token_batch import TokenBatch

MakeVenv = Callable[..., gym.vector.VectorEnv]
BASELINES = ["leave_one_out", "mean", "greedy", "none"]
EOS, A, B = 0, 3, 4
LEFT_OUT = [word for i, word in enumerate(WORDS) if i not in (EOS, A, B)]
PROMPT = [6, 7]
RESPONSES = [[EOS], *([first, second] for first, second in product((A, B), (EOS, A, B)))]
"""All that can be written in two tokens."""


def score(completions: list[str], **_: Any) -> list[float]:
    """An odd table, so that no two responses are alike."""
    return [0.3 + text.split().count("a") - 0.4 * (text.split()[:1] == ["b"]) for text in completions]


def make(venv: gym.vector.VectorEnv, source: Path, *, seed: int = 1, total_updates: int = 100, **settings: Any):
    policy = ActorCritic(LanguageModel(source), ActorConfig())
    defaults = {"episodes": 12, "minibatch_size": 12, "micro_batch_size": 4, "lr": 1e-2, "group_size": 2}
    config = ReinforceConfig(**{**defaults, **settings})
    return Reinforce(venv, policy, config, seed=seed, total_updates=total_updates)


def masked_log_probs(model: Any, response: list[int]) -> torch.Tensor:
    """log π of a response among the three tokens, by the library's forward of each prefix."""
    total = torch.zeros(())
    for t, token in enumerate(response):
        logits = model(torch.tensor([PROMPT + response[:t]])).logits[0, -1][[EOS, A, B]]
        total = total + logits.log_softmax(-1)[[EOS, A, B].index(token)]
    return total


def rollout_of(responses: list[list[int]], model: LanguageModel) -> Rollout:
    """What `collect` would return if these were drawn for the first prompt."""
    tokens = TokenBatch.from_tokens([PROMPT] * len(responses), responses)
    texts = [model.decode(response) for response in responses]
    scores = torch.tensor(score(texts))
    rewards = torch.zeros(tokens.input_ids.shape)
    rewards[torch.arange(len(responses)), tokens.lengths - 1] = scores
    table, nothing = MaskTable(len(WORDS)), torch.zeros(len(responses), dtype=torch.bool)
    (number,) = table.number(torch.tensor([[i in (EOS, A, B) for i in range(len(WORDS))]]).numpy())
    return Rollout(
        tokens=tokens,
        rewards=rewards,
        sampled_log_probs=torch.zeros(rewards.shape),
        terminated=~nothing,
        truncated=nothing,
        scores=scores,
        prompts=["d e"] * len(responses),
        texts=texts,
        finish_reasons=["eos"] * len(responses),
        action_masks=table.action_masks(number * tokens.response_mask),
        chosen_prompts=[0] * len(responses),
    )


def draws(trainer: Reinforce, baseline: str) -> Iterator[tuple[float, Rollout]]:
    """Everything that one group can be, with its probability."""
    model = trainer.policy.language_model
    with torch.no_grad():
        probability = [masked_log_probs(model.model, response).exp().item() for response in RESPONSES]
    assert sum(probability) == pytest.approx(1)
    size = 2 if baseline == "leave_one_out" else 1
    for group in product(range(len(RESPONSES)), repeat=size):
        weight = 1.0
        for i in group:
            weight *= probability[i]
        yield weight, rollout_of([RESPONSES[i] for i in group], model)


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_expected_gradient_is_that_of_the_objective(baseline: str, make_venv: MakeVenv, word_model: Path):
    """E[∇loss] over all that can be drawn = −∇ Σ_y π(y)·(score(y) − β·log(π(y)/π_ref(y))), whatever the baseline."""
    beta = 0.3
    venv = make_venv(num_envs=2, prompts=["d e"], scorer=score, max_new_tokens=2, forbidden_tokens=LEFT_OUT)
    size = 2 if baseline == "leave_one_out" else 1
    trainer = make(venv, word_model, baseline=baseline, group_size=size, kl_coef=beta)
    trainer.train(2)  # away from the reference, and the running mean from 0
    params = [p for p in trainer.policy.parameters() if p.requires_grad]
    estimated = [torch.zeros_like(p) for p in params]
    for weight, rollout in draws(trainer, baseline):
        loss, _ = trainer.loss(trainer.advantages(rollout), torch.arange(size))
        for total, gradient in zip(estimated, torch.autograd.grad(loss, params), strict=True):
            total += weight * gradient
    reference, model = LanguageModel(word_model).model, trainer.policy.actor
    objective = torch.zeros(())
    for response in RESPONSES:
        log_prob, ref = masked_log_probs(model, response), masked_log_probs(reference, response).detach()
        paid = score([trainer.policy.language_model.decode(response)])[0]
        objective = objective + log_prob.exp() * (paid - beta * (log_prob - ref))
    exact = torch.autograd.grad(-objective, params)
    assert max(gradient.abs().max() for gradient in exact) > 1e-2
    for ours, theirs in zip(estimated, exact, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


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
