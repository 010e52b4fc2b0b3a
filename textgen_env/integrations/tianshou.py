"""Tianshou: the vector environment as a `BaseVectorEnv`, masked policies, and the KL in the collector's rewards.

Buffers, algorithms and trainers are Tianshou's own. Networks made of the language model are in `networks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import nn

from textgen_env.kl import estimate_kl
from textgen_env.vector_env import NOOP
from textgen_env.wrappers import VectorScoredCutsEnd, env_attribute

try:
    from tianshou.data.collector import StepHook
    from tianshou.env import BaseVectorEnv
    from tianshou.utils.net.common import ActionReprNet
except ImportError as error:
    raise ImportError(
        "textgen_env.integrations.tianshou needs Tianshou: pip install 'textgen_env[tianshou]'"
    ) from error


class TianshouVectorEnv(BaseVectorEnv):
    """The vector environment, with any wrappers, where Tianshou expects a `BaseVectorEnv`: one forward for all slots.

    Observations are those of the environment, or, with `masks`, Tianshou's form for masked actions: `obs.obs` and
    `obs.mask`. `info` holds numbers alone: `env_id`, `ref_logprob` (0 without a reference) and `score` (0 until the
    end). The KL is left to `KLPenaltyHook`. A response that the length limit cut and scored is terminated here, so that
    Tianshou adds no value to its score.

    Args:
        env: made with autoreset_mode="Disabled", since Tianshou resets slots by itself.
        masks: put the allowed actions, bool (actions,), into the observation.

    Raises:
        ValueError: the environment resets by itself.
    """

    def __init__(self, env: VectorEnv, *, masks: bool = False) -> None:
        core: Any = env.unwrapped
        mode = core.autoreset_mode
        if mode is not AutoresetMode.DISABLED:
            raise ValueError(f'autoreset_mode={mode.value!r} must be "Disabled": Tianshou resets slots by itself')
        self.env: VectorEnv = VectorScoredCutsEnd(env)
        self.core, self.masks = core, masks
        core.delegate_kl(report_ref_logprob=core.kl_coef > 0)
        self.env_num, self.is_async, self.is_closed = env.num_envs, False, False
        self._seeds: Sequence[int | None] | None = None

    def get_env_attr(self, key: str, id: Any = None) -> list[Any]:
        """An attribute of one slot's environment, once per slot."""
        single = {"action_space": "single_action_space", "observation_space": "single_observation_space"}
        return [getattr(self.env, single.get(key, key))] * len(self._rows(id))

    def set_env_attr(self, key: str, value: Any, id: Any = None) -> None:
        """Set an attribute of the environment, for all slots at once."""
        setattr(self.core, key, value)

    def seed(self, seed: int | list[int] | None = None) -> list[Any]:
        """Seed the slots at their next reset: slot i gets seed + i."""
        self._seeds = [seed + row for row in range(self.env_num)] if isinstance(seed, int) else seed
        return [None if self._seeds is None else [self._seeds[row]] for row in range(self.env_num)]

    def reset(self, env_id: Any = None, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Begin episodes in the given slots; m observations and infos."""
        rows = self._rows(env_id)
        mask = np.isin(np.arange(self.env_num), rows)
        seed = kwargs.pop("seed", self._seeds)
        self._seeds = None
        observations, _ = self.env.reset(seed=seed, options={**kwargs.pop("options", {}), "reset_mask": mask})
        return self._observations(observations, rows), np.array([{"env_id": int(row)} for row in rows])

    def step(self, action: Any, id: Any = None) -> tuple[np.ndarray, ...]:
        """Append a token in each of the given m slots; the others wait as they are."""
        rows = self._rows(id)
        actions = np.full(self.env_num, NOOP)
        actions[rows] = np.asarray(action)
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        numbers = {key: infos.get(key, np.zeros(self.env_num)) for key in ("ref_logprob", "score")}
        info = [{"env_id": int(row), **{key: float(numbers[key][row]) for key in numbers}} for row in rows]
        return self._observations(observations, rows), rewards[rows], terminated[rows], truncated[rows], np.array(info)

    def render(self, **kwargs: Any) -> list[Any]:
        """One frame per slot."""
        return list(self.env.render() or ())

    def close(self) -> None:
        """Release the caches of the models."""
        self.env.close()
        self.is_closed = True

    def _rows(self, id: Any) -> np.ndarray:
        return np.arange(self.env_num) if id is None else np.atleast_1d(id)

    def _observations(self, observations: Any, rows: np.ndarray) -> np.ndarray:
        """An array (m, …), or m dictionaries, which Tianshou turns into a `Batch`."""
        if not self.masks and not isinstance(observations, dict):
            return observations[rows]
        whole = {"obs": observations, "mask": self.action_masks()} if self.masks else observations
        return np.array([{key: _row(value, row) for key, value in whole.items()} for row in rows])

    def action_masks(self, slots: Sequence[int] | None = None) -> np.ndarray:
        """bool (n, actions), True where an action is allowed; of some slots if given."""
        return env_attribute(self.env, "action_masks")(slots)


def _row(value: Any, row: int) -> Any:
    return {key: part[row] for key, part in value.items()} if isinstance(value, dict) else value[row]


class KLPenaltyHook(StepHook):
    """Subtract β·KL(π‖π_ref) from the rewards before they reach the buffer: `Collector(..., on_step_hook=…)`.

    Args:
        env: the vector environment, whose `kl_coef` (read at every step) and `kl_estimator` are used.

    Raises:
        ValueError: the estimator is "full", which one action's log-probability does not give.
    """

    def __init__(self, env: TianshouVectorEnv) -> None:
        self.core = env.core
        if self.core.kl_estimator == "full":
            raise ValueError("kl_estimator='full' needs whole distributions; choose k1, k2 or k3 with Tianshou")

    def __call__(self, action_batch: Any, rollout_batch: Any) -> None:
        if self.core.kl_coef > 0:
            actions = torch.as_tensor(action_batch.act)
            log_prob = action_batch.dist.log_prob(actions).detach().cpu().double().numpy()
            kl = estimate_kl(self.core.kl_estimator, log_prob, np.asarray(rollout_batch.info.ref_logprob))
            rollout_batch.rew = rollout_batch.rew - self.core.kl_coef * kl


class PolicyNetwork(ActionReprNet):
    """Any torch network from observations to logits, as an actor of Tianshou; masked where the observation says so.

    Args:
        network: (m, …) float32 to logits (m, actions), such as `networks.LMHead`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[torch.Tensor, Any]:
        """Logits (m, actions), −inf where an action is masked, and the state as it came."""
        logits = self.network(_features(obs))
        if hasattr(obs, "mask"):
            logits = logits.masked_fill(~torch.as_tensor(obs.mask, dtype=torch.bool, device=logits.device), -torch.inf)
        return logits, state


class ValueNetwork(nn.Module):
    """Any torch network from observations to (m, 1), as a critic of Tianshou."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, obs: Any, **_: Any) -> torch.Tensor:
        """Values (m, 1)."""
        return self.network(_features(obs))


def _features(obs: Any) -> torch.Tensor:
    return torch.as_tensor(obs.obs if hasattr(obs, "mask") else obs, dtype=torch.float32)
