"""What the tests of several libraries share: a scorer that is easily checked, and environments of the task `task`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

import textgen_env  # noqa: F401  registers the tasks

EOS = 2


def letters(completions: list[str], **_: Any) -> list[float]:
    """How long each text is."""
    return [float(len(text)) for text in completions]


def single(task: dict[str, Any]) -> gym.Env:
    return gym.make("textgen/TextGen-v0", **task)


def batched(task: dict[str, Any]) -> gym.vector.VectorEnv:
    return gym.make_vec("textgen/TextGen-v0", num_envs=3, autoreset_mode="Disabled", **task)
