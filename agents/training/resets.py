"""Episodes that begin inside of a response that is given: of the prompt's references, or of a guide.

What lives here: the settings, and `Resets`, which draws where episodes begin. What does not: playing on from there
(`collect` with ``responses``), which leaves what was given out of everything that is learned; trees and Monte-Carlo
values, which begin inside of the policy's own responses (``../vine_ppo.py``).

With a share p the objective becomes (1 − p)·J + p·E[V(s)], s being a prompt with the first h tokens of a response and h
uniform: what comes late is tried from where it matters before the policy gets there by itself. V(s) is score − β·KL of
what comes after s; the gradient does not go through the choice of s.

References:
    Chang et al., "Dataset reset policy optimization for RLHF" (2024): DR-PO, from responses of a data set.
    Chang et al., "Learning to generate better than your LLM" (2023): PPO++, from those of a guide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import torch

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams

from ..rollout import collect
from ..rollout_parts import whole_responses
from .importance import ImportanceConfig
from .setting_checks import SHARE, check, choice
from .supervised import behind


@dataclass
class ResetConfig(ImportanceConfig):
    """Settings of episodes that begin inside of a response."""

    reset_share: float = 0.0
    """Share of the episodes that begin with some tokens of a response that is given, cut uniformly; nothing is learned
    from those tokens."""
    reset_from: Literal["references", "guide"] = "references"
    """The responses: the prompt's references (DR-PO), or such as the environment's reference model writes then (PPO++),
    which are decoded as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, {"reset_share": SHARE, "reset_from": choice("references", "guide")})


class Resets:
    """Draws what responses begin with.

    Args:
        venv: the environment.
        language_model: whose tokens.
        config: settings, with a share above 0.
        sampling: how the guide's responses are sampled.

    Raises:
        ValueError: the environment answers, or a prompt has no reference to begin with.
    """

    def __init__(
        self, venv: gym.vector.VectorEnv, language_model: LanguageModel, config: ResetConfig, sampling: SamplingParams
    ) -> None:
        env: Any = venv.unwrapped
        share = f"reset_share={config.reset_share}"
        if env.engine.turns is not None:
            raise ValueError(f"{share} begins inside of a response, and this environment answers: leave it at 0")
        self.venv, self.env, self.config, self.sampling = venv, env, config, sampling
        self.references: list[list[list[int]]] = []
        for number, prompt in enumerate(env.prompts if config.reset_from == "references" else ()):
            if not prompt.references:
                what = f"prompts[{number}]={prompt.text!r} has no references to begin with"
                raise ValueError(f'{share}: {what}; reset_from="guide" needs none')
            texts = [language_model.encode_as_is(behind(prompt, text)) for text in prompt.references]
            self.references.append([[*text, language_model.end_token_id][: env.max_new_tokens] for text in texts])

    def draw(self, prompts: Sequence[int], generator: torch.Generator, sampler: torch.Generator) -> list[list[int]]:
        """What the responses to some prompts begin with, most of them or some with nothing.

        Args:
            prompts: numbers of prompts.
            generator: of shares and cuts.
            sampler: of the guide's responses.
        """
        begun: list[list[int]] = [[] for _ in prompts]
        chance = torch.rand(len(prompts), generator=generator)
        rows = (chance < self.config.reset_share).nonzero().flatten().tolist()
        given = self._responses([prompts[row] for row in rows], generator, sampler)
        for row, response in zip(rows, given, strict=True):
            begun[row] = response[: 1 + _below(len(response) - 1, generator)] if len(response) > 1 else []
        return begun

    def _responses(
        self, prompts: Sequence[int], generator: torch.Generator, sampler: torch.Generator
    ) -> Sequence[list[int]]:
        if self.config.reset_from == "references" or not prompts:
            given = [self.references[prompt] for prompt in prompts]
            return [texts[_below(len(texts), generator)] for texts in given]
        spare = [prompts[0]] * max(0, self.venv.num_envs - len(prompts))  # every slot plays at least one
        played, guide = [*prompts, *spare], self.env.reference
        rollout = collect(self.venv, guide, len(played), generator=sampler, sampling=self.sampling, prompts=played)
        return whole_responses(rollout)[: len(prompts)]


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
