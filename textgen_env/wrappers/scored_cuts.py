"""Responses that the length limit cut *and* scored, handed to other libraries as what they are: ends.

With `length_limit="truncate"` an episode is truncated with its score paid. Libraries add γ·V(last state) wherever they
read `truncated`, which counts the future of a response that has none: values then grow without bound. A cut without a
score (a `TimeLimit` outside) is left alone, for it should be bootstrapped.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray

from textgen_env.wrappers.attributes import PassesMasks


class ScoredCutsEnd(PassesMasks, gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Report a cut whose score is paid as terminated, for `DummyVecEnv`, CleanRL's loops and their like.

    Args:
        env: the single environment, with any wrappers.
    """

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See the wrapped environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        scored = truncated and "score" in info
        return observation, reward, terminated or scored, truncated and not scored, info


class VectorScoredCutsEnd(PassesMasks, VectorWrapper):
    """The same for the vector environment, in each of its autoreset modes.

    Args:
        env: the vector environment, with any wrappers.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self._scored = np.zeros(env.num_envs, dtype=np.bool_)

    def step(self, actions: Any) -> tuple[Any, Any, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """See the wrapped environment."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        # a slot that waits for its reset keeps its flags, but not its info
        self._scored = truncated & (self._scored | scored_slots(infos, self.num_envs))
        return observations, rewards, terminated | self._scored, truncated & ~self._scored, infos


def scored_slots(infos: dict[str, Any], slots: int) -> NDArray[np.bool_]:
    """Which slots were paid a score in the step that returned these infos, bool (n,)."""
    none = np.zeros(slots, dtype=np.bool_)
    return np.asarray(infos.get("_score", none)) | np.asarray(infos.get("final_info", {}).get("_score", none))
