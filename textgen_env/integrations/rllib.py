"""RLlib (new API stack): the vector environment registered, a policy module, and the KL in the learner.

`make_env` is what RLlib's `register_env` wants; importing this module registers it as "textgen". Each env runner steps
its slots as one batch. Algorithms, learners and metrics are RLlib's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from torch import nn

from textgen_env.integrations.networks import LMHead
from textgen_env.kl import estimate_kl
from textgen_env.lm.language_model import LanguageModel
from textgen_env.tasks import register_tasks
from textgen_env.wrappers import VectorLMFeatures, VectorScoredCutsEnd, VectorTopKActions
from textgen_env.wrappers.attributes import PassesMasks

try:
    from ray.rllib.connectors.connector_v2 import ConnectorV2
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
    from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
    from ray.tune.registry import register_env
except ImportError as error:
    raise ImportError("textgen_env.integrations.rllib needs RLlib: pip install 'textgen_env[rllib]'") from error


def make_env(config: Mapping[str, Any]) -> VectorEnv:
    """The vector environment for one env runner.

    Args:
        config: RLlib's `env_config`: "id" (default "textgen/Sentiment-v0"), "top_k" (`VectorTopKActions`), "masks"
            (`MaskedObservations`), and the arguments of the task. `num_envs` comes from RLlib.

    Returns:
        An environment that observes `LMFeatures`, in the autoreset mode that RLlib expects (NextStep), with its KL left
        to `KLPenalty`. A response that the length limit cut and scored is terminated, so that no value is added to it.

    Raises:
        ValueError: RLlib did not ask for the vector entry point.
    """
    register_tasks()  # in a worker, nothing may have imported the package yet
    arguments = dict(config)
    if "num_envs" not in arguments:
        raise ValueError('set env_runners(gym_env_vectorize_mode="vector_entry_point"): slots are stepped as one batch')
    top_k, masks = arguments.pop("top_k", None), arguments.pop("masks", False)
    task = arguments.pop("id", "textgen/Sentiment-v0")
    tokens: Any = gym.make_vec(task, autoreset_mode="NextStep", **arguments)
    tokens.unwrapped.delegate_kl(report_ref_logprob=tokens.unwrapped.kl_coef > 0)
    env: VectorEnv = VectorLMFeatures(VectorScoredCutsEnd(tokens))
    env = env if top_k is None else VectorTopKActions(env, top_k)
    return MaskedObservations(env) if masks else env


register_env("textgen", make_env)


class MaskedObservations(PassesMasks, VectorWrapper):
    """Observations with their action masks, in the form of RLlib's `ActionMaskingTorchRLModule`.

    A dictionary of "observations" and "action_mask" (float32, 1 where an action is allowed).

    Args:
        env: a batched environment of this package.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        mask = spaces.Box(0.0, 1.0, (int(env.single_action_space.n),), np.float32)  # type: ignore[attr-defined]
        inner = env.single_observation_space
        self.single_observation_space = spaces.Dict({"observations": inner, "action_mask": mask})
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """See the wrapped environment."""
        observations, infos = self.env.reset(**kwargs)
        return self._with_masks(observations), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See the wrapped environment."""
        observations, *rest = self.env.step(actions)
        return self._with_masks(observations), *rest  # type: ignore[return-value]

    def _with_masks(self, observations: Any) -> dict[str, Any]:
        return {"observations": observations, "action_mask": self.action_masks().astype(np.float32)}


class LMHeadModule(TorchRLModule, ValueFunctionAPI):
    """The last layer of the reference model as the actor (`LMHead`), a small network as the critic; masks are applied.

    `model_config` has "model", the environment's reference by name or path, and optionally "temperature".
    """

    def setup(self) -> None:
        """Build both networks."""
        self.actor = LMHead(LanguageModel(self.model_config["model"]), self.model_config.get("temperature", 1.0))
        self.critic = nn.Sequential(nn.Linear(self.actor.in_features, 64), nn.Tanh(), nn.Linear(64, 1))

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        features, mask = _split(batch[Columns.OBS])
        logits = self.actor(features)
        if mask is not None:
            logits = logits.masked_fill(mask == 0, torch.finfo(logits.dtype).min)
        return {Columns.ACTION_DIST_INPUTS: logits}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        """V(s) of each row, (B,)."""
        return self.critic(_split(batch[Columns.OBS])[0]).squeeze(-1)


def _split(obs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    return (obs["observations"], obs["action_mask"]) if isinstance(obs, dict) else (obs, None)


class KLPenalty(ConnectorV2):
    """Subtract β·KL(π‖π_ref) from the rewards of the episodes that reach the learner.

    log π is the behaviour policy's own, log π_ref comes from `info`; the returns that RLlib reports stay the scores.
    For `learners(learner_connector=lambda *spaces: KLPenalty(*spaces, coef=0.05))`, which puts it in front of RLlib's
    own connectors; it asks for `kl_coef > 0` in `env_config`, else there is no log π_ref.

    Args:
        coef: β, in reward per nat; may be changed on the learner.
        estimator: "k1", "k2" or "k3".
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        coef: float,
        estimator: str = "k1",
    ) -> None:
        super().__init__(input_observation_space, input_action_space, coef=coef, estimator=estimator)
        self.coef, self.estimator = coef, estimator

    def __call__(self, *, episodes: Any, batch: Any, **_: Any) -> Any:
        for episode in self.single_agent_episode_iterator(episodes, agents_that_stepped_only=False):
            if not len(episode):
                continue
            infos = episode.get_infos(slice(1, None))
            if "ref_logprob" not in infos[0]:
                raise KeyError("info has no ref_logprob: set kl_coef > 0 in env_config")
            ref_log_prob = np.array([info["ref_logprob"] for info in infos])
            log_prob = np.asarray(episode.get_extra_model_outputs(Columns.ACTION_LOGP), dtype=np.float64)
            kl = estimate_kl(self.estimator, log_prob, ref_log_prob)
            rewards = np.asarray(episode.get_rewards()) - self.coef * kl
            episode.set_rewards(new_data=rewards if episode.is_numpy else list(rewards))
        return batch
