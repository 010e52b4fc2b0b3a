"""What any environment and any vector environment must do, whatever the prompts, model and scorer are."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from textgen_env.vector_env import NOOP

from .comparing import largest, plain, same, slot_infos

Env: TypeAlias = Any  # a gym.Env or VectorEnv, which unwrapped has the attributes of `textgen_env.base_env.TextGenBase`

ENDING = {"text": str, "prompt": str, "finish_reason": str, "score": float, "response_length": int}
"""What `info` has at the end of an episode besides what each step has, with the types."""


class EnvContract:
    """Promises of the single environment. Override `make_env`, and `choose_action` if random tokens will not do."""

    seeds: Sequence[int] = (0, 1)

    def make_env(self) -> Env:
        """A fresh environment; each call the same."""
        raise NotImplementedError

    def choose_action(self, env: Env, rng: np.random.Generator) -> Any:
        """A legal action in the present state."""
        return rng.choice(np.flatnonzero(env.unwrapped.action_masks()))

    @pytest.fixture
    def env(self) -> Iterator[Env]:
        """Closed twice, which must be safe."""
        env = self.make_env()
        yield env
        env.close()
        env.close()

    def play(self, env: Env, seed: int) -> tuple[tuple[Any, dict], list[tuple[Any, ...]]]:
        """One episode: what `reset` returned, and for each step (action, observation, reward, flags, info)."""
        rng = np.random.default_rng(seed)
        steps: list[tuple[Any, ...]] = []
        start = env.reset(seed=seed)
        while not steps or not (steps[-1][3] or steps[-1][4]):
            assert len(steps) < env.unwrapped.max_new_tokens, "no end within max_new_tokens"
            action = self.choose_action(env, rng)
            steps.append((action, *env.step(action)))
        return start, steps

    def test_gymnasium_checker(self, env: Env) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*policy is unknown")  # a KL penalty that no agent is bound to
            check_env(env.unwrapped, skip_render_check=True)

    def test_observations_and_types(self, env: Env) -> None:
        for seed in self.seeds:
            (observation, _), steps = self.play(env, seed)
            assert observation in env.observation_space
            for action, observation, reward, terminated, truncated, _ in steps:
                assert action in env.action_space
                assert observation in env.observation_space
                assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
                assert math.isfinite(reward)
                assert not (terminated and truncated)

    def test_masks_follow_the_prefix(self, env: Env) -> None:
        for seed in self.seeds:
            (before, _), steps = self.play(env, seed)
            assert not before["response_mask"].any()
            for action, after, *_, info in steps:
                written, length = int(before["attention_mask"].sum()), int(after["attention_mask"].sum())
                assert length == written + 1 or ("reply" in info and length > written)
                np.testing.assert_array_equal(after["attention_mask"], np.arange(len(after["input_ids"])) < length)
                for key in ("input_ids", "response_mask"):
                    np.testing.assert_array_equal(after[key][:written], before[key][:written])
                assert (after["input_ids"][written], after["response_mask"][written]) == (action, 1)
                assert not after["response_mask"][written + 1 :].any()
                assert len(set(after["input_ids"][length:].tolist())) <= 1, "more than one kind of padding"
                before = after

    def test_reward_parts_add_up(self, env: Env) -> None:
        for seed in self.seeds:
            for _, _, reward, *_, info in self.play(env, seed)[1]:
                assert sum(info["reward_parts"].values()) == reward

    def test_infos_are_small_json(self, env: Env) -> None:
        for seed in self.seeds:
            (_, first), steps = self.play(env, seed)
            for info in [first, *(step[-1] for step in steps)]:
                assert json.loads(json.dumps(info, allow_nan=False)) == info  # so there are no tensors and no arrays
                assert largest(info) < env.unwrapped.language_model.vocab_size
            last = steps[-1][-1]
            assert {key: type(last.get(key)) for key in ENDING} == ENDING
            assert last["response_length"] == len(steps)
            assert last["prompt"] == first["prompt"]

    def test_same_seed_same_episode(self, env: Env) -> None:
        other = self.make_env()
        for seed in self.seeds:
            assert same(plain(self.play(env, seed)), plain(self.play(other, seed)))
        other.close()

    def test_no_step_after_the_end(self, env: Env) -> None:
        _, steps = self.play(env, self.seeds[0])
        with pytest.raises(ResetNeeded):
            env.step(steps[-1][0])


class VectorEnvContract:
    """Promises of the vector environment, in the autoreset mode in which `make_vector_env` makes it."""

    seed = 0

    def make_vector_env(self) -> Env:
        """A fresh vector environment; each call the same."""
        raise NotImplementedError

    def choose_actions(self, env: Env, rng: np.random.Generator) -> Any:
        """A legal action for each slot."""
        return np.array([rng.choice(np.flatnonzero(allowed)) for allowed in env.unwrapped.action_masks()])

    @pytest.fixture
    def vector_env(self) -> Iterator[Env]:
        """Closed twice, which must be safe."""
        env = self.make_vector_env()
        yield env
        env.close()
        env.close()

    def play(self, env: Env) -> list[tuple[Any, ...]]:
        """Some episodes: (observations, rewards, terminated, truncated, infos) of `reset`, and then of each step."""
        rng, n = np.random.default_rng(self.seed), env.num_envs
        observations, infos = env.reset(seed=self.seed)
        steps: list[tuple[Any, ...]] = [(observations, np.zeros(n), *np.zeros((2, n), np.bool_), infos)]
        for _ in range(2 * env.unwrapped.max_new_tokens):
            ended = steps[-1][2] | steps[-1][3]
            if ended.any() and env.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
                env.reset(options={"reset_mask": ended})
            steps.append(env.step(self.choose_actions(env, rng)))
        return steps

    def test_spaces_are_batches_of_the_single_ones(self, vector_env: Env) -> None:
        batch = gym.vector.utils.batch_space
        assert vector_env.observation_space == batch(vector_env.single_observation_space, vector_env.num_envs)
        assert vector_env.action_space == batch(vector_env.single_action_space, vector_env.num_envs)

    def test_observations_and_types(self, vector_env: Env) -> None:
        for observations, rewards, terminated, truncated, _ in self.play(vector_env):
            assert observations in vector_env.observation_space
            for array, dtype in ((rewards, np.float64), (terminated, np.bool_), (truncated, np.bool_)):
                assert (array.shape, array.dtype) == ((vector_env.num_envs,), dtype)
            assert np.isfinite(rewards).all()
            assert not (terminated & truncated).any()

    def test_returned_arrays_are_not_overwritten_later(self, vector_env: Env) -> None:
        rng = np.random.default_rng(self.seed)
        returned: list[Any] = [vector_env.reset(seed=self.seed)[0]]
        copies = [plain(returned[0])]
        for _ in range(vector_env.unwrapped.max_new_tokens):
            returned.append(vector_env.step(self.choose_actions(vector_env, rng))[:4])
            copies.append(plain(returned[-1]))
            if (returned[-1][2] | returned[-1][3]).any():
                break
        assert plain(returned) == copies

    def test_reward_parts_add_up_and_every_episode_ends_in_time(self, vector_env: Env) -> None:
        age = np.zeros(vector_env.num_envs, dtype=int)
        ended = np.zeros(vector_env.num_envs, dtype=bool)
        for _, rewards, terminated, truncated, infos in self.play(vector_env)[1:]:
            for slot, info in enumerate(slot_infos(infos, vector_env.num_envs)):
                final = info.get("final_info", info)
                assert sum(final.get("reward_parts", {}).values()) == rewards[slot]
                if terminated[slot] or truncated[slot]:
                    assert {key: type(final.get(key)) for key in ENDING} == ENDING
                    assert final["response_length"] == age[slot] + 1
            resetting = ended & (vector_env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP)
            ended = terminated | truncated
            age = np.where(ended | resetting, 0, age + 1)
            assert (age < vector_env.unwrapped.max_new_tokens).all(), "no end within max_new_tokens"

    def test_a_slot_that_is_not_stepped_stays_as_it_was(self, vector_env: Env) -> None:
        before, _ = vector_env.reset(seed=self.seed)
        actions = self.choose_actions(vector_env, np.random.default_rng(self.seed))
        actions[1:] = NOOP
        after, rewards, terminated, truncated, infos = vector_env.step(actions)
        assert not np.concatenate([rewards[1:], terminated[1:], truncated[1:]]).any()
        assert not any(slot_infos(infos, vector_env.num_envs)[1:])
        for key, rows in after.items():
            np.testing.assert_array_equal(rows[1:], before[key][1:])

    def test_infos_are_small(self, vector_env: Env) -> None:
        for *_, infos in self.play(vector_env):
            for info in slot_infos(infos, vector_env.num_envs):
                info.pop("final_obs", None)
                json.dumps(info, allow_nan=False)  # so there are no tensors
                assert largest(info) < vector_env.unwrapped.language_model.vocab_size

    def test_same_seed_same_episodes(self, vector_env: Env) -> None:
        other = self.make_vector_env()
        assert same(plain(self.play(vector_env)), plain(self.play(other)))
        other.close()
