"""Every response to one prompt, played in the environment: the exact values of a small tree.

What lives here: `Enumeration`. What does not: estimates, and what the values are good for (``optimum.py``).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch

from textgen_env.notices import shown

MAX_STEPS = 1_000_000  # of the environment: some minutes


class Node(NamedTuple):
    """A state: V, and the expected sum of rewards from it on, of π* and of the reference."""

    value: float
    score: float
    reference: float
    prompt: str = ""


class Enumeration:
    """Visits every state of a tree; an environment cannot be turned back, so that each visit begins at the prompt."""

    def __init__(self, env: gym.Env, kl_coef: float, prompt: Any, seed: int) -> None:
        self.env, self.kl_coef, self.prompt, self.seed, self.steps = env, kl_coef, prompt, seed, 0

    def node(self, tokens: tuple[int, ...]) -> Node:
        """The state after these tokens, which have not ended the episode."""
        info = self._replay(tokens)
        actions = np.flatnonzero(cast(Any, self.env.get_wrapper_attr("action_masks"))()).tolist()
        logits, scores, references = [], [], []
        for action in actions:
            if action != actions[0]:
                self._replay(tokens)
            reward, log_prob, after = self._child(tokens, action)
            logits.append(log_prob + (reward + after.value) / self.kl_coef)
            scores.append(reward + after.score)
            references.append((log_prob, reward + after.reference))
        optimal = torch.tensor(logits, dtype=torch.float64)
        value = self.kl_coef * float(optimal.logsumexp(dim=0))
        score = float(optimal.softmax(dim=0) @ torch.tensor(scores, dtype=torch.float64))
        reference = math.fsum(math.exp(log_prob) * outcome for log_prob, outcome in references)
        return Node(value, score, reference, str(info["prompt"]))

    def _child(self, tokens: tuple[int, ...], action: int) -> tuple[float, float, Node]:
        """Reward, log π_ref and the state after one more action in the present state."""
        _, reward, terminated, truncated, info = self._step(action)
        ended = Node(0.0, 0.0, 0.0)
        return float(reward), info["ref_logprob"], ended if terminated or truncated else self.node((*tokens, action))

    def _replay(self, tokens: tuple[int, ...]) -> dict[str, Any]:
        _, info = self.env.reset(seed=self.seed, options={"prompt": self.prompt})
        for token in tokens:
            self._step(token)
        return info

    def _step(self, action: int) -> Any:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ValueError(
                f"prompt={shown(self.prompt)} has more responses than {MAX_STEPS:,} steps can visit; lower "
                "max_new_tokens, or narrow the actions by reference_top_k or forbidden_tokens; or estimate_optimum"
            )
        return self.env.step(action)
