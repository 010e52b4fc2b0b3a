"""Infos that can be stacked, for libraries that record them, such as Minari's `DataCollector(record_infos=True)`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from textgen_env.wrappers.attributes import PassesMasks


class UniformInfo(PassesMasks, gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Give every `info`, of `reset` and of each step, the same keys and the same types.

    Texts that are not known yet are "", numbers NaN; `response_length` counts the tokens so far; `reward_parts` holds
    each part of the score and "kl", 0 where nothing is paid. `scorer_info`, which is about all episodes, and what a
    responder adds (`reply`, `transcript`, …) are left out.

    Args:
        env: the single environment, with any wrappers.
    """

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._engine = env.unwrapped.engine  # type: ignore[attr-defined]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the wrapped environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, self._uniform(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See the wrapped environment."""
        *results, info = self.env.step(action)
        return *results, self._uniform(info)  # type: ignore[return-value]

    def _uniform(self, info: dict[str, Any]) -> dict[str, Any]:
        texts = {name: info.get(name, "") for name in ("text", "finish_reason")}
        numbers = {name: info.get(name, float("nan")) for name in ("score", "ref_logprob", "ref_logprob_sum", "kl_sum")}
        paid = info.get("reward_parts", {})
        return {
            "prompt": self._engine.episodes.prompts[0].text,
            **texts,
            **numbers,
            "response_length": int(self._engine.episodes.response_lengths[0]),
            "reward_parts": {name: paid.get(name, 0.0) for name in (*self._engine.part_names, "kl")},
        }
