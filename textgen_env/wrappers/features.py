"""Observations as vectors: what the reference model makes of the prefix, and what there is to choose from.

Actions are `top_k.py`'s affair.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textgen_env.engine import Engine
from textgen_env.wrappers.attributes import PassesMasks
from textgen_env.wrappers.top_k import rank

LEAST_LOG_PROB = -20.0  # networks take no −inf


class LMFeatures(PassesMasks, gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """Observe the last hidden state of the reference model, and how much of the budget is left.

    ## Observation Space
    `Box` float32 (d + 1,): the d numbers from which the reference model would read its next token, then the share of
    `max_new_tokens` that is left, from 1 to 0. The state is Markov as far as the model itself remembers the prefix.

    With `candidates=k`, (d + 1)·k more, d + 1 for each action of `TopKActions(k)` in their order: log-probability of
    its token among the k (at least −20), and the token's output embedding, centred and scaled over the vocabulary. A
    network that must value the actions, as DQN's does, would else have to work out from the hidden state alone which
    tokens the ranks stand for. A masked rank has −20 and the embedding 0; all are 0 when the episode has ended.

    A step costs one decode step of the reference; a KL penalty or `TopKActions` shares it.

    Args:
        env: an environment of this package, with any wrappers that leave its observations alone.
        candidates: how many of the likeliest tokens are described; 0 for none.

    Raises:
        TypeError: the environment is another, or its observations were changed already.
        ValueError: `candidates` is out of range.
    """

    def __init__(self, env: gym.Env, candidates: int = 0) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, candidates=candidates)
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = feature_space(env, candidates)
        self.candidates = Candidates(env, candidates)

    def observation(self, observation: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """(L,) tokens to features."""
        batch, row = {key: value[None] for key, value in observation.items()}, np.zeros(1, dtype=np.int64)
        return np.concatenate([features(self.env, batch, row), self.candidates(row)], axis=1)[0]


class VectorLMFeatures(PassesMasks, VectorWrapper):
    """`LMFeatures` of every slot, in any autoreset mode; `final_obs` is turned into features as well.

    Args:
        env: a batched environment of this package.
        candidates: how many of the likeliest tokens are described; 0 for none.
    """

    def __init__(self, env: VectorEnv, candidates: int = 0) -> None:
        super().__init__(env)
        self.single_observation_space = feature_space(env, candidates)
        self.candidates = Candidates(env, candidates)
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
            nothing = np.zeros(self.single_observation_space.shape or (), dtype=np.float32)  # is left to choose from
            for row, vector in zip(rows, features(self.env, stacked, rows), strict=True):
                infos["final_obs"][row] = np.concatenate([vector, nothing[len(vector) :]])
        return self._features(observations), rewards, terminated, truncated, infos

    def _features(self, observations: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        rows = np.arange(self.num_envs)
        return np.concatenate([features(self.env, observations, rows), self.candidates(rows)], axis=1)


def feature_space(env: Any, candidates: int) -> spaces.Box:
    """The observation space of one slot.

    Raises:
        TypeError: the environment is not one of this package, or its observations were changed already.
        ValueError: `candidates` is out of range.
    """
    space = getattr(env, "single_observation_space", env.observation_space)
    if not hasattr(env.unwrapped, "engine") or not isinstance(space, spaces.Dict) or "input_ids" not in space.spaces:
        raise TypeError(f"env={env} must be a textgen environment that still observes tokens, not {space}")
    tokens = env.unwrapped.language_model.vocab_size
    if not 0 <= candidates <= tokens:
        raise ValueError(f"candidates={candidates} must be from 0 (none) to the {tokens} tokens of the model")
    width = env.unwrapped.reference.config.get_text_config().hidden_size + 1
    return spaces.Box(-np.inf, np.inf, (width * (1 + candidates),), np.float32)


def features(env: Any, observations: dict[str, NDArray[Any]], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Features (m, d + 1) of m token observations that belong to the given slots."""
    engine = env.unwrapped.engine
    lengths = observations["attention_mask"].sum(axis=1, dtype=np.int64)
    ids = observations["input_ids"][:, : lengths.max()]
    hidden = engine.kl.cache.next_logits_and_hidden(ids, lengths, rows)[1].float().cpu().numpy()
    left = 1 - observations["response_mask"].sum(axis=1, dtype=np.int64) / engine.config.max_new_tokens
    return np.concatenate([hidden, left[:, None]], axis=1, dtype=np.float32)


class Candidates:
    """Describes the k likeliest tokens of slots; see `LMFeatures`.

    Args:
        env: an environment of this package.
        k: how many; 0 describes none.
    """

    def __init__(self, env: Any, k: int) -> None:
        self.env, self.k = env, k

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(m, (d + 1)·k) of m slots."""
        if not self.k:
            return np.zeros((len(rows), 0), dtype=np.float32)
        engine: Engine = self.env.unwrapped.engine
        centre, scale = self._scaling
        described = np.zeros((len(rows), self.k, 1 + len(centre)), dtype=np.float32)
        if (playing := engine.episodes.playing[rows]).any():
            choices = rank(engine, rows[playing], self.k)
            embeddings = (self._embeddings()[torch.from_numpy(choices.tokens).to(centre.device)] - centre) / scale
            described[playing, :, 0] = np.maximum(choices.log_probs, LEAST_LOG_PROB)
            described[playing, :, 1:] = embeddings.cpu().numpy() * choices.masks[..., None]
        return described.reshape(len(rows), -1)

    def _embeddings(self) -> torch.Tensor:
        """(V, d): a row of the output head for each token."""
        model = self.env.unwrapped.reference.model
        return model.get_output_embeddings().weight.detach()[: self.env.unwrapped.reference.vocab_size]

    @cached_property
    def _scaling(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (d,) of the vocabulary's embeddings, and the one standard deviation around it."""
        embeddings = self._embeddings().float()
        centre = embeddings.mean(dim=0)
        return centre, (embeddings - centre).square().mean().sqrt()
