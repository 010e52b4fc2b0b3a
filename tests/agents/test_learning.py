"""Learning on the embedded model, judged on prompts that were held out: three seeds, and a reward that says nothing.

PPO is shown to learn in ``test_ppo.py``, by tasks of its own.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode

import textgen_env  # noqa: F401  (registers the environments)
from textgen_env.agents.dpo import DPO, DPOConfig
from textgen_env.agents.dpo import examples as pair_examples
from textgen_env.agents.grpo import GRPO, GRPOConfig
from textgen_env.agents.policy import ActorConfig, ActorCritic
from textgen_env.agents.preferences.labellers import SyntheticLabeller, sample_pairs
from textgen_env.agents.preferences.pairs import Pair
from textgen_env.agents.preferences.rewards import RewardModel
from textgen_env.agents.reinforce import Reinforce, ReinforceConfig
from textgen_env.agents.reward_model import RewardModelConfig, RewardModelTrainer
from textgen_env.agents.reward_model import examples as reward_examples
from textgen_env.agents.sft import SFT, SFTConfig, examples
from textgen_env.agents.training.environments import split_prompts
from textgen_env.agents.training.evaluate import evaluate
from textgen_env.assets.recipes.reviews import sample_review
from textgen_env.lm.language_model import LanguageModel
from textgen_env.prompts import load_prompts

SEEDS = [1, 2, 3]


@dataclass
class Gain:
    """Of the held-out score, and the KL that it cost."""

    score: float
    kl: float


def venv_of(prompts: Any, **arguments: Any) -> gym.vector.VectorEnv:
    options = {"num_envs": 32, "max_new_tokens": 6, "autoreset_mode": AutoresetMode.DISABLED}
    return gym.make_vec("textgen/Sentiment-v0", prompts=prompts, **options, **arguments)


def reinforced(trainer: Any, config: Any, seed: int, **arguments: Any) -> Gain:
    """Eight updates, with ``arguments`` of the training environment."""
    train, held_out = split_prompts(load_prompts("reviews"), 96)
    judge, policy = venv_of(held_out), ActorCritic(LanguageModel("tiny"), ActorConfig())
    reference = policy.reference()
    before = evaluate(judge, policy, reference).metrics
    sizes = {"episodes": 32, "minibatch_size": 16, "micro_batch_size": 16, "group_size": 4}
    settings = config(**sizes, lr=1e-3, warmup_updates=0, kl_coef=0.02)
    options = {"seed": seed, "reference": reference, "total_updates": 8}
    trainer(venv_of(train, **arguments), policy, settings, **options).train(8)
    after = evaluate(judge, policy, reference).metrics
    return Gain(after["score"] - before["score"], after["kl_per_response"])


def nothing(completions: list[str], **_: Any) -> list[float]:
    return [0.5] * len(completions)


@pytest.mark.parametrize(("trainer", "config"), [(Reinforce, ReinforceConfig), (GRPO, GRPOConfig)])
def test_it_raises_the_held_out_score_and_a_constant_reward_does_not(trainer: Any, config: Any):
    taught = [reinforced(trainer, config, seed) for seed in SEEDS]
    untaught = reinforced(trainer, config, SEEDS[0], scorer=nothing)
    assert all(gain.score > 0 for gain in taught)
    assert statistics.mean(gain.score for gain in taught) > 0.05
    assert abs(untaught.score) < 0.02
    assert untaught.kl < 0.1 < min(gain.kl for gain in taught)


@pytest.mark.parametrize("seed", SEEDS)
def test_sft_lowers_the_held_out_perplexity(seed: int):
    """On the translations of the embedded set."""
    train, held_out = split_prompts(load_prompts("translations"), 128)
    model = LanguageModel("tiny")
    sets = [examples(gym.make_vec("textgen/Translate-v0", prompts=prompts), model) for prompts in (train, held_out)]
    config = SFTConfig(lr=2e-4, warmup_updates=4, minibatch_size=32, micro_batch_size=32)
    trainer = SFT(ActorCritic(model, ActorConfig()), config, sets[0], held_out=sets[1], seed=seed, total_updates=24)
    before = trainer.held_out()["perplexity"]
    trainer.train(24)
    after = trainer.held_out()["perplexity"]
    assert after < before - 0.02


def preferring(seed: int, **labels: float) -> Gain:
    """DPO for sixteen updates, from 256 pairs of the policy's own, labelled by the task's scorer."""
    train, held_out = split_prompts(load_prompts("reviews"), 96)
    venv, judge, policy = venv_of(train), venv_of(held_out), ActorCritic(LanguageModel("tiny"), ActorConfig())
    reference = policy.reference()
    before = evaluate(judge, policy, reference).metrics
    generator = torch.Generator().manual_seed(seed)
    sampled = sample_pairs(venv, policy.language_model, 256, generator=generator)
    pairs = pair_examples(SyntheticLabeller(seed=seed, **labels)(sampled.pairs), venv, policy.language_model)
    DPO(policy, DPOConfig(lr=5e-4, warmup_updates=0), pairs, reference=reference, seed=seed, total_updates=16).train(16)
    after = evaluate(judge, policy, reference).metrics
    return Gain(after["score"] - before["score"], after["kl_per_response"])


def test_dpo_raises_the_score_that_labelled_its_pairs_and_labels_by_chance_do_not():
    """256 labels by chance lead somewhere, by chance: ± 0.04 per seed, of which the mean is near 0."""
    taught, untaught = ([preferring(seed, flip=flip).score for seed in SEEDS] for flip in (0.0, 0.5))
    assert statistics.mean(taught) > 0.01
    assert abs(statistics.mean(untaught)) < 0.06
    assert statistics.mean(taught) > 0.02 + statistics.mean(untaught)


@pytest.mark.slow
def test_a_reward_model_finds_the_order_of_the_embedded_judge():
    """Reviews of the corpus' grammar in pairs, labelled with some noise; on others that differ clearly it is right."""
    rng = random.Random(0)

    def drawn() -> Pair:
        a, b = sample_review(rng), sample_review(rng)
        return Pair(a.opening, a.continuation, b.continuation) if a.continuation != b.continuation else drawn()

    train, held_out = ([drawn() for _ in range(count)] for count in (2400, 300))
    model = RewardModel(LanguageModel("tiny"))
    config = RewardModelConfig(lr=1.5e-3, warmup_updates=4)
    labelled = reward_examples(SyntheticLabeller("sentiment", temperature=0.05)(train), model)
    RewardModelTrainer(model, config, labelled, total_updates=150).train(150)
    scores = torch.tensor([pair.columns["scores"] for pair in SyntheticLabeller("sentiment")(held_out)])
    wanted, found = scores[:, 0] - scores[:, 1], model.differences(held_out)[0]
    clear = wanted.abs() > 0.5
    assert int(clear.sum()) > 60
    assert float((found.sign() == wanted.sign())[clear].float().mean()) >= 0.85
