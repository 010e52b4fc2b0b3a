"""Observations as vectors: what the reference model makes of the prefix. Actions are `top_k.py`'s affair."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray


class LMFeatures(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """Observe the last hidden state of the reference model, and how much of the budget is left.

    ## Observation Space
    `Box` float32 (d + 1,): the d numbers from which the reference model would read its next token, then the share of
    `max_new_tokens` that is left, from 1 to 0. The state is Markov as far as the model itself remembers the prefix.

    A step costs one decode step of the reference; a KL penalty or `TopKActions` shares it.

    Args:
        env: an environment of this package, with any wrappers that leave its observations alone.
    """

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = feature_space(env)

    def observation(self, observation: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """(L,) tokens to (d + 1,) features."""
        batch = {key: value[None] for key, value in observation.items()}
        return features(self.env, batch, np.zeros(1, dtype=np.int64))[0]


class VectorLMFeatures(VectorWrapper):
    """`LMFeatures` of every slot, in any autoreset mode; `final_obs` is turned into features as well.

    Args:
        env: a batched environment of this package.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.single_observation_space = feature_space(env)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the wrapped environment."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._features(observations), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See the wrapped environment."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:  # before the new prompts, while the cache still holds the old prefixes
            rows = np.flatnonzero(infos["_final_obs"])
            finals = [infos["final_obs"][row] for row in rows]
            stacked = {key: np.stack([final[key] for final in finals]) for key in finals[0]}
            infos["final_obs"] = np.full(self.num_envs, None, dtype=object)
            for row, vector in zip(rows, features(self.env, stacked, rows), strict=True):
                infos["final_obs"][row] = vector
        return self._features(observations), rewards, terminated, truncated, infos

    def _features(self, observations: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        return features(self.env, observations, np.arange(self.num_envs))


def feature_space(env: Any) -> spaces.Box:
    """The observation space of one slot.

    Raises:
        TypeError: the environment is not one of this package, or its observations were changed already.
    """
    space = getattr(env, "single_observation_space", env.observation_space)
    if not hasattr(env.unwrapped, "engine") or not isinstance(space, spaces.Dict) or "input_ids" not in space.spaces:
        raise TypeError(f"env={env} must be a textgen environment that still observes tokens, not {space}")
    width = env.unwrapped.reference.config.get_text_config().hidden_size + 1
    return spaces.Box(-np.inf, np.inf, (width,), np.float32)


def features(env: Any, observations: dict[str, NDArray[Any]], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Features (m, d + 1) of m token observations that belong to the given slots."""
    engine = env.unwrapped.engine
    lengths = observations["attention_mask"].sum(axis=1, dtype=np.int64)
    ids = observations["input_ids"][:, : lengths.max()]
    hidden = engine.kl.cache.next_logits_and_hidden(ids, lengths, rows)[1].float().cpu().numpy()
    left = 1 - observations["response_mask"].sum(axis=1, dtype=np.int64) / engine.settings.max_new_tokens
    return np.concatenate([hidden, left[:, None]], axis=1, dtype=np.float32)
