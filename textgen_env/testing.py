"""What any environment, vector environment or scorer of this kind must do: suites to subclass, in anybody's tests.

    from textgen_env.testing import EnvContract

    class TestMine(EnvContract):
        def make_env(self):
            return gym.make("textgen/TextGen-v0", prompts=["Once"], scorer=my_scorer)

Here: promises that hold whatever the prompts, model and scorer are. Not here: what a certain task pays. Needs pytest,
which collects the subclasses; nothing else in the package imports this module. With
`pytest.register_assert_rewrite("textgen_env.testing")` in a conftest.py, failures show the values that differ. The
pattern is that of `dm_env.test_utils.EnvironmentTestMixin`.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from textgen_env.scorers import as_scorer, call_scorer, score_parts
from textgen_env.scorers.base import part_names
from textgen_env.vector_env import NOOP

try:
    import pytest
except ImportError as error:
    raise ImportError("textgen_env.testing needs pytest: pip install pytest") from error

__all__ = ["EnvContract", "ScorerContract", "VectorEnvContract"]

Env: TypeAlias = Any  # a gym.Env or VectorEnv, which unwrapped has the attributes of `textgen_env.base_env.TextGenBase`

ENDING = {"text": str, "prompt": str, "finish_reason": str, "score": float, "response_length": int}
"""What `info` has at the end of an episode besides what each step has, with the types."""

SINGLE_REFERENCES = ("b", "good", "Bad soup!", "日本", "x y")


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
            prompt = int(before["attention_mask"].sum())
            for length, (action, after, *_) in enumerate(steps, start=prompt + 1):
                columns = np.arange(len(after["input_ids"]))
                np.testing.assert_array_equal(after["attention_mask"], columns < length)
                np.testing.assert_array_equal(after["response_mask"], (columns >= prompt) & (columns < length))
                np.testing.assert_array_equal(after["input_ids"][: length - 1], before["input_ids"][: length - 1])
                assert after["input_ids"][length - 1] == action
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


class ScorerContract:
    """Promises of a scorer, one number per text. Override `make_scorer`, and `columns` for what prompts must have."""

    tolerance = 1e-6
    """How far scores may differ between batches of another make-up: padding moves the last digits of a model."""

    texts: Sequence[str] = ("The cat sat on the mat.", "", "good", "Terrible, terrible soup!", "ünï 日本 🙂 {}", " \n ")

    def make_scorer(self) -> Any:
        """A fresh scorer; each call the same."""
        raise NotImplementedError

    def columns(self) -> dict[str, Any]:
        """What is known of each text besides the text itself."""
        return {
            "prompts": ["Describe:", "Say:", "How was it?", "And the soup?", "p", "Go on:"],
            "references": [["A cat sat on a mat.", "The cat is there."], *([text] for text in SINGLE_REFERENCES)],
            "completion_ids": [[*text.encode(), 2] for text in self.texts],
            "finish_reasons": ["eos", "eos", "length", "stop", "length", "eos"],
        }

    def score(self, rows: Sequence[int] | None = None, scorer: Any = None) -> list[float]:
        """The scores of some of the texts, in one batch, checked to be finite and as many."""
        rows = range(len(self.texts)) if rows is None else rows
        columns = {key: [column[row] for row in rows] for key, column in self.columns().items()}
        scorer = self.prepared() if scorer is None else scorer
        scores = call_scorer(scorer, [self.texts[row] for row in rows], **columns)
        assert len(scores) == len(rows)
        assert all(type(score) is float and math.isfinite(score) for score in scores)
        return scores

    def prepared(self) -> Any:
        """A fresh scorer that has seen the references of its task, as an environment lets it."""
        scorer = self.make_scorer()
        as_scorer(scorer).fit_references(self.columns()["references"])
        return scorer

    def test_one_finite_number_a_text(self) -> None:
        self.score()

    def test_empty_text_alone(self) -> None:
        self.score([self.texts.index("")])

    def test_batch_is_one_by_one(self) -> None:
        scorer = self.prepared()
        alone = [self.score([row], scorer)[0] for row in range(len(self.texts))]
        assert self.score(scorer=scorer) == pytest.approx(alone, abs=self.tolerance)

    def test_order_of_the_batch_does_not_matter(self) -> None:
        order = [3, 5, 0, 4, 2, 1]
        scores = self.score()
        assert self.score(order) == pytest.approx([scores[row] for row in order], abs=self.tolerance)

    def test_asked_again_it_says_the_same(self) -> None:
        scorer = self.prepared()
        scores = self.score(scorer=scorer)
        assert self.score(scorer=scorer) == scores
        assert self.score() == pytest.approx(scores, abs=self.tolerance)  # a copy may round otherwise

    def test_leaves_its_input_alone(self) -> None:
        texts, columns = list(self.texts), self.columns()
        call_scorer(self.prepared(), texts, **columns)
        assert (texts, columns) == (list(self.texts), self.columns())

    def test_parts_are_those_announced_and_add_up(self) -> None:
        scorer = self.prepared()
        parts = score_parts(scorer, self.texts, **self.columns())
        assert tuple(parts) == part_names(scorer)
        assert [sum(values) for values in zip(*parts.values(), strict=True)] == self.score(scorer=scorer)

    def test_counters_are_numbers_that_json_takes(self) -> None:
        scorer = self.prepared()
        self.score(scorer=scorer)
        counters = as_scorer(scorer).info()
        assert json.loads(json.dumps(counters, allow_nan=False)) == counters


def plain(value: Any) -> Any:
    """Nested tuples, mappings and arrays as lists, dictionaries and numbers, which `==` compares."""
    if isinstance(value, Mapping):
        return {key: plain(inside) for key, inside in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return [plain(inside) for inside in value] if isinstance(value, (list, tuple)) else value


def same(ours: Any, theirs: Any) -> bool:
    """Whether two plain values are equal, floats to 1e-4: two copies of a model may round otherwise."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float):
        return ours == pytest.approx(theirs, rel=0, abs=1e-4, nan_ok=True)
    return bool(ours == theirs)


def largest(value: Any) -> int:
    """The length of the longest list or mapping inside a JSON value."""
    if isinstance(value, (list, tuple, Mapping)):
        inside = value.values() if isinstance(value, Mapping) else value
        return max([len(value), *map(largest, inside)])
    return 0


def slot_infos(infos: Mapping[str, Any], n: int) -> list[dict[str, Any]]:
    """Gymnasium's dictionary of arrays with `_key` masks, as one dictionary a slot with Python values."""
    slots: list[dict[str, Any]] = [{} for _ in range(n)]
    for key, mask in infos.items():
        if not (key.startswith("_") and key[1:] in infos):
            continue
        column = infos[key[1:]]
        values = slot_infos(column, n) if isinstance(column, Mapping) else column
        assert len(values) == len(mask) == n, f"infos[{key[1:]!r}] has not one entry per slot"
        for slot in np.flatnonzero(mask):
            value = values[slot]
            slots[slot][key[1:]] = value.item() if isinstance(value, np.generic) else value
    return slots
