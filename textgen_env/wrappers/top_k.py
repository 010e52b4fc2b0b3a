"""A handful of actions instead of a vocabulary: the tokens that the reference model finds most likely.

Observations are `features.py`'s affair; the two wrappers go together in either order.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textgen_env.action_masks import check_slots
from textgen_env.engine import Engine
from textgen_env.lm.sampling import SamplingParams, warp_logits
from textgen_env.vector_env import NOOP


class TopKActions(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Choose among the k tokens that the reference model finds most likely.

    ## Action Space
    `Discrete(k)`: action i is the (i + 1)-th most likely of the tokens that the environment allows here. Where it
    allows fewer than k, the rest is masked (`action_masks()`, bool (k,)) and an error when chosen.

    ## KL
    The policy chooses among k tokens, so it is compared with the reference restricted to the same k, renormalised:
    `info["ref_logprob"]`, and the unbound penalty β·log π_ref, are of that distribution. A policy that imitates the
    ranking's own probabilities therefore has KL 0. The KL to the unrestricted reference is larger by −log of the mass
    of the k tokens, which no choice among them can change. `bind_policy` knows tokens, not ranks: with this wrapper,
    use a library's hook (`delegate_kl`) or the unbound penalty.

    A step costs one decode step of the reference; a KL penalty or `LMFeatures` shares it.

    Args:
        env: an environment of this package.
        k: how many actions, from 1 to the number of tokens.

    Raises:
        TypeError, ValueError: the environment is another, or k is out of range.
    """

    def __init__(self, env: gym.Env, k: int) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, k=k)
        gym.Wrapper.__init__(self, env)
        self.action_space = choice_space(env, k)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # type: ignore[override]
        """Append the token of a rank; see the wrapped environment."""
        engine: Engine = self.env.unwrapped.engine  # type: ignore[attr-defined]
        if not engine.episodes.playing[0]:
            return self.env.step(action)  # type: ignore[return-value]  # raises what it always raises
        k = int(self.action_space.n)  # type: ignore[attr-defined]
        token = rank(engine, np.zeros(1, dtype=np.int64), k).take(np.array([action]))[0]
        with narrowed(engine, k):
            return self.env.step(token)  # type: ignore[return-value]

    def action_masks(self, slots: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """bool (k,): the ranks that exist here; with `slots`, as `VectorTopKActions` gives them."""
        masks = rank_masks(self.env, int(self.action_space.n), slots)  # type: ignore[attr-defined]
        return masks[0] if slots is None else masks


class VectorTopKActions(VectorWrapper):
    """`TopKActions` in every slot, in any autoreset mode.

    Args:
        env: a batched environment of this package.
        k: how many actions.
    """

    def __init__(self, env: VectorEnv, k: int) -> None:
        super().__init__(env)
        self.k = k
        self.single_action_space = choice_space(env, k)
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Append the token of a rank to every slot that plays; other slots, and `NOOP`, get the action as it is."""
        engine: Engine = self.env.unwrapped.engine  # type: ignore[attr-defined]
        tokens = np.array(actions, dtype=np.int64)
        rows = np.flatnonzero(engine.episodes.playing & (tokens != NOOP))
        if len(rows):
            tokens[rows] = rank(engine, rows, self.k).take(tokens[rows])
        with narrowed(engine, self.k):
            return self.env.step(tokens)

    def action_masks(self, slots: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """bool (n, k): the ranks that exist in each slot; all of them in a slot that does not play.

        Args:
            slots: m different slots, whose masks (m, k) are wanted; None: all.
        """
        return rank_masks(self.env, self.k, slots)


class Choices(NamedTuple):
    """The ranked tokens of m slots.

    Attributes:
        tokens: int64 (m, k), most likely first.
        log_probs: float64 (m, k), log π_ref restricted to these k; −inf where the environment allows fewer.
    """

    tokens: NDArray[np.int64]
    log_probs: NDArray[np.float64]

    @property
    def masks(self) -> NDArray[np.bool_]:
        """bool (m, k): the ranks that exist."""
        return self.log_probs > -np.inf

    def take(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens (m,) of the chosen ranks (m,).

        Raises:
            ValueError: a rank is out of range, or masked.
        """
        k = self.tokens.shape[1]
        if ((actions < 0) | (actions >= k)).any():
            raise ValueError(f"action {actions[(actions < 0) | (actions >= k)][0]} is not in Discrete({k})")
        at = np.arange(len(actions)), actions
        if not self.masks[at].all():
            row = int(np.flatnonzero(~self.masks[at])[0])
            allowed = int(self.masks[row].sum())
            raise ValueError(f"action {actions[row]} is masked: only {allowed} tokens are allowed; see action_masks()")
        return self.tokens[at]


def narrowed(engine: Engine, k: int) -> AbstractContextManager[None]:
    """Meanwhile, no more than the k likeliest tokens of the reference are actions, and the KL is that among them."""
    return engine.kl.limited(min(k, engine.config.reference_top_k or k))


def rank(engine: Engine, rows: NDArray[np.int64], k: int) -> Choices:
    """The k most likely allowed tokens of the given slots under the reference, at the environment's temperature.

    Raises:
        ValueError: a policy is bound, which would be compared with the whole vocabulary.
    """
    if engine.kl.policy is not None:
        raise ValueError(
            "bind_policy gives logits of tokens, TopKActions takes ranks: use env.unwrapped.delegate_kl() and a hook "
            "such as KLPenaltyCallback, or the unbound penalty"
        )
    with engine.kl.limited(engine.config.reference_top_k):  # whoever asks, also within `narrowed`
        mask = torch.from_numpy(engine.action_masks(rows)) if engine.restricted else None
    logits = engine.kl.ref_logits(engine.episodes, rows)
    top = warp_logits(logits, SamplingParams(engine.config.temperature), mask=mask).topk(k, dim=-1)
    return Choices(top.indices.cpu().numpy(), top.values.double().log_softmax(dim=-1).cpu().numpy())


def rank_masks(env: Any, k: int, slots: Sequence[int] | NDArray[np.int64] | None) -> NDArray[np.bool_]:
    """bool (m, k): the ranks that exist in the given slots, or in all; all of them in a slot that does not play."""
    engine: Engine = env.unwrapped.engine
    rows = check_slots(slots, len(engine.episodes))
    masks = np.ones((len(rows), k), dtype=np.bool_)
    if (playing := engine.episodes.playing[rows]).any():
        masks[playing] = rank(engine, rows[playing], k).masks
    return masks


def choice_space(env: Any, k: int) -> spaces.Discrete:
    """The action space of one slot.

    Raises:
        TypeError: the environment is not one of this package.
        ValueError: k is out of range.
    """
    if not hasattr(env.unwrapped, "engine"):
        raise TypeError(f"env={env} must be a textgen environment")
    tokens = env.unwrapped.language_model.vocab_size
    if not 1 <= k <= tokens:
        raise ValueError(f"k={k} must be from 1 to the {tokens} tokens of the model")
    return spaces.Discrete(k)
