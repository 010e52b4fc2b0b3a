"""The contract suites notice what they are there to notice: environments and scorers, each with one promise broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from textgen_env import TextGenEnv
from textgen_env.testing import EnvContract, ScorerContract


class Broken(TextGenEnv):
    """An environment whose observations, rewards, flags or infos come out of `spoil(self, …)`."""

    spoil: Any = None

    def step(self, action: Any) -> Any:
        return self.spoil(self, *super().step(action))  # a static method


SPOILERS = {
    "test_observations_and_types": [
        lambda _, obs, reward, *rest: (obs, np.float32(reward), *rest),
        lambda _, obs, reward, ended, *rest: (obs, reward, np.bool_(ended), *rest),
        lambda _, obs, reward, ended, cut, info: (obs, reward, ended, ended, info),
        lambda _, obs, *rest: ({**obs, "input_ids": obs["input_ids"] - 1}, *rest),  # padding is −1
    ],
    "test_masks_follow_the_prefix": [
        lambda _, obs, *rest: ({**obs, "response_mask": obs["attention_mask"]}, *rest),
        lambda _, obs, *rest: ({**obs, "attention_mask": np.ones_like(obs["attention_mask"])}, *rest),
        lambda _, obs, *rest: ({**obs, "input_ids": np.roll(obs["input_ids"], 1)}, *rest),
    ],
    "test_reward_parts_add_up": [
        lambda _, obs, reward, *rest: (obs, reward + 0.25, *rest),
    ],
    "test_infos_are_small_json": [
        lambda _, *rest: (*rest[:-1], {**rest[-1], "logits": [0.0] * 259}),
        lambda _, *rest: (*rest[:-1], {**rest[-1], "ids": np.zeros(3)}),
        lambda _, *rest: (*rest[:-1], {**rest[-1], "response_length": 1}),
        lambda _, *rest: (*rest[:-1], {key: value for key, value in rest[-1].items() if key != "text"}),
    ],
    "test_same_seed_same_episode": [
        lambda env, obs, reward, *rest: (obs, reward + id(env) % 1009, *rest),
    ],
}


def spoilt(byte_model: str, spoil: Any) -> EnvContract:
    """The suite, applied to an environment that `spoil` spoils."""

    class Contract(EnvContract):
        def make_env(self) -> gym.Env:
            kind = type("Kind", (Broken,), {"spoil": staticmethod(spoil)})
            return kind(model=byte_model, prompts=["one", "two"], scorer=len_scorer, max_new_tokens=4)

    return Contract()


@pytest.mark.parametrize(("promise", "spoil"), [(name, one) for name, several in SPOILERS.items() for one in several])
def test_broken_environment(byte_model: str, promise: str, spoil: Any) -> None:
    contract = spoilt(byte_model, spoil)
    with pytest.raises((AssertionError, TypeError)):
        getattr(contract, promise)(contract.make_env())


def test_environment_without_an_end(byte_model: str) -> None:
    contract = spoilt(byte_model, lambda _, obs, reward, *rest: (obs, reward, False, False, rest[-1]))
    with pytest.raises(AssertionError, match="no end within max_new_tokens"):
        contract.test_observations_and_types(contract.make_env())


def len_scorer(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


class Counting:
    """Says something else each time."""

    calls = 0

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        self.calls += 1
        return [float(self.calls)] * len(completions)


class FalseParts:
    part_names = ("a", "b")

    def parts(self, completions: list[str], **_: Any) -> dict[str, list[float]]:
        return {"a": [1.0] * len(completions)}

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)


def relative(completions: list[str], **_: Any) -> list[float]:
    """Depends on the company a text is in."""
    return [len(text) / max(map(len, completions), default=1) if text else 0.0 for text in completions]


def by_place(completions: list[str], **_: Any) -> list[float]:
    return [float(place) for place, _ in enumerate(completions)]


def no_empty_text(completions: list[str], **_: Any) -> list[float]:
    return [1 / len(text) for text in completions]


def meddler(completions: list[str], *, references: list[list[str]], **_: Any) -> list[float]:
    references[0].clear()
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("promise", "make_scorer"),
    [
        ("test_empty_text_alone", lambda: no_empty_text),
        ("test_batch_is_one_by_one", lambda: relative),
        ("test_order_of_the_batch_does_not_matter", lambda: by_place),
        ("test_asked_again_it_says_the_same", Counting),
        ("test_leaves_its_input_alone", lambda: meddler),
        ("test_parts_are_those_announced_and_add_up", FalseParts),
    ],
)
def test_broken_scorer(promise: str, make_scorer: Any) -> None:
    contract = type("Contract", (ScorerContract,), {"make_scorer": lambda _: make_scorer()})()
    with pytest.raises((AssertionError, RuntimeError)):
        getattr(contract, promise)()


ELSEWHERE = """
import pytest

pytest.register_assert_rewrite("textgen_env.testing")

import gymnasium as gym

import textgen_env
from textgen_env.testing import EnvContract, ScorerContract, VectorEnvContract

def brief(completions, **columns):
    return [1 / (1 + len(text)) for text in completions]

ARGUMENTS = dict(model={model!r}, prompts=["one", "two"], scorer=brief, max_new_tokens=3)

class TestEnv(EnvContract):
    def make_env(self):
        return gym.make("textgen/TextGen-v0", **ARGUMENTS)

class TestVectorEnv(VectorEnvContract):
    def make_vector_env(self):
        return gym.make_vec("textgen/TextGen-v0", num_envs=2, **ARGUMENTS)

class TestGood(ScorerContract):
    def make_scorer(self):
        return brief

class TestBad(ScorerContract):
    def make_scorer(self):
        return lambda completions, **_: [float(place) for place, _ in enumerate(completions)]
"""


def test_suites_are_there_for_anybody(byte_model: str, tmp_path: Path) -> None:
    """In a folder that knows nothing of this one; what fails are the promises that a scorer by place breaks."""
    (tmp_path / "test_mine.py").write_text(ELSEWHERE.replace("{model!r}", repr(byte_model)))
    path = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "test_mine.py"]
    run = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    failed = {line.split("::")[-1].split(" ")[0] for line in run.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == {"test_batch_is_one_by_one", "test_order_of_the_batch_does_not_matter"}, run.stdout
    assert all("::TestBad::" in line for line in run.stdout.splitlines() if line.startswith("FAILED"))
    suites = {"EnvContract": 7, "VectorEnvContract": 7, "ScorerContract": 10}
    assert f"2 failed, {sum(suites.values()) + 8} passed" in run.stdout, run.stdout
    assert "assert [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] == approx(" in run.stdout, "the values that differ are shown"
