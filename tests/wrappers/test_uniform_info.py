"""Every info has the same keys and types."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import pytest

import textgen_env  # noqa: F401
from textgen_env.wrappers import UniformInfo

EOS = 2


@pytest.fixture
def env(byte_model: str) -> gym.Env:
    scorer = {"name": "sum", "scorers": {"variety": "distinct", "short": {"name": "length", "maximum": 9}}}
    task = {"model": byte_model, "prompts": ["ab"], "scorer": scorer, "kl_coef": 0.1, "max_new_tokens": 4}
    return UniformInfo(gym.make("textgen/TextGen-v0", **task))


def types(info: dict[str, Any]) -> dict[str, Any]:
    return {name: types(value) if isinstance(value, dict) else type(value) for name, value in info.items()}


@pytest.mark.filterwarnings("ignore:.*policy is unknown")
def test_keys_and_types_never_change(env: gym.Env) -> None:
    infos = [env.reset(seed=0)[1]] + [env.step(action)[4] for action in (100, 101, EOS)]
    assert [types(info) for info in infos] == [types(infos[0])] * 4
    assert [info["response_length"] for info in infos] == [0, 1, 2, 3]
    assert [info["finish_reason"] for info in infos] == ["", "", "", "eos"]
    assert [math.isnan(info["score"]) for info in infos] == [True, True, True, False]
    assert [math.isnan(info["ref_logprob"]) for info in infos] == [True, False, False, False]
    assert list(infos[0]["reward_parts"]) == ["variety", "short", "kl"]
    assert infos[3]["text"]
    assert infos[3]["prompt"] == "ab"
