"""Masks and other attributes through wrappers: ours, Gymnasium's and anybody's, in whatever order."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from textgen_env import TextGenEnv, TextGenVectorEnv
from textgen_env.wrappers import (
    LMFeatures,
    ScoredCutsEnd,
    TopKActions,
    UniformInfo,
    VectorLMFeatures,
    VectorScoredCutsEnd,
    VectorTopKActions,
    env_attribute,
)
from textgen_env.wrappers.attributes import may_mask

VOCAB, EOS, BANNED = 259, 2, [5, 6]


@pytest.fixture
def arguments(byte_model: str) -> dict[str, Any]:
    return {
        "model": byte_model,
        "prompts": ["the prompt"],
        "scorer": lambda completions, **_: [0.0] * len(completions),
        "max_new_tokens": 6,
        "min_new_tokens": 2,
        "forbidden_tokens": BANNED,
    }


def allowed(*, eos: bool) -> list[bool]:
    """The masks by hand: all tokens but the forbidden ones, and no EOS before the second token is written."""
    return [token not in BANNED and (eos or token != EOS) for token in range(VOCAB)]


SINGLE = {
    "none": lambda env: env,
    "LMFeatures": LMFeatures,
    "ScoredCutsEnd": ScoredCutsEnd,
    "UniformInfo": UniformInfo,
    "all": lambda env: UniformInfo(ScoredCutsEnd(LMFeatures(env))),
}
VECTOR = {
    "none": lambda env: env,
    "VectorLMFeatures": VectorLMFeatures,
    "VectorScoredCutsEnd": VectorScoredCutsEnd,
    "all": lambda env: VectorScoredCutsEnd(VectorLMFeatures(RecordEpisodeStatistics(env))),
}


@pytest.mark.parametrize("name", SINGLE)
def test_single_environment(arguments: dict[str, Any], name: str) -> None:
    env = SINGLE[name](TextGenEnv(**arguments))
    env.reset(seed=0)
    assert env.action_masks().tolist() == allowed(eos=False)
    for _ in range(2):
        env.step(50)
    assert env.action_masks().tolist() == allowed(eos=True)
    assert env.action_masks([0]).tolist() == env.action_masks(slots=np.array([0])).tolist() == [allowed(eos=True)]
    with pytest.raises(ValueError, match=r"slots=\[1\] must be different numbers from 0 to 0"):
        env.action_masks([1])


@pytest.mark.parametrize("name", VECTOR)
def test_vector_environment(arguments: dict[str, Any], name: str) -> None:
    env = VECTOR[name](TextGenVectorEnv(3, autoreset_mode="Disabled", **arguments))
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.array([50, 51, 52]))
    env.reset(options={"reset_mask": np.array([False, True, False]), "prompt": 0})
    early, late = allowed(eos=False), allowed(eos=True)
    assert env.action_masks().tolist() == [late, early, late]
    assert env.action_masks(slots=[1, 0]).tolist() == [early, late]
    assert env.action_masks([]).shape == (0, VOCAB)
    for bad in ([3], [-1], [0, 0], 1, [[0]]):
        with pytest.raises(ValueError, match="must be different numbers from 0 to 2, in a list"):
            env.action_masks(bad)
    for bad in ([True, False, True], [0.0], ["0"]):
        with pytest.raises(TypeError, match="slots=.* must be integers"):
            env.action_masks(bad)


def test_a_nucleus_of_some_slots_is_that_of_the_slots(arguments: dict[str, Any]) -> None:
    env = TextGenVectorEnv(3, **arguments | {"prompts": ["one", "another", "two"]}, reference_top_p=0.5)
    env.reset(options={"prompt": [0, 1, 2]})
    whole = env.action_masks()
    assert len({tuple(row) for row in whole.tolist()}) == 3
    assert env.action_masks([2, 0]).tolist() == whole[[2, 0]].tolist()
    assert env.action_masks([]).shape == (0, VOCAB)


@pytest.mark.parametrize("outside", [False, True])
def test_ranks_of_some_slots(arguments: dict[str, Any], outside: bool) -> None:
    """Three tokens for five ranks; EOS is a fourth after the minimum; a slot that has ended shows every rank."""
    arguments["forbidden_tokens"] = [token for token in range(VOCAB) if token not in (50, 60, 70, EOS)]
    single = TopKActions(TextGenEnv(**arguments), 5)
    env: Any = VectorTopKActions(TextGenVectorEnv(3, autoreset_mode="Disabled", **arguments), 5)
    if outside:
        single, env = UniformInfo(LMFeatures(single)), VectorLMFeatures(VectorScoredCutsEnd(env))
    three, four = [True] * 3 + [False] * 2, [True] * 4 + [False]
    single.reset(seed=0)
    assert single.action_masks().tolist() == three
    assert single.action_masks([0]).tolist() == [three]
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.array([0, 0, 0]))
    env.reset(options={"reset_mask": np.array([False, True, False]), "prompt": 0})
    assert env.action_masks([2, 1]).tolist() == [four, three]
    env.unwrapped.abandon(np.array([2]))
    assert env.action_masks().tolist() == [four, three, [True] * 5]
    assert env.action_masks([]).shape == (0, 5)
    with pytest.raises(ValueError, match=r"slots=\[3\]"):
        env.action_masks([3])


class NoSpaces(gym.vector.VectorWrapper):
    """Anybody's wrapper that masks further tokens."""

    def action_masks(self, slots: Any = None) -> Any:
        masks = env_attribute(self.env, "action_masks")(slots)
        masks[:, 35] = False
        return masks


def test_an_attribute_is_that_of_the_outermost_layer_that_has_it(arguments: dict[str, Any]) -> None:
    core = TextGenVectorEnv(2, **arguments)
    env = VectorScoredCutsEnd(NoSpaces(RecordEpisodeStatistics(core)))
    assert env_attribute(env, "kl_coef") == core.kl_coef
    assert env_attribute(env, "engine") is core.engine
    assert env_attribute(env, "env") is env.env
    env.reset(seed=0)
    assert not env.action_masks()[:, 35].any()
    assert core.action_masks()[:, 35].all()
    with pytest.raises(AttributeError, match="has no attribute 'nothing', and neither has anything that it wraps"):
        env_attribute(env, "nothing")


def test_masks_need_not_be_asked_for_where_there_are_none(arguments: dict[str, Any]) -> None:
    free = {**arguments, "min_new_tokens": 0, "forbidden_tokens": []}
    assert not may_mask(VectorScoredCutsEnd(RecordEpisodeStatistics(TextGenVectorEnv(2, **free))))
    assert may_mask(VectorScoredCutsEnd(TextGenVectorEnv(2, **arguments)))
    assert may_mask(VectorScoredCutsEnd(NoSpaces(TextGenVectorEnv(2, **free))))
    assert may_mask(VectorTopKActions(TextGenVectorEnv(2, **free), 3))
