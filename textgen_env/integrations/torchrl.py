"""TorchRL: both environments as a TorchRL environment with categorical actions, masks, and the KL in the reward.

`make_env` puts it together from TorchRL's own `GymWrapper` and the parts below, which also go into a `TransformedEnv`
of one's own. Losses and collectors are TorchRL's; `networks.py` has policy networks made of the language model.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

from textgen_env.kl import estimate_kl
from textgen_env.wrappers import ScoredCutsEnd, VectorScoredCutsEnd, env_attribute

try:
    from tensordict import TensorDictBase
    from tensordict.nn import TensorDictModule
    from torchrl.data import Binary, Composite, TensorSpec, Unbounded
    from torchrl.envs import ActionMask, Compose, EnvBase, GymWrapper, Transform, TransformedEnv
    from torchrl.envs.gym_like import BaseInfoDictReader
    from torchrl.modules import MaskedCategorical, ProbabilisticActor
except ImportError as error:
    raise ImportError("textgen_env.integrations.torchrl needs TorchRL: pip install 'textgen_env[torchrl]'") from error


def make_env(env: gym.Env | gym.vector.VectorEnv, *, log_prob_key: str = "action_log_prob") -> EnvBase:
    """An environment of this package, with any wrappers, as a TorchRL environment.

    Its tensordicts have the observation (`input_ids`, `attention_mask`, `response_mask`; `observation` after
    `LMFeatures`), `action_mask` bool (…, actions), `ref_logprob` (…, 1) when a reference is on, `score` (…, 1), 0 until
    an episode is done, and, with kl_coef > 0, `kl` (…, 1): the reward holds −kl_coef·kl. A response that the length
    limit cut and scored is terminated here, so that no value is added to its score.

    Args:
        env: the single environment, or the vector environment with autoreset_mode="Disabled", as TorchRL prefers it.
        log_prob_key: where the policy writes log π(a|s); it must when kl_coef > 0 (`return_log_prob=True`).

    Raises:
        ValueError: the vector environment resets by itself.
    """
    mode = getattr(env.unwrapped, "autoreset_mode", AutoresetMode.DISABLED)
    if mode is not AutoresetMode.DISABLED:
        raise ValueError(f'autoreset_mode={mode.value!r} must be "Disabled": TorchRL resets finished slots by itself')
    core: Any = env.unwrapped
    if isinstance(env, gym.vector.VectorEnv):
        env = VectorScoredCutsEnd(env)
        env.autoreset_mode = mode  # type: ignore[attr-defined]  # TorchRL asks the outermost wrapper
    else:
        env = ScoredCutsEnd(env)
    penalised = core.kl_coef > 0
    core.delegate_kl(report_ref_logprob=penalised)
    keys = ["score"] + (["ref_logprob"] if penalised else [])
    base = GymWrapper(env, categorical_action_encoding=True)
    base.set_info_dict_reader(InfoReader(keys, base.batch_size))
    transforms = [TokenMask(), ActionMask()] + ([KLPenalty(core, log_prob_key)] if penalised else [])
    return TransformedEnv(base, Compose(*transforms))


def masked_actor(network: nn.Module, in_keys: list[str]) -> ProbabilisticActor:
    """A policy over the allowed tokens that writes "action" and "action_log_prob".

    Args:
        network: from the entries named in `in_keys` to logits (…, actions), such as those of `networks.py`.
        in_keys: ["observation"] after `LMFeatures`, ["input_ids", "attention_mask"] for tokens.
    """
    return ProbabilisticActor(
        TensorDictModule(network, in_keys, ["logits"]),
        in_keys={"logits": "logits", "mask": "action_mask"},
        distribution_class=MaskedCategorical,
        return_log_prob=True,
    )


class InfoReader(BaseInfoDictReader):
    """Copy numbers from `info` into the tensordict, as (…, 1); 0 where `info` has none.

    Args:
        keys: of `info`.
        batch_size: that of the environment.
    """

    def __init__(self, keys: list[str], batch_size: torch.Size) -> None:
        self.keys = keys
        self._shape = torch.Size((*batch_size, 1))

    def __call__(self, info_dict: dict[str, Any], tensordict: TensorDictBase) -> TensorDictBase:
        for key in self.keys:
            values = torch.as_tensor(info_dict.get(key, 0.0), dtype=torch.float32)
            tensordict.set(key, values.reshape(-1, 1).expand(self._shape) if self._shape[:-1] else values.reshape(1))
        return tensordict

    @property
    def info_spec(self) -> Any:
        """One unbounded number per key."""
        return Composite({key: Unbounded(self._shape) for key in self.keys}, shape=self._shape[:-1])


class TokenMask(Transform):
    """Write the environment's `action_masks()` under "action_mask", where TorchRL's `ActionMask` looks for it."""

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        masks = env_attribute(self.parent.base_env._env, "action_masks")()
        return next_tensordict.set("action_mask", torch.from_numpy(masks))

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        """With "action_mask" bool (…, actions)."""
        space = self.parent.action_spec.space
        shape = (*observation_spec.shape, space.n)
        observation_spec["action_mask"] = Binary(n=space.n, shape=shape, dtype=torch.bool)
        return observation_spec


class KLPenalty(Transform):
    """Subtract β·KL(π‖π_ref) from the reward, from the policy's own log-probability: k1, k2 or k3 of `textgen_env.kl`.

    Args:
        env: the unwrapped environment, whose `kl_coef` is read at every step and may be changed, and whose
            `kl_estimator` is used.
        log_prob_key: where the policy writes log π(a|s).

    Raises:
        ValueError: the estimator is "full", which one action's log-probability does not give.
    """

    def __init__(self, env: Any, log_prob_key: str = "action_log_prob") -> None:
        super().__init__()
        if env.kl_estimator == "full":
            raise ValueError("kl_estimator='full' needs whole distributions; choose k1, k2 or k3 with TorchRL")
        self._env, self.log_prob_key = env, log_prob_key

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        log_prob = tensordict.get(self.log_prob_key, None)
        if log_prob is None:
            raise KeyError(f"{self.log_prob_key!r}: the policy must write its log-probability (return_log_prob=True)")
        ref_log_prob = next_tensordict.get("ref_logprob")
        kl = estimate_kl(self._env.kl_estimator, log_prob.detach().reshape(ref_log_prob.shape), ref_log_prob)
        next_tensordict.set("kl", kl)
        return next_tensordict.set("reward", next_tensordict.get("reward") - self._env.kl_coef * kl)

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return tensordict_reset.set("kl", torch.zeros((*self.parent.batch_size, 1)))

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        """With "kl" (…, 1)."""
        observation_spec["kl"] = Unbounded((*observation_spec.shape, 1))
        return observation_spec
