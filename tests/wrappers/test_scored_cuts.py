"""A response that the length limit cut and scored is an end; one that a limit outside cut, unscored, is not."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from textgen_env import TextGenEnv, TextGenVectorEnv
from textgen_env.vector_env import NOOP
from textgen_env.wrappers import LMFeatures, ScoredCutsEnd, TopKActions, VectorLMFeatures, VectorScoredCutsEnd

EOS = 2


def sevens(completions: list[str], **_: Any) -> list[float]:
    return [7.0] * len(completions)


@pytest.fixture
def arguments(byte_model: str) -> dict[str, Any]:
    limits = {"max_prompt_tokens": 8, "max_new_tokens": 3, "length_limit": "truncate"}
    return {"model": byte_model, "prompts": ["ab", "c"], "scorer": sevens, **limits}


def play(env: gym.Env, actions: list[int]) -> list[tuple[float, bool, bool]]:
    env.reset(seed=0)
    return [env.step(action)[1:4] for action in actions]


@pytest.mark.parametrize("wrap", [lambda env: env, LMFeatures, lambda env: TopKActions(env, 50)])
def test_a_scored_cut_is_an_end(arguments: dict[str, Any], wrap: Any) -> None:
    steps = play(ScoredCutsEnd(wrap(TextGenEnv(**arguments))), [40, 41, 42])
    assert steps == [(0.0, False, False), (0.0, False, False), (7.0, True, False)]


@pytest.mark.filterwarnings("ignore:.*cut")
@pytest.mark.parametrize("outside", [True, False])
def test_a_limit_outside_stays_a_cut(arguments: dict[str, Any], outside: bool) -> None:
    env = TextGenEnv(**arguments)
    env = TimeLimit(ScoredCutsEnd(env), 2) if outside else ScoredCutsEnd(TimeLimit(env, 2))
    assert play(env, [40, 41]) == [(0.0, False, False), (0.0, False, True)]


def test_both_limits_at_once_are_a_scored_cut(arguments: dict[str, Any]) -> None:
    assert play(ScoredCutsEnd(TimeLimit(TextGenEnv(**arguments), 3)), [40, 41, 42])[-1] == (7.0, True, False)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_slots_end_by_themselves_in_every_mode(arguments: dict[str, Any], mode: str) -> None:
    env = VectorScoredCutsEnd(TextGenVectorEnv(num_envs=2, autoreset_mode=gym.vector.AutoresetMode(mode), **arguments))
    env.reset(seed=0)
    ends = []
    for actions in ([40, EOS], [41, 41], [42, 42], [43, 43]):
        if mode == "Disabled" and ends:
            actions = [NOOP if ended else action for ended, action in zip(ends[-1], actions, strict=True)]
        _, _, terminated, truncated, _ = env.step(np.array(actions))
        assert not truncated.any()
        ends.append(terminated.tolist())
    assert (
        ends
        == {
            "NextStep": [[False, True], [False, False], [True, False], [False, False]],  # one step each for the reset
            "SameStep": [[False, True], [False, False], [True, False], [False, True]],
            "Disabled": [[False, True], [False, True], [True, True], [True, True]],  # which keeps its flags
        }[mode]
    )


@pytest.mark.filterwarnings("ignore:.*cut")
def test_sb3_adds_no_value_to_a_score(arguments: dict[str, Any]) -> None:
    """SB3's on-policy rollout adds γ·V(terminal observation) where it reads `TimeLimit.truncated`."""
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")

    def cuts(env: gym.Env) -> list[bool]:
        venv = vec_env.DummyVecEnv([lambda: env])
        venv.reset()
        return [venv.step(np.array([40]))[3][0]["TimeLimit.truncated"] for _ in range(3)]

    assert cuts(LMFeatures(ScoredCutsEnd(TextGenEnv(**arguments)))) == [False, False, False]
    assert cuts(TimeLimit(LMFeatures(ScoredCutsEnd(TextGenEnv(**arguments))), 2)) == [False, True, False]


def test_features_see_the_same_ends(arguments: dict[str, Any]) -> None:
    env = VectorLMFeatures(VectorScoredCutsEnd(TextGenVectorEnv(num_envs=2, **arguments)))
    env.reset(seed=0)
    flags = [env.step(np.array([40, 41]))[2:4] for _ in range(3)]
    assert [(terminated.all(), truncated.any()) for terminated, truncated in flags] == [(0, 0), (0, 0), (1, 0)]


def test_a_made_environment_can_be_made_again(arguments: dict[str, Any]) -> None:
    env = ScoredCutsEnd(gym.make("textgen/TextGen-v0", **{**arguments, "scorer": "distinct"}))
    assert isinstance(gym.make(env.spec), ScoredCutsEnd)
