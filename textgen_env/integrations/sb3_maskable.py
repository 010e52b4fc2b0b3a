"""sb3-contrib's MaskablePPO with a language model as policy: the maskable twins of `sb3_policy.py` and `sb3_buffer.py`.

`MaskablePPO` takes the masks from the environment by itself (`action_masks()`, through `SB3VecEnv` or SB3's own
vectorised environments).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

try:
    from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableDictRolloutBufferSamples
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
except ImportError as error:
    message = "textgen_env.integrations.sb3_maskable needs sb3-contrib: pip install 'textgen_env[sb3]'"
    raise ImportError(message) from error

from textgen_env.integrations.sb3_buffer import EpisodewiseMixin
from textgen_env.integrations.sb3_policy import LanguageModelMixin


class MaskableLMActorCriticPolicy(LanguageModelMixin, MaskableActorCriticPolicy):  # type: ignore[misc]
    """`LMActorCriticPolicy` for MaskablePPO; masked tokens have probability 0 exactly."""


class MaskableEpisodeRolloutBuffer(EpisodewiseMixin, MaskableDictRolloutBuffer):
    """The `rollout_buffer_class` for `MaskableLMActorCriticPolicy`.

    Masks are kept as bits: V / 8 bytes a transition, where sb3-contrib's own buffer keeps V float32, which at
    2048 steps × 8 slots × 50k tokens would be 3.3 GB.
    """

    columns = (*EpisodewiseMixin.columns, "action_masks")

    def reset(self) -> None:
        """Forget the last rollout."""
        self.mask_dims = int(self.action_space.n)  # type: ignore[attr-defined]
        packed = np.full(-(-self.mask_dims // 8), 255, dtype=np.uint8)
        self.action_masks = np.tile(packed, (self.buffer_size, self.n_envs, 1))
        self._policy = None
        super(MaskableDictRolloutBuffer, self).reset()  # past the one that would allocate float32 masks

    def add(self, *args: Any, action_masks: NDArray[Any] | None = None, **kwargs: Any) -> None:
        """Store a step of all slots, with its masks bool (n, V)."""
        if action_masks is not None:
            self.action_masks[self.pos] = np.packbits(np.asarray(action_masks, dtype=bool), axis=-1)
        super().add(*args, **kwargs)

    def get(self, batch_size: int | None = None) -> Iterator[MaskableDictRolloutBufferSamples]:  # type: ignore[override]
        """See `EpisodewiseMixin.get`."""
        return super().get(batch_size)

    def _get_samples(self, batch_inds: NDArray[np.int64], env: Any = None) -> Any:
        masks = np.unpackbits(self.action_masks[batch_inds], axis=-1, count=self.mask_dims).astype(bool)
        plain = super(MaskableDictRolloutBuffer, self)._get_samples(batch_inds, env)
        return MaskableDictRolloutBufferSamples(*plain, action_masks=torch.from_numpy(masks).to(self.device))
