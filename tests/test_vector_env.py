"""The vector environment: the same as `SyncVectorEnv` of the single one, refilling, waiting, and saved state."""

from __future__ import annotations

import json
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from compare import assert_same
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from textgen_env import NOOP, TextGenVectorEnv
from textgen_env.scorers import ScorerError

EOS = 2
SLOTS = 3
MODES = list(AutoresetMode)


def count_letters(completions, **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def growing(completions, **_: Any) -> list[float]:
    return [len(text) ** 0.5 for text in completions]


growing.dense = True  # type: ignore[attr-defined]


@pytest.fixture
def arguments(byte_model: str, other_model: str) -> dict[str, Any]:
    return {
        "model": byte_model,
        "reference": other_model,
        "prompts": [f"prompt {i}" * (1 + i % 3) for i in range(20)],
        "scorer": count_letters,
        "max_new_tokens": 5,
    }


def make_pair(arguments: dict[str, Any], mode: AutoresetMode) -> tuple[gym.vector.VectorEnv, gym.vector.VectorEnv]:
    ours = gym.make_vec("textgen/TextGen-v0", num_envs=SLOTS, autoreset_mode=mode, **arguments)
    theirs = SyncVectorEnv(
        [lambda: gym.make("textgen/TextGen-v0", **arguments) for _ in range(SLOTS)], autoreset_mode=mode
    )
    return ours, theirs


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"kl_coef": 0.1, "temperature": 0.7},
        {"length_limit": "truncate", "stop_strings": ["a", "bc"]},
        {"scorer": growing, "kl_coef": 0.2},
    ],
    ids=["plain", "kl", "truncate-stop", "dense"],
)
def test_same_as_sync_vector_env(arguments: dict[str, Any], mode: AutoresetMode, extra: dict[str, Any]) -> None:
    ours, theirs = make_pair(arguments | extra, mode)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"] is mode
    assert_same(ours.reset(seed=11), theirs.reset(seed=11), "reset")
    random = np.random.default_rng(0)
    ends = 0
    for step in range(40):
        actions = random.integers(3, 259, size=SLOTS)
        actions[random.random(SLOTS) < 0.2] = EOS
        ours_result, theirs_result = ours.step(actions), theirs.step(actions)
        assert_same(ours_result, theirs_result, f"step {step}")
        ended = ours_result[2] | ours_result[3]
        ends += int(ended.sum())
        if mode is AutoresetMode.DISABLED and ended.any():
            assert_same(
                ours.reset(options={"reset_mask": ended}), theirs.reset(options={"reset_mask": ended}), f"reset {step}"
            )
    assert ends > 10


@pytest.mark.parametrize("mode", MODES)
def test_reset_with_a_list_of_seeds(arguments: dict[str, Any], mode: AutoresetMode) -> None:
    ours, theirs = make_pair(arguments, mode)
    assert_same(ours.reset(seed=[5, 5, 9]), theirs.reset(seed=[5, 5, 9]))
    assert_same(ours.reset(seed=None), theirs.reset(seed=None))  # generators go on


def test_make_vec_defaults_to_same_step_and_takes_it_by_name(arguments: dict[str, Any]) -> None:
    assert gym.make_vec("textgen/TextGen-v0", **arguments).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    by_name = gym.make_vec("textgen/TextGen-v0", autoreset_mode="Disabled", **arguments)
    assert by_name.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    with pytest.raises(ValueError, match="autoreset_mode='always' must be one of 'NextStep', 'SameStep', 'Disabled'"):
        gym.make_vec("textgen/TextGen-v0", autoreset_mode="always", **arguments)


def test_all_episodes_that_end_in_a_step_are_scored_as_one_batch(arguments: dict[str, Any]) -> None:
    batches = []

    def spy(completions, **_):
        batches.append(list(completions))
        return [0.0] * len(completions)

    envs = TextGenVectorEnv(SLOTS, **arguments | {"scorer": spy})
    envs.reset(seed=0)
    envs.step(np.array([100, 101, EOS]))
    envs.step(np.array([EOS, EOS, 100]))
    assert [len(batch) for batch in batches] == [1, 2]


def test_a_group_can_share_a_prompt(arguments: dict[str, Any]) -> None:
    envs = TextGenVectorEnv(SLOTS, **arguments)
    assert envs.reset(options={"prompt": "same"})[1]["prompt"].tolist() == ["same"] * 3
    info = envs.reset(seed=1, options={"prompt": ["a", 2, {"prompt": "c", "references": ["r"]}]})[1]
    assert info["prompt"].tolist() == ["a", envs.prompts[2].text, "c"]
    with pytest.raises(ValueError, match=r"options\['prompt'\] has 2 entries; it needs one for each of 3"):
        envs.reset(options={"prompt": ["a", "b"]})


def test_reset_mask_is_read_not_popped_and_leaves_the_others_alone(arguments: dict[str, Any]) -> None:
    envs = TextGenVectorEnv(SLOTS, autoreset_mode="Disabled", **arguments)
    before, _ = envs.reset(seed=0)
    mask = np.array([False, True, False])
    options = {"reset_mask": mask, "prompt": [None, "new", None]}
    after, info = envs.reset(options=options)
    assert options.keys() == {"reset_mask", "prompt"}
    assert info["_prompt"].tolist() == mask.tolist()
    np.testing.assert_array_equal(before["input_ids"][[0, 2]], after["input_ids"][[0, 2]])
    for bad in ([True] * 3, np.array([1, 0, 0]), np.zeros(2, dtype=bool), np.zeros(3, dtype=bool)):
        with pytest.raises(ValueError, match="reset_mask"):
            envs.reset(options={"reset_mask": bad})


def test_a_slot_that_has_ended_is_left_alone(arguments: dict[str, Any]) -> None:
    envs = TextGenVectorEnv(2, autoreset_mode="Disabled", **arguments)
    envs.reset(seed=0)
    obs, _, terminated, _, _ = envs.step(np.array([EOS, 50]))
    assert terminated.tolist() == [True, False]
    later, rewards, terminated, _, infos = envs.step(np.array([NOOP, 51]))
    assert terminated.tolist() == [True, False]
    assert rewards[0] == 0
    np.testing.assert_array_equal(later["input_ids"][0], obs["input_ids"][0])
    assert infos["_reward_parts"].tolist() == [False, True]
    with pytest.raises(ResetNeeded, match="slot 0"):
        envs.step(np.array([50, 50]))
    with pytest.raises(ValueError, match="action -2"):
        envs.step(np.array([NOOP, -2]))
    envs.step(np.array([NOOP, EOS]))
    _, rewards, terminated, truncated, infos = envs.step(np.array([NOOP, NOOP]))
    assert (rewards.tolist(), terminated.tolist(), truncated.tolist()) == ([0, 0], [True, True], [False, False])
    assert infos == {}


def test_failing_scorer_moves_no_slot(arguments: dict[str, Any]) -> None:
    answers: list[Any] = [[float("nan")], [2.0]]
    envs = TextGenVectorEnv(2, **arguments | {"scorer": lambda completions, **_: answers.pop(0)})
    before, _ = envs.reset(seed=0)
    with pytest.raises(ScorerError):
        envs.step(np.array([EOS, 50]))
    assert envs.engine.episodes.response_lengths.tolist() == [0, 0]
    np.testing.assert_array_equal(envs.engine.episodes.input_ids, before["input_ids"])
    assert envs.step(np.array([EOS, 50]))[1].tolist() == [2.0, 0.0]


@pytest.mark.parametrize("actions", [np.zeros(2, dtype=int), np.zeros((3, 1), dtype=int), 5])
def test_actions_of_another_shape(arguments: dict[str, Any], actions: Any) -> None:
    envs = TextGenVectorEnv(SLOTS, **arguments)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have shape \(3,\)"):
        envs.step(actions)


@pytest.mark.parametrize("number", [0, -2, 1.5])
def test_bad_number_of_slots(arguments: dict[str, Any], number: Any) -> None:
    with pytest.raises(ValueError, match="num_envs="):
        TextGenVectorEnv(number, **arguments)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["state_dict", "pickle"])
def test_saved_in_the_middle_goes_on_alike(arguments: dict[str, Any], mode: AutoresetMode, way: str) -> None:
    envs = TextGenVectorEnv(SLOTS, autoreset_mode=mode, **arguments | {"kl_coef": 0.1})
    envs.reset(seed=0)
    envs.step(np.array([EOS, 50, 60]))
    if way == "pickle":
        other = pickle.loads(pickle.dumps(envs))
    else:
        other = TextGenVectorEnv(SLOTS, autoreset_mode=mode, **arguments)
        other.load_state_dict(json.loads(json.dumps(envs.state_dict())))
    first = NOOP if mode is AutoresetMode.DISABLED else 70
    for actions in ([first, 51, EOS], [first, EOS, NOOP if mode is AutoresetMode.DISABLED else 80]):
        assert_same(envs.step(np.array(actions)), other.step(np.array(actions)))
    assert_same(envs.reset(), other.reset())


def test_state_of_another_size_is_refused(arguments: dict[str, Any]) -> None:
    state = TextGenVectorEnv(2, **arguments).state_dict()
    with pytest.raises(ValueError, match="the state has 2 slots, this environment 3"):
        TextGenVectorEnv(3, **arguments).load_state_dict(state)


def test_masks_and_frames_have_one_row_a_slot(arguments: dict[str, Any]) -> None:
    envs = TextGenVectorEnv(2, render_mode="ansi", min_new_tokens=1, **arguments)
    envs.reset(seed=0)
    assert envs.action_masks().shape == (2, 259)
    envs.step(np.array([50, 51]))
    assert envs.action_masks().all()
    assert len(envs.render()) == 2
    envs.close()
    envs.close()
