"""Natural language policy optimisation (NLPO): only tokens are drawn that a lagging copy of the policy finds likely.

What lives here: `LaggingMask`, the copy and its nuclei, and `StepMasks`, what may be drawn in a step of a rollout, with
such a copy or without. What does not: how masks are kept and applied (``action_masks.py``, ``rollout.py``), and when
the copy catches up (``training/on_policy.py``).

A mask is the nucleus (top-p) of the copy, within what the environment allows, so that it is never empty. From there on
it is an action mask like any other, which holds for sampling, for every scored log-prob and entropy, and for the
reference. In the paper the KL is that of the two models without masks; here it is that of the two distributions which
the rollout is about, so that β weighs the score against exactly what the loss moves. The paper's code also allows every
special token; here EOS is in the nucleus or is not.

References:
    Ramamurthy et al., "Is reinforcement learning (not) for natural language processing?" (2023), algorithm 1.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.prefix_cache import PrefixCache
from textgen_env.lm.sampling import SamplingParams, warp_logits
from textgen_env.wrappers.attributes import env_attribute, may_mask


class LaggingMask:
    """Which tokens a lagging copy of a language model would draw.

    Only weights that learn are copied; the others are shared with the model, which with LoRA is nearly all of them.

    Args:
        language_model: the policy, as it is now.
        temperature: that the policy samples at.
        top_p: mass of the nucleus, in (0, 1).
    """

    def __init__(self, language_model: LanguageModel, temperature: float, top_p: float) -> None:
        self.sampling = SamplingParams(temperature, top_p=top_p)
        actor: nn.Module = language_model.model
        shared = {id(parameter): parameter for parameter in actor.parameters() if not parameter.requires_grad}
        self.model = copy.deepcopy(actor, shared).requires_grad_(False).eval()
        mine, theirs = self.model.parameters(), actor.parameters()
        self._pairs = [(own, their) for own, their in zip(mine, theirs, strict=True) if own is not their]
        self._vocab_size = language_model.vocab_size

    def cache(self, rows: int) -> PrefixCache:
        """A memory of its own of so many prefixes."""
        return PrefixCache(self.model, rows, vocab_size=self._vocab_size)

    def within(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        """(n, V) bool: the nucleus of the copy's (n, V) logits among the tokens that are allowed (None: all)."""
        return warp_logits(logits, self.sampling, mask=allowed).isfinite()

    @torch.no_grad()
    def catch_up(self) -> None:
        """Take the weights that the policy has now."""
        for own, their in self._pairs:
            own.copy_(their)

    def state_dict(self) -> dict[str, Any]:
        """The weights of the copy that are not the policy's own."""
        return {"weights": [own.detach() for own, _ in self._pairs]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them from there.

        Raises:
            ValueError: they are those of another model.
        """
        for (own, _), weights in zip(self._pairs, state["weights"], strict=True):
            own.copy_(weights)


class StepMasks:
    """What may be drawn in a step: what the environment allows, less what a lagging policy would not draw."""

    def __init__(self, venv: gym.vector.VectorEnv, lagging: LaggingMask | None) -> None:
        self.venv, self.lagging = venv, lagging
        self.cache = lagging.cache(venv.num_envs) if lagging is not None else None

    def __call__(
        self, ids: NDArray[np.int64], lengths: NDArray[np.int64], active: NDArray[np.int64]
    ) -> NDArray[np.bool_] | None:
        """(n_active, V) allowed tokens behind these prefixes, or None where everything is."""
        allowed: NDArray[np.bool_] | None = None
        if may_mask(self.venv):
            allowed = env_attribute(self.venv, "action_masks")(active)
        if self.lagging is not None and self.cache is not None:
            logits = self.cache.next_logits(ids, lengths, rows=active)
            mask = None if allowed is None else torch.from_numpy(allowed)
            allowed = self.lagging.within(logits, mask).cpu().numpy()
        return None if allowed is None or allowed.all() else allowed
