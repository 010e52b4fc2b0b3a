"""Slots that are not stepped: each plays the episodes that it would have played without the pauses, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from compare import assert_same
from gymnasium.vector import AutoresetMode
from test_vector_env import growing

import textgen_env
from textgen_env import NOOP, LanguageModel, TextGenEnv, TextGenVectorEnv
from textgen_env.testing import plain, same, slot_infos
from textgen_env.wrappers import LMFeatures, TopKActions, VectorLMFeatures, VectorTopKActions

SLOTS = 3
MODES = list(AutoresetMode)


@pytest.fixture
def arguments(byte_model: str, other_model: str) -> dict[str, Any]:
    return {
        "model": byte_model,
        "reference": other_model,
        "prompts": [f"prompt {i}" * (1 + i % 3) for i in range(20)],
        "scorer": growing,
        "max_new_tokens": 5,
    }


class Slot:
    """One slot by hand: a single environment that is stepped only when its action is no `NOOP`."""

    def __init__(self, env: gym.Env, mode: AutoresetMode, seed: int) -> None:
        self.env, self.mode = env, mode
        self.observation, _ = env.reset(seed=seed)
        self.flags = (False, False)

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if any(self.flags) and self.mode is AutoresetMode.NEXT_STEP:
            self.observation, info = self.env.reset()
            self.flags = (False, False)
            return self.observation, 0.0, False, False, info
        if action == NOOP:
            return self.observation, 0.0, *self.flags, {}
        self.observation, reward, *flags, info = self.env.step(action)
        self.flags = tuple(flags)
        if any(flags) and self.mode is AutoresetMode.SAME_STEP:
            final = {"final_obs": self.observation, "final_info": info}
            self.observation, start = self.env.reset()
            info, self.flags = {**final, **start}, (False, False)
        return self.observation, reward, *flags, info

    def reset(self) -> None:
        self.observation, _ = self.env.reset()
        self.flags = (False, False)


WRAPPINGS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], int]] = {
    "tokens": (lambda env: env, lambda env: env, 259),
    "features of ranks": (
        lambda env: LMFeatures(TopKActions(env, 6), 6),
        lambda env: VectorLMFeatures(VectorTopKActions(env, 6), 6),
        6,
    ),
    "ranks of features": (
        lambda env: TopKActions(LMFeatures(env), 6),
        lambda env: VectorTopKActions(VectorLMFeatures(env), 6),
        6,
    ),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("mode", MODES)
def test_pauses_change_nothing(arguments: dict[str, Any], mode: AutoresetMode, wrapping: str, byte_model: str) -> None:
    single, vector, actions = WRAPPINGS[wrapping]
    arguments |= {"kl_coef": 0.1, "kl_estimator": "full" if wrapping == "tokens" else "k1"}
    arguments |= {"stop_strings": list("aeiou"), "length_limit": "truncate"}
    slots = [Slot(single(TextGenEnv(**arguments)), mode, seed=7 + slot) for slot in range(SLOTS)]
    envs = vector(TextGenVectorEnv(SLOTS, autoreset_mode=mode, **arguments))
    if wrapping == "tokens":
        for env in (*(slot.env for slot in slots), envs):
            env.bind_policy(LanguageModel(byte_model))
    envs.reset(seed=7)
    rng = np.random.default_rng(0)
    paused = ended = 0
    for _ in range(40):
        over = np.array([any(slot.flags) for slot in slots])
        if mode is AutoresetMode.DISABLED and (again := over & (rng.random(SLOTS) < 0.5)).any():
            envs.reset(options={"reset_mask": again})
            for slot in np.flatnonzero(again):
                slots[slot].reset()
            over &= ~again
        chosen = rng.integers(actions, size=SLOTS)
        chosen[(rng.random(SLOTS) < 0.4) | (over & (mode is AutoresetMode.DISABLED))] = NOOP
        observations, rewards, terminated, truncated, infos = envs.step(chosen)
        by_slot = slot_infos(infos, SLOTS)
        for slot, action in enumerate(chosen.tolist()):
            paused += action == NOOP and not over[slot]
            observation, reward, *flags, info = slots[slot].step(action)
            if wrapping == "tokens":
                assert {key: rows[slot].tolist() for key, rows in observations.items()} == plain(observation)
            else:
                np.testing.assert_allclose(observations[slot], observation, atol=1e-4)
            assert rewards[slot] == pytest.approx(reward, abs=1e-4)
            assert [bool(terminated[slot]), bool(truncated[slot])] == flags
            assert same(plain(by_slot[slot]), plain(info))
            ended += "text" in info or "final_info" in info
    assert paused > 20
    assert ended > 5


@pytest.mark.parametrize("bound", [False, True], ids=["unbound", "bound"])
@pytest.mark.parametrize("mode", MODES)
def test_nobody_is_asked_when_no_slot_is_stepped(arguments: dict[str, Any], mode: AutoresetMode, bound: bool) -> None:
    asked: list[int] = []

    def policy(observations: dict[str, Any]) -> np.ndarray:
        asked.append(len(observations["input_ids"]))
        return np.zeros((len(observations["input_ids"]), 259))

    envs = TextGenVectorEnv(2, autoreset_mode=mode, **arguments | {"kl_coef": 0.1, "reference_top_p": 0.9})
    envs.bind_policy(policy if bound else None)
    before, _ = envs.reset(seed=0)
    observations, rewards, terminated, truncated, infos = envs.step(np.array([NOOP, NOOP]))
    assert_same(observations, before)
    assert infos == {}
    assert not np.concatenate([rewards, terminated, truncated]).any()
    observations, rewards, *_, infos = envs.step(np.array([NOOP, np.flatnonzero(envs.action_masks()[1])[-1]]))
    assert observations["response_mask"].sum(axis=1).tolist() == [0, 1]
    assert rewards[0] == 0
    parts = infos["reward_parts"]
    assert rewards[1] == parts["score"][1] + parts["kl"][1]
    assert parts["kl"][1] != 0
    assert [key for key in infos if key.startswith("_")] == ["_reward_parts", "_ref_logprob"]
    assert all(infos[key].tolist() == [False, True] for key in infos if key.startswith("_"))
    assert asked == [1] * bound


def test_the_single_environment_has_no_noop(arguments: dict[str, Any]) -> None:
    env = TextGenEnv(**arguments)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action -1 is not in Discrete\(259\)"):
        env.step(NOOP)


def test_a_slot_that_has_not_begun_may_wait(arguments: dict[str, Any]) -> None:
    envs = TextGenVectorEnv(2, autoreset_mode="Disabled", **arguments)
    envs.reset(seed=0, options={"reset_mask": np.array([False, True])})
    observations, _, terminated, _, _ = envs.step(np.array([NOOP, 50]))
    assert observations["attention_mask"].sum(axis=1)[0] == 0
    assert not terminated.any()


def test_it_is_minus_one_and_has_an_old_name() -> None:
    assert NOOP == -1 == getattr(textgen_env, "RE" + "ST")
