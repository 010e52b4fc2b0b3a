"""Every registered task keeps the contract, single and vector; and real prompt sets fit the tasks they are for."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv

import textgen_env
from textgen_env import assets
from textgen_env.testing import EnvContract, VectorEnvContract

OWN: dict[str, Any] = {
    "prompts": ["Once upon a time", {"prompt": "The soup was", "references": ["hot"]}],
    "scorer": {"sum": {"length": {"name": "length", "target": 5}, "variety": [0.1, {"name": "distinct", "n": 1}]}},
    "kl_coef": 0.1,
}
"""What `textgen/TextGen-v0` is given; the other tasks need nothing."""


class TestTask(EnvContract):
    @pytest.fixture(autouse=True, params=sorted(textgen_env.TASKS))
    def _choose_task(self, request: pytest.FixtureRequest, byte_model: str) -> None:
        self.task = request.param
        self.own = {**OWN, "model": byte_model} if self.task == "textgen/TextGen-v0" else {}

    def make_env(self) -> gym.Env:
        return gym.make(self.task, max_new_tokens=8, **self.own)


class TestVectorTask(VectorEnvContract):
    @pytest.fixture(autouse=True, params=sorted(textgen_env.TASKS))
    def _choose_task(self, request: pytest.FixtureRequest, byte_model: str) -> None:
        self.task = request.param
        self.own = {**OWN, "model": byte_model} if self.task == "textgen/TextGen-v0" else {}

    def make_vector_env(self) -> VectorEnv:
        return gym.make_vec(self.task, num_envs=3, max_new_tokens=6, **self.own)


class TestVectorModes(VectorEnvContract):
    @pytest.fixture(autouse=True, params=list(AutoresetMode))
    def _choose_mode(self, request: pytest.FixtureRequest, byte_model: str) -> None:
        # one token in seven is a stop string, so that slots end at different times
        own = {**OWN, "model": byte_model, "stop_strings": list("abcdefghijklmnopqrstuvwxyz0123456789")}
        self.arguments = {**own, "autoreset_mode": request.param}

    def make_vector_env(self) -> VectorEnv:
        return gym.make_vec("textgen/TextGen-v0", num_envs=3, max_new_tokens=6, **self.arguments)


def test_packaged_tasks_offer_references_where_their_scorer_needs_them() -> None:
    for task in ("Summarize", "Translate", "Describe"):
        env: Any = gym.make(f"textgen/{task}-v0")
        assert all(prompt.references for prompt in env.unwrapped.prompts), task
        counts = {len(prompt.references) for prompt in env.unwrapped.prompts}
        assert max(counts) > 1 if task == "Describe" else counts, task


def fetched(name: str) -> str:
    if not assets.PROMPT_SETS[name].path.exists():
        pytest.skip(f"needs: python -m textgen_env.assets fetch {name}")
    return name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "prompts", "arguments"),
    [
        ("Translate", "bible-en-es", {}),  # cuts two prompts of five
        ("Translate", "bible-en-es", {"max_prompt_tokens": 160}),  # cuts none
        ("Summarize", "xsum", {"max_prompt_tokens": 512}),
        ("Sentiment", "reviews-food", {}),
        ("Sentiment", "imdb-reviews", {"max_prompt_tokens": 64}),
    ],
)
@pytest.mark.filterwarnings("ignore:a prompt of .* tokens was cut")
def test_fetched_prompt_sets(task: str, prompts: str, arguments: dict[str, Any]) -> None:
    env: Any = gym.make(f"textgen/{task}-v0", prompts=fetched(prompts), max_new_tokens=4, **arguments)
    rng = np.random.default_rng(0)
    for seed in range(3):
        observation, info = env.reset(seed=seed)
        assert observation in env.observation_space
        assert info["prompt"] in {prompt.text for prompt in env.unwrapped.prompts}
        ended = False
        while not ended:
            observation, reward, ended, _, info = env.step(rng.integers(100, env.action_space.n))
            assert observation in env.observation_space
        assert info["score"] == reward
        assert 0 <= reward <= 1
    env.close()
