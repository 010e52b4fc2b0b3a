"""Stable-Baselines3: a callback that pays for KL, from the log-probabilities of the rollout itself.

SB3 shows callbacks the rewards of a step after the environment has paid them and before the buffer stores them. The
arithmetic is `textgen_env.kl`'s.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback

from textgen_env.integrations.sb3_vec_env import UNMASKED, masks_tokens
from textgen_env.kl import FixedKLCoefficient, KLCoefficient, estimate_kl, k1, k3


class KLPenaltyCallback(BaseCallback):
    """Subtract β·KL(π‖π_ref) of every token from its reward, exactly.

    Works with every on-policy algorithm of SB3 and sb3-contrib, and with any policy whose actions are the
    environment's (tokens, or ranks under `TopKActions`, which restricts the reference alike). The environment is told
    to leave the KL to this callback; its `reward`, and so SB3's `rollout/ep_rew_mean`, stays free of KL.

    Logged after each rollout: `kl/per_token` (mean of k1, which may be negative), `kl/per_token_k3` (never negative),
    and over the responses that ended in it `kl/per_response` (nats), `kl/penalty_per_response` (what they paid),
    `kl/coef`, `rollout/score` and `rollout/response_length`.

    Args:
        kl_coef: β, reward per nat, or a controller such as `AdaptiveKLCoefficient`, which is told the mean KL per
            response after each rollout; None takes the environment's.
        kl_estimator: "k1", "k2" or "k3".
        verbose: as in SB3.

    Raises:
        ValueError: an unknown estimator or "full"; a policy at another temperature than the environment's; an
            algorithm that keeps no log-probabilities, or knows no action masks where the environment masks tokens.
    """

    def __init__(
        self, kl_coef: float | KLCoefficient | None = None, *, kl_estimator: str = "k1", verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        estimate_kl(kl_estimator, np.zeros(1), np.zeros(1))  # complains here rather than at the first step
        self.kl_estimator = kl_estimator
        self.coef: KLCoefficient | None = FixedKLCoefficient(kl_coef) if isinstance(kl_coef, (int, float)) else kl_coef
        self._slots: NDArray[np.float64] = np.zeros((0, 2))

    def _on_training_start(self) -> None:
        environment, policy = self.training_env, self.model.policy
        if self.coef is None:
            self.coef = FixedKLCoefficient(environment.get_attr("kl_coef")[0])
        wanted = environment.get_attr("temperature")[0]
        if getattr(policy, "temperature", wanted) != wanted:
            raise ValueError(f"temperature={policy.temperature} of the policy differs from the environment's {wanted}")
        name = type(self.model).__name__
        if masks_tokens(environment) and "action_masks" not in inspect.signature(self.model.predict).parameters:
            raise ValueError(UNMASKED.format(f"{name} knows no action masks"))
        environment.env_method("delegate_kl", True)
        if len(self._slots) != environment.num_envs or self.locals.get("reset_num_timesteps", True):
            self._slots = np.zeros((environment.num_envs, 2))  # KL and penalty of the running responses

    def _on_rollout_start(self) -> None:
        self._tokens: list[NDArray[np.float64]] = []
        self._responses: list[tuple[float, float, float, float]] = []

    def _on_step(self) -> bool:
        if "log_probs" not in self.locals:
            raise ValueError(f"{type(self.model).__name__} keeps no log-probabilities; KLPenaltyCallback needs them")
        rewards, infos = self.locals["rewards"], self.locals["infos"]
        log_probs = self.locals["log_probs"].detach().double().cpu().numpy().ravel()
        ref_log_probs = np.array([info["ref_logprob"] for info in infos])
        kl, penalty = self._price(log_probs, ref_log_probs)
        rewards -= penalty.astype(rewards.dtype)  # in place: this array goes into the buffer
        self._tokens.append(np.stack([log_probs, ref_log_probs]))
        self._slots += np.stack([kl, penalty], axis=1)
        for row in np.flatnonzero(self.locals["dones"]):
            info = infos[row]
            self._responses.append((*self._slots[row], info.get("score", np.nan), info.get("response_length", np.nan)))
            self._slots[row] = 0
        return True

    def _price(
        self, log_probs: NDArray[np.float64], ref_log_probs: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """KL and what it costs, (n,) each."""
        assert self.coef is not None
        kl: Any = estimate_kl(self.kl_estimator, log_probs, ref_log_probs)
        return kl, self.coef.value * kl

    def _on_rollout_end(self) -> None:
        assert self.coef is not None
        log_probs, ref_log_probs = np.concatenate(self._tokens, axis=1)
        self.logger.record("kl/per_token", float(k1(log_probs, ref_log_probs).mean()))
        self.logger.record("kl/per_token_k3", float(k3(log_probs, ref_log_probs).mean()))
        self.logger.record("kl/coef", self.coef.value)
        if not self._responses:
            return
        names = ("kl/per_response", "kl/penalty_per_response", "rollout/score", "rollout/response_length")
        means = np.mean(self._responses, axis=0)
        for name, mean in zip(names, means, strict=True):
            self.logger.record(name, float(mean))
        self.coef.update(float(means[0]), len(self._responses))
