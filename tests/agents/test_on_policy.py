"""What every on-policy trainer leaves to its caller, and what it does when the environment's infrastructure fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from textgen_env.agents.policy import ActorCritic
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.agents.rollout import collect
from textgen_env.lm.language_model import LanguageModel
from textgen_env.vector_env import NOOP

MakeVenv = Callable[..., gym.vector.VectorEnv]
SMALL = {"episodes": 8, "minibatch_size": 4, "micro_batch_size": 4, "lr": 1e-2}


def make_ppo(venv: gym.vector.VectorEnv, source: Path, **options: Any) -> PPO:
    settings = {**SMALL, **options.pop("settings", {})}
    return PPO(venv, ActorCritic(LanguageModel(source)), PPOConfig(**settings), **options)


def test_the_constructor_changes_nothing_and_collecting_gives_everything_back(make_venv: MakeVenv, word_model: Path):
    """The environment's KL stays bound to the caller's policy, and its generators go on from where they were."""
    venv = make_venv(kl_coef=0.5)
    env: Any = venv.unwrapped
    env.bind_policy(LanguageModel(word_model))
    venv.reset(seed=3)
    before, kl = env.state_dict(), (env.engine.kl.policy, env.engine.kl.delegated, env.engine.kl.report)
    ppo = make_ppo(venv, word_model)
    assert env.state_dict() == before
    rollout = ppo.collect()
    assert (env.engine.kl.policy, env.engine.kl.delegated, env.engine.kl.report) == kl
    torch.testing.assert_close(rollout.rewards.sum(dim=1), rollout.scores)  # no KL part in it
    venv.reset(seed=3, options={"prompt": "a"})
    actions = np.full(4, NOOP)
    actions[0] = 3
    assert "kl" in venv.step(actions)[4]["reward_parts"], "paid again"


def test_the_kl_is_paid_again_after_an_error(make_venv: MakeVenv):
    env: Any = make_venv(kl_coef=0.5).unwrapped

    def fail() -> None:
        with env.kl_delegated():
            assert (env.engine.kl.delegated, env.engine.kl.report) == (True, False)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert not env.engine.kl.delegated


def test_an_environment_that_was_never_reset_takes_the_trainers_seed(make_venv: MakeVenv, word_model: Path):
    """One that was seeded by its owner keeps that seed, whatever the trainer's."""
    fresh = [make_ppo(make_venv(), word_model, seed=seed).collect().prompts for seed in (1, 1, 2)]
    assert fresh[0] == fresh[1] != fresh[2]
    seeded = []
    for seed in (1, 2):
        venv = make_venv()
        venv.reset(seed=5)
        seeded.append(make_ppo(venv, word_model, seed=seed).collect().prompts[:4])
    assert seeded[0] == seeded[1]  # later ones depend on which slot ends first


def test_the_reference_is_an_argument(make_venv: MakeVenv, word_model: Path):
    """Here the policy after two updates; by default the policy as it was when the trainer was made."""
    moved = make_ppo(make_venv(), word_model)
    moved.train(2)
    reference = moved.policy.reference()
    policy = ActorCritic(LanguageModel(word_model))
    given = PPO(make_venv(), policy, PPOConfig(**SMALL), reference=reference)
    default = PPO(make_venv(), policy, PPOConfig(**SMALL))
    rollout = given.collect()
    assert default.advantages(rollout).metrics["kl_per_token_k3"] == pytest.approx(0, abs=1e-9)
    batch = given.advantages(rollout)
    assert batch.metrics["kl_per_token_k3"] > 1e-4
    assert torch.equal(batch.ref_log_probs, given_log_probs(reference, rollout, batch.micro_batches))
    assert PPO(make_venv(), policy, PPOConfig(**SMALL, kl_coef=0.0), reference=reference).reference is None


def given_log_probs(reference: Any, rollout: Any, micro_batches: Any) -> torch.Tensor:
    grid = torch.zeros(rollout.response_mask.shape)
    for rows in micro_batches:
        part = reference(rollout.rows(rows))
        grid[rows, : part.shape[1]] = part
    return grid


class Failing(gym.vector.VectorWrapper):
    """Episodes whose infrastructure fails at their second token: those whose running number is in ``failing``."""

    def __init__(self, venv: gym.vector.VectorEnv, failing: Callable[[int], bool]) -> None:
        super().__init__(venv)
        self.failing, self.begun, self.failed_prompts = failing, 0, []
        self.number = np.zeros(self.num_envs, dtype=int)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        for slot in np.flatnonzero(mask):
            self.number[slot], self.begun = self.begun, self.begun + 1
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        observation, rewards, terminated, truncated, info = self.env.step(actions)
        played = np.asarray(actions) != NOOP
        tokens = observation["response_mask"].sum(axis=1)
        for slot in np.flatnonzero(played & (tokens >= 2)):
            if self.failing(int(self.number[slot])):
                self.failed_prompts.append(self.unwrapped.current_prompt(slot).text)
                rewards[slot], terminated[slot], truncated[slot] = 0.0, False, True
                for name in ("score", "finish_reason"):
                    info.setdefault(f"_{name}", np.zeros(self.num_envs, dtype=bool))[slot] = name == "finish_reason"
                info.setdefault("finish_reason", np.full(self.num_envs, None, dtype=object))[slot] = "failed"
        return observation, rewards, terminated, truncated, info


@pytest.mark.filterwarnings("ignore:.*max_new_tokens:UserWarning")
@pytest.mark.parametrize("prompts", [None, ["a b", "f", "f", "c d e", "a b", "c d e", "f", "a b"]])
def test_failed_episodes_are_played_again_and_counted(prompts: Any, make_venv: MakeVenv, word_model: Path):
    """Every third does: none is in the rollout, the prompts are those of a rollout in which nothing failed."""
    venv = Failing(make_venv(min_new_tokens=2), lambda number: number % 3 == 1)
    ppo, sound = make_ppo(venv, word_model), make_ppo(make_venv(min_new_tokens=2), word_model)
    rollout = ppo.collect(prompts)
    assert rollout.failed_episodes == len(venv.failed_prompts) >= 3
    assert len(rollout.texts) == 8
    assert set(rollout.finish_reasons) <= {"eos", "length"}
    assert rollout.scores.isfinite().all()
    for row, text in enumerate(rollout.texts):
        words = text.split()
        assert rollout.rewards[row].sum().item() == pytest.approx(words.count("a") / max(1, len(words)))
        written = rollout.sampled_log_probs[row] != 0
        assert torch.equal(written, rollout.response_mask[row].bool()), "nothing is left of what had failed there"
    if prompts is not None:
        assert rollout.prompts == prompts
    else:
        assert sorted(rollout.prompts[:4]) == sorted(sound.collect().prompts[:4])  # the first drawn in each slot
    metrics, _ = ppo.iterate()
    assert metrics["failed_episodes"] >= 3
    assert metrics["first_ratio_error"] == 0


@pytest.mark.filterwarnings("ignore:.*max_new_tokens:UserWarning")
def test_states_of_failed_episodes_are_forgotten(make_venv: MakeVenv, word_model: Path):
    """With old values from decoding, which stand in a row of their own."""
    venv = Failing(make_venv(min_new_tokens=2), lambda number: number % 3 == 1)
    ppo = make_ppo(venv, word_model, settings={"old_log_probs": "sampled"})
    ppo.train(1)
    rollout = ppo.collect()
    assert rollout.failed_episodes > 0
    by_decoding = ppo.advantages(rollout)
    ppo.config.old_log_probs = "scored"
    by_scoring = ppo.advantages(rollout)
    for name in ("old_log_probs", "values"):
        torch.testing.assert_close(getattr(by_decoding, name), getattr(by_scoring, name), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*max_new_tokens:UserWarning")
def test_an_infrastructure_that_is_down_ends_it(make_venv: MakeVenv, word_model: Path):
    venv = Failing(make_venv(min_new_tokens=2), lambda number: True)
    with pytest.raises(RuntimeError, match=r"9 episodes failed .* while 8 were to be played"):
        collect(venv, LanguageModel(word_model), 8, generator=torch.Generator().manual_seed(0))
