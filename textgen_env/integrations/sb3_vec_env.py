"""Stable-Baselines3: the vector environment as a `VecEnv`. Policies and callbacks live elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from textgen_env.wrappers.attributes import env_attribute, holder, layers

UNMASKED = (
    "{}, but forbidden_tokens, min_new_tokens, reference_top_p or reference_top_k mask tokens here, and a masked token "
    "is an error: use MaskablePPO of sb3-contrib, TopKActions, or leave these arguments out"
)


class SB3VecEnv(VecEnv):
    """A `gymnasium.vector.VectorEnv` that Stable-Baselines3 trains on: one process, one batch a step.

    At the end of an episode its info holds, beside what the environment says, what SB3 expects:

    * `terminal_observation`, and `episode` with return and length, as `Monitor` would (another one is not needed);
    * `TimeLimit.truncated`: SB3 then adds γ·V(terminal observation) to the last reward. True for a cut from outside.
      A response cut by `length_limit="truncate"` has been scored as it stands: another V on top would count it twice,
      so that it is False.

    Args:
        venv: with `autoreset_mode` SAME_STEP, as `gym.make_vec("textgen/…", num_envs=n)` makes it, and wrappers.

    Raises:
        ValueError: another autoreset mode, which SB3 does not know; at the first step, an environment that masks tokens
            and an algorithm that has not asked for the masks, which would fail at the first masked token that it draws.
    """

    def __init__(self, venv: VectorEnv) -> None:
        mode = venv.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(f"venv has autoreset_mode={mode}; SB3 needs one made with AutoresetMode.SAME_STEP")
        self.venv = venv
        self._actions: NDArray[np.int64] = np.zeros(venv.num_envs, dtype=np.int64)
        self._returns = np.zeros(venv.num_envs)
        self._lengths = np.zeros(venv.num_envs, dtype=np.int64)
        self._masks_known = False
        super().__init__(venv.num_envs, venv.single_observation_space, venv.single_action_space)

    # --- playing ------------------------------------------------------------------------------------------------------

    def reset(self) -> VecEnvObs:
        """Begin an episode in every slot, with the seeds and options that were set."""
        seeds: Any = None if all(seed is None for seed in self._seeds) else self._seeds
        observations, infos = self.venv.reset(seed=seeds, options=self._batched_options())
        self.reset_infos = unbatch(infos, self.num_envs)
        self._returns[:], self._lengths[:] = 0, 0
        self._reset_seeds()
        self._reset_options()
        return observations

    def _batched_options(self) -> dict[str, Any] | None:
        """One dictionary a slot as one for all: prompts as a list, anything else must be equal."""
        if not any(self._options):
            return None
        rest = [{key: value for key, value in options.items() if key != "prompt"} for options in self._options]
        if any(options != rest[0] for options in rest):
            raise ValueError(f"options={self._options} may differ between slots in 'prompt' alone")
        if not any("prompt" in options for options in self._options):
            return rest[0]
        return {**rest[0], "prompt": [options.get("prompt") for options in self._options]}

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions (n,)."""
        if not self._masks_known and masks_tokens(self):
            raise ValueError(UNMASKED.format("who steps this environment has not asked for action_masks()"))
        self._actions = np.asarray(actions).reshape(self.num_envs, *(self.action_space.shape or ()))

    def step_wait(self) -> VecEnvStepReturn:
        """Step; rewards are float32 (n,), an array of this step alone, which callbacks may edit in place."""
        observations, rewards, terminated, truncated, batched = self.venv.step(self._actions)
        rewards, dones = np.array(rewards, dtype=np.float32), terminated | truncated
        self._returns += rewards
        self._lengths += 1
        infos = unbatch(batched, self.num_envs)
        for row in np.flatnonzero(dones).tolist():
            infos[row] = self._ending(row, infos[row], cut=bool(truncated[row] and not terminated[row]))
        return observations, rewards, dones, infos

    def _ending(self, row: int, info: dict[str, Any], *, cut: bool) -> dict[str, Any]:
        """The info of an episode's last step; what remains of `info` belongs to the next episode's reset."""
        final_info, final_observation = info.pop("final_info", {}), info.pop("final_obs")
        self.reset_infos[row] = info
        episode = {"r": float(self._returns[row]), "l": int(self._lengths[row])}
        self._returns[row], self._lengths[row] = 0, 0
        return {
            **final_info,
            "terminal_observation": final_observation,
            "TimeLimit.truncated": cut and "score" not in final_info,
            "episode": episode,
        }

    def action_masks(self, slots: Sequence[int] | None = None) -> NDArray[np.bool_]:
        """bool (n, actions), True where an action is allowed; of some slots if given."""
        self._masks_known = True
        return env_attribute(self.venv, "action_masks")(slots)

    def close(self) -> None:
        """Release the environment; may be called twice."""
        self.venv.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """One picture a slot, for render mode "rgb_array"."""
        pictures: Any = self.venv.render()
        return list(pictures or [])

    # --- attributes and methods: of the one environment that all slots share ------------------------------------------

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of the outermost wrapper that has it, once for each index."""
        return [env_attribute(self.venv, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute where it is, or else on the environment itself.

        Raises:
            ValueError: for some of the slots only.
        """
        if len(set(self._rows(indices))) != self.num_envs:
            raise ValueError(f"indices={indices}: the slots share one environment; set {attr_name} for all of them")
        try:
            setattr(holder(self.venv, attr_name), attr_name, value)
        except AttributeError:
            setattr(self.venv.unwrapped, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the batched environment once; a result with one entry per slot is handed out by slot."""
        self._masks_known |= method_name == "action_masks"
        result = env_attribute(self.venv, method_name)(*args, **kwargs)
        by_slot = isinstance(result, (np.ndarray, list, tuple)) and len(result) == self.num_envs
        return [result[row] if by_slot else result for row in self._rows(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether a wrapper is there; `Monitor` is, in effect."""
        wrapped = wrapper_class is Monitor or any(isinstance(env, wrapper_class) for env in layers(self.venv))
        return [wrapped] * len(self._rows(indices))

    def _rows(self, indices: VecEnvIndices) -> list[int]:
        return list(self._get_indices(indices))


def unbatch(infos: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    """Gymnasium's dictionary of arrays with `_key` masks as one dictionary a slot, of plain Python values."""
    separate: list[dict[str, Any]] = [{} for _ in range(rows)]
    for key, values in infos.items():
        if key.startswith("_"):
            continue
        mask = infos.get(f"_{key}")
        present = range(rows) if mask is None else np.flatnonzero(mask).tolist()
        if isinstance(values, dict):
            values = unbatch(values, rows)
        elif values.ndim == 1:
            values = values.tolist()
        for row in present:
            separate[row][key] = values[row]
    return separate


def masks_tokens(environment: VecEnv) -> bool:
    """Whether actions are tokens of which some are masked; `TopKActions` offers none of those."""
    try:
        restricted, model = (environment.get_attr(name)[0] for name in ("restricts_actions", "language_model"))
    except AttributeError:  # single environments behind another vectorised environment, which has no masks to ask for
        return False
    return restricted and environment.action_space.n == model.vocab_size  # type: ignore[attr-defined]
