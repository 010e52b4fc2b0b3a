"""Stable-Baselines3: rollout buffers that hand out whole episodes, so that a policy can read each one once.

The forward that transitions share is the policy's business (`sb3_policy.py`), and it is right for any order of
transitions; here they are put in an order that makes it cheap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples


class EpisodewiseMixin:
    """What turns one of SB3's dictionary rollout buffers into an episode-wise one.

    * A minibatch holds whole segments (what one slot wrote in one episode during this rollout), so that its size is
      only about `batch_size`.
    * Before the first minibatch is handed out, the log-probabilities of all are computed anew, in the very batches in
      which the first epoch will compute them: a cached decode step and a teacher-forced forward differ by rounding,
      which in bfloat16 is enough to move ratios out of the clip range. The first epoch's ratios are exactly 1.

    Args:
        rescore: whether to do the latter.
        buffer_size, observation_space, …: SB3 gives them.

    Raises:
        ValueError: observations that are not tokens.
    """

    columns: tuple[str, ...] = ("actions", "values", "log_probs", "advantages", "returns")

    def __init__(
        self, buffer_size: int, observation_space: spaces.Space, *args: Any, rescore: bool = True, **kwargs: Any
    ) -> None:
        check_tokens(observation_space)
        self.rescore = rescore
        self._policy: Any = None
        super().__init__(buffer_size, observation_space, *args, **kwargs)  # type: ignore[call-arg]

    def reset(self) -> None:
        """Forget the last rollout."""
        self._policy = None
        super().reset()  # type: ignore[misc]

    def add(
        self, obs: Any, action: Any, reward: Any, episode_start: Any, value: Any, log_prob: Any, **kwargs: Any
    ) -> None:
        """Store a step of all slots; see SB3's buffers."""
        self._policy = getattr(log_prob, "scored_by", None)  # SB3 introduces policy and buffer by this call alone
        super().add(obs, action, reward, episode_start, value, log_prob, **kwargs)  # type: ignore[misc]

    def get(self: Any, batch_size: int | None = None) -> Iterator[Any]:
        """Minibatches of about `batch_size` transitions (None: one with all), reshuffled at every call."""
        assert self.full, "the rollout buffer is not full"
        if not self.generator_ready:
            self._flatten()
        batches = list(self._minibatches(batch_size))
        if self.rescore and self._policy is not None:
            for indices in batches:
                self._score(indices)
            self._policy = None
        for indices in batches:
            yield self._get_samples(indices)

    def _flatten(self: Any) -> None:
        """(steps, slots, …) to (slots · steps, …), slot after slot, in which a segment is a range."""
        starts = self.episode_starts.astype(bool)
        starts[0] = True  # what went before is in the last rollout
        self._bounds = np.append(np.flatnonzero(starts.T.ravel()), starts.size)
        for key, values in self.observations.items():
            self.observations[key] = self.swap_and_flatten(values)
        for name in self.columns:
            setattr(self, name, self.swap_and_flatten(getattr(self, name)))
        self.generator_ready = True

    def _minibatches(self: Any, batch_size: int | None) -> Iterator[NDArray[np.int64]]:
        """Indices of the transitions of each minibatch: segments in random order, dealt into equal shares."""
        firsts, lasts = self._bounds[:-1], self._bounds[1:]
        order = np.random.permutation(len(firsts))  # the generator that SB3's own buffers shuffle with
        lengths = (lasts - firsts)[order]
        total = int(lengths.sum())
        shares = max(1, round(total / (batch_size or total)))
        share = ((lengths.cumsum() - lengths / 2) * shares / total).astype(int)
        for number in np.unique(share):
            yield np.concatenate([np.arange(firsts[at], lasts[at]) for at in order[share == number]])

    @torch.no_grad()
    def _score(self: Any, indices: NDArray[np.int64]) -> None:
        samples = self._get_samples(indices)
        masks = {"action_masks": samples.action_masks} if hasattr(samples, "action_masks") else {}
        actions = samples.actions.long().flatten()
        _, log_probs, _ = self._policy.evaluate_actions(samples.observations, actions, **masks)
        self.log_probs[indices, 0] = log_probs.cpu().numpy()


class EpisodeRolloutBuffer(EpisodewiseMixin, DictRolloutBuffer):
    """The `rollout_buffer_class` for `LMActorCriticPolicy`; see `EpisodewiseMixin`."""

    def get(self, batch_size: int | None = None) -> Iterator[DictRolloutBufferSamples]:  # type: ignore[override]
        """See `EpisodewiseMixin.get`."""
        return super().get(batch_size)


def check_tokens(observation_space: spaces.Space) -> None:
    """Complain about observations that a language model cannot read."""
    if not isinstance(observation_space, spaces.Dict) or "input_ids" not in observation_space.spaces:
        raise ValueError(
            f"observation_space={observation_space} has no 'input_ids': a language model reads tokens; over LMFeatures "
            "use 'MlpPolicy' and SB3's own buffer"
        )
