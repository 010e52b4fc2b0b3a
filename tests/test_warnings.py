"""Warnings point at the user's line and come once; a limit of steps outside the environment is told."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import Autoreset, TimeLimit

from textgen_env import TextGenEnv, TextGenVectorEnv

LETTER, EOS = 80, 2
CUT = r"reset\(\) cut a running episode after {} of max_new_tokens=6 tokens.*set max_new_tokens={}"


def zero(completions, **_: Any) -> list[float]:
    return [0.0] * len(completions)


@pytest.fixture
def arguments(byte_model: str) -> dict[str, Any]:
    return {"model": byte_model, "prompts": ["one", "two"], "scorer": zero, "max_new_tokens": 6}


@pytest.fixture
def strict() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def play(env: Any, steps: int) -> None:
    for _ in range(steps):
        env.step(LETTER)


def told(function: Any) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [one for one in caught if "cut a running episode" in str(one.message)]


# --- where warnings point ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", ["single", "gym.make", "vector", "gym.make_vec", "SyncVectorEnv"])
def test_warnings_point_at_the_users_line_and_come_once(arguments: dict[str, Any], made: str) -> None:
    arguments |= {"kl_coef": 0.1, "max_prompt_tokens": 3}
    env: Any = {
        "single": lambda: TextGenEnv(**arguments),
        "gym.make": lambda: gym.make("textgen/TextGen-v0", **arguments),
        "vector": lambda: TextGenVectorEnv(1, **arguments),
        "gym.make_vec": lambda: gym.make_vec("textgen/TextGen-v0", num_envs=1, **arguments),
        "SyncVectorEnv": lambda: SyncVectorEnv([lambda: gym.make("textgen/TextGen-v0", **arguments)]),
    }[made]()
    actions = np.array([LETTER]) if isinstance(env, gym.vector.VectorEnv) else LETTER
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            env.reset(options={"prompt": "a long prompt"})
            env.step(actions)
            if made in ("single", "vector"):
                env.render()
    messages = [str(one.message) for one in caught]
    assert {one.filename for one in caught} == {__file__}
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    for word, call in (("was cut on the left", "env.reset("), ("policy is unknown", "env.step(actions)")):
        at = [one.lineno for one in caught if word in str(one.message)]
        assert [lines[line - 1].strip().startswith(call) for line in at] == [True], messages


def test_default_filter_shows_one_line_for_many_environments(arguments: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for env in [TextGenEnv(**arguments, kl_coef=0.1) for _ in range(3)]:
            env.reset(seed=0)
            env.step(LETTER)
    assert len([one for one in caught if "policy is unknown" in str(one.message)]) == 1


# --- limits outside ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2, 3, 5])
@pytest.mark.parametrize("how", ["make", "wrapper", "loop"])
def test_first_reset_that_cuts_an_episode_is_told_once(arguments: dict[str, Any], limit: int, how: str) -> None:
    env: Any = {
        "make": lambda: gym.make("textgen/TextGen-v0", max_episode_steps=limit, **arguments),
        "wrapper": lambda: TimeLimit(TextGenEnv(**arguments), limit),
        "loop": lambda: TextGenEnv(**arguments),
    }[how]()
    assert not told(lambda: env.reset(seed=0))
    assert not told(lambda: play(env, limit))
    with pytest.warns(UserWarning, match=CUT.format(limit, limit)) as caught:
        env.reset()
    assert caught[0].filename == __file__
    assert not told(lambda: (play(env, limit), env.reset()))


def test_limit_of_one_token_is_told(arguments: dict[str, Any]) -> None:
    env = gym.make("textgen/TextGen-v0", max_episode_steps=1, **arguments)
    env.reset(seed=0)
    assert len(told(lambda: (play(env, 1), env.reset()))) == 1
    env = TextGenEnv(**arguments)  # and a loop
    env.reset(seed=0)
    assert not told(lambda: (play(env, 1), env.reset()))
    assert len(told(lambda: (play(env, 1), env.reset()))) == 1


def test_limit_is_told_though_other_episodes_end(arguments: dict[str, Any]) -> None:
    env = gym.make("textgen/TextGen-v0", max_episode_steps=3, **arguments)
    env.reset(seed=0)
    env.step(EOS)
    assert not told(env.reset)
    assert len(told(lambda: (play(env, 3), env.reset()))) == 1


def test_loop_between_two_ends_is_told(arguments: dict[str, Any]) -> None:
    env = TextGenEnv(**arguments)
    env.reset(seed=0)
    env.step(EOS)
    env.reset()
    assert not told(lambda: (play(env, 3), env.reset()))  # as after a training that ends in the middle
    assert len(told(lambda: (play(env, 3), env.reset()))) == 1


def test_limit_below_autoreset_is_told(arguments: dict[str, Any]) -> None:
    env = Autoreset(TimeLimit(TextGenEnv(**arguments), 3))
    env.reset(seed=0)
    assert len(told(lambda: play(env, 20))) == 1


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_limit_in_gymnasiums_vector_env_is_told_by_each_environment(
    arguments: dict[str, Any], mode: AutoresetMode
) -> None:
    env = gym.make_vec(
        "textgen/TextGen-v0",
        num_envs=2,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        max_episode_steps=3,
        **arguments,
    )
    env.reset(seed=0)
    assert len(told(lambda: [env.step(np.array([LETTER, LETTER])) for _ in range(12)])) == 2


def test_limit_in_gymnasiums_vector_env_without_autoreset_is_told(arguments: dict[str, Any]) -> None:
    env = SyncVectorEnv([lambda: TimeLimit(TextGenEnv(**arguments), 3)] * 2, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    for _ in range(3):
        ended = env.step(np.array([LETTER, LETTER]))[3]
    assert len(told(lambda: env.reset(options={"reset_mask": ended}))) == 2


def test_our_vector_env_names_the_argument_that_does_it() -> None:
    with pytest.raises(TypeError, match="'max_episode_steps'. Did you mean max_new_tokens?"):
        gym.make_vec("textgen/Sentiment-v0", num_envs=2, max_episode_steps=3)


@pytest.mark.parametrize("options", [None, {"reset_mask": np.array([True, False])}])
def test_vector_env_whose_slots_are_cut(arguments: dict[str, Any], options: Any) -> None:
    env = TextGenVectorEnv(2, autoreset_mode="Disabled", **arguments)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.array([LETTER, LETTER]))
    assert len(told(lambda: env.reset(options=options))) == 1
    assert not told(lambda: (env.step(np.array([LETTER, LETTER])), env.reset()))


def test_what_an_evaluation_leaves_is_no_cut(arguments: dict[str, Any]) -> None:
    env = TextGenVectorEnv(3, **arguments)
    env.reset(seed=0)
    for _ in range(3):
        for actions in ([EOS, LETTER, LETTER], [LETTER, LETTER, LETTER], [LETTER, LETTER, LETTER]):
            env.step(np.array(actions))
        assert not told(env.reset)


@pytest.mark.parametrize("meant", [{"seed": 1}, {"options": {"prompt": "again"}}, {"options": {"prompt": 0}}])
@pytest.mark.parametrize("kind", [TextGenEnv, TextGenVectorEnv])
def test_restart_that_is_meant_is_silent(
    arguments: dict[str, Any], kind: Any, meant: dict[str, Any], strict: Any
) -> None:
    env = kind(**arguments)
    for _ in range(3):
        env.reset(**meant)
        for _ in range(3):
            env.step(LETTER if kind is TextGenEnv else [LETTER])


def test_episodes_that_end_by_themselves_are_silent(arguments: dict[str, Any], strict: Any) -> None:
    env = gym.make("textgen/TextGen-v0", max_episode_steps=6, **arguments)
    env.reset(seed=0)
    for steps in (6, 6):
        play(env, steps)
        env.reset()
    env.step(EOS)
    env.reset()
    env.reset()


@pytest.mark.parametrize("task", ["textgen/Sentiment-v0", "textgen/Translate-v0"])
def test_checkers_are_silent_however_often(task: str, strict: Any) -> None:
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    for _ in range(2):
        env = gym.make(task)
        for _ in range(2):
            sb3.check_env(env)
        env = gym.make(task)
        for _ in range(2):
            check_env(env.unwrapped)
