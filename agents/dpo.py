"""Direct preference optimisation: a policy from pairs of responses, without rewards and without sampling.

What lives here: the loss of a minibatch, its settings, and the command (``python -m textgen_env.agents.dpo``). What
does not: the loss functions (``preference_losses.py``), pairs (``preferences/``), minibatches and epochs
(``training/supervised.py``), the run (``training/run.py``), which judges responses to held-out prompts by the task's
scorer, as for every trainer.

References:
    Rafailov et al., "Direct preference optimization: your language model is secretly a reward model" (2023): DPO.
    Azar et al., "A general theoretical paradigm to understand learning from human preferences" (2023): IPO.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import PLAIN, SamplingParams
from textgen_env.lm.token_batch import TokenBatch
from textgen_env.notices import warn_user
from textgen_env.vocabulary import tokenize_prompt

from .policy import ActorConfig, ActorCritic, Reference
from .preference_losses import ipo_loss, preference_accuracy, preference_loss
from .preferences.pairs import Pair
from .preferences.source import PairConfig, gather
from .training.command_line import run as run_program
from .training.extra import OmitArgPrefixes
from .training.run import Run, run_of_command_line
from .training.run_settings import RunSettings
from .training.setting_checks import POSITIVE, check, choice
from .training.supervised import SupervisedTrainer
from .training.trainer import OptimConfig


@dataclass
class DPOConfig(OptimConfig):
    """Settings of the algorithm; minibatches and micro-batches are counted in pairs."""

    beta: float = 0.1
    """β: how strongly the policy is held to the reference."""
    loss: Literal["dpo", "ipo"] = "dpo"
    """Logistic (DPO), or squared distance from 1/(2β) (IPO), which does not run away where labels never disagree."""
    lr: float = 1e-4
    """Peak learning rate. 1e-4 suits a model of a few million weights and LoRA; for all weights of one of 100 million
    begin between 1e-6 and 1e-5."""
    warmup_updates: int = 10
    """Updates of linear warm-up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, {"beta": POSITIVE, "loss": choice("dpo", "ipo")})


@dataclass
class DPOSettings(RunSettings):
    """Train a language model on preferences, directly."""

    updates: int = 48
    """Optimiser steps."""
    policy: OmitArgPrefixes[ActorConfig] = field(default_factory=ActorConfig)
    """Which weights learn."""
    data: OmitArgPrefixes[PairConfig] = field(default_factory=PairConfig)
    """Which pairs are learned from."""
    dpo: OmitArgPrefixes[DPOConfig] = field(default_factory=DPOConfig)
    """The algorithm."""


class PairExample(NamedTuple):
    """A pair as tokens, the preferred response first."""

    prompt: str
    texts: tuple[str, str]
    prompt_ids: list[int]
    response_ids: tuple[list[int], list[int]]
    target: float  # P(first ≻ second): 1, or ½ for a tie
    number: int = 0  # its row in the table of the reference, which the trainer gives it


@dataclass
class PairBatch:
    """B pairs as tensors: row 2i of the tokens is the first response of pair i, row 2i + 1 the second."""

    tokens: TokenBatch  # (2B, T) each
    targets: Tensor  # (B,)
    numbers: list[int]  # B rows of the table of the reference
    prompts: list[str]
    texts: list[str]  # the preferred ones
    scores: Tensor  # (B,) implicit reward margins β·Δ, as the update finds them


class DPO(SupervisedTrainer):
    """Learns from pairs; see `SupervisedTrainer` for the arguments.

    The reference's log-probs of a pair are computed once, when it is first met, in the batch in which the policy is
    read, so that implicit rewards are exactly 0 before the first step.

    Args:
        reference: log π_ref, see `ActorCritic.reference`.
    """

    def __init__(
        self,
        policy: ActorCritic,
        config: DPOConfig,
        examples: Sequence[PairExample],
        *,
        reference: Reference,
        held_out: Sequence[PairExample] = (),
        sampling: SamplingParams = PLAIN,
        seed: int = 1,
        total_updates: int = 100,
    ) -> None:
        numbered = [example._replace(number=row) for row, example in enumerate([*examples, *held_out])]
        train, rest = numbered[: len(examples)], numbered[len(examples) :]
        options: dict[str, Any] = {"sampling": sampling, "seed": seed, "total_updates": total_updates}
        super().__init__(policy, config, train, held_out=rest, **options)
        self.reference, self._ref_log_probs = reference, torch.full((len(numbered), 2), math.nan)

    def size(self, example: PairExample) -> int:
        """Tokens of the longer text."""
        return len(example.prompt_ids) + max(map(len, example.response_ids))

    def weight(self, batch: PairBatch, rows: Tensor) -> int:
        """The loss is a mean over pairs."""
        return len(rows)

    def batch(self, examples: Sequence[PairExample]) -> PairBatch:
        """Pairs as tensors, on the policy's device."""
        device = self.policy.device
        prompts = [e.prompt_ids for e in examples for _ in range(2)]
        responses = [ids for e in examples for ids in e.response_ids]
        tokens = TokenBatch.from_tokens(prompts, responses, self.policy.language_model.pad_token_id).to(device)
        targets = torch.tensor([e.target for e in examples], device=device)
        told = [e.prompt for e in examples], [e.texts[0] for e in examples]
        return PairBatch(tokens, targets, [e.number for e in examples], *told, torch.zeros_like(targets))

    def loss(self, batch: PairBatch, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """DPO's or IPO's, of some pairs; and their implicit rewards β·log π/π_ref."""
        tokens = batch.tokens.rows(torch.stack([2 * rows, 2 * rows + 1], dim=1).flatten())
        log_probs = self.policy(tokens).log_probs.sum(dim=1).view(-1, 2)
        log_ratios = log_probs - self._reference(tokens, [batch.numbers[row] for row in rows.tolist()])  # (b, 2)
        difference, targets, beta = log_ratios[:, 0] - log_ratios[:, 1], batch.targets[rows], self.config.beta
        if self.config.loss == "ipo":
            loss = ipo_loss(difference, beta, targets)
        else:
            loss = preference_loss(beta * difference, targets)
        batch.scores[rows] = beta * difference.detach()
        first, second = beta * log_ratios.detach().mean(dim=0)
        parts = {"first_reward": first, "second_reward": second, "reward_margin": first - second}
        return loss, {"loss": loss.detach(), "accuracy": preference_accuracy(difference, targets), **parts}

    def _reference(self, tokens: TokenBatch, numbers: list[int]) -> Tensor:
        """(b, 2) log π_ref of the responses of some pairs."""
        if self._ref_log_probs[numbers].isnan().any():
            self._ref_log_probs[numbers] = self.reference(tokens).sum(dim=1).view(-1, 2).cpu()
        return self._ref_log_probs[numbers].to(self.policy.device)

    def held_out(self) -> dict[str, float]:
        """``loss``, ``accuracy`` and rewards of the held-out pairs; nothing if there are none."""
        return self.held_out_means()

    def state_dict(self) -> dict[str, Any]:
        """See `GradientTrainer.state_dict`; with what the reference said."""
        return {**super().state_dict(), "ref_log_probs": self._ref_log_probs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `GradientTrainer.load_state_dict`."""
        super().load_state_dict(state)
        self._ref_log_probs.copy_(state["ref_log_probs"])


def examples(pairs: Sequence[Pair], venv: VectorEnv, language_model: LanguageModel) -> list[PairExample]:
    """Pairs as tokens: prompts as an environment has them, responses behind them as they are, with EOS if they ended.

    Args:
        pairs: those without anything to learn are left out.
        venv: whose limits; a longer response is cut there.
        language_model: whose tokens.
    """
    env, found, too_long = cast(Any, venv.unwrapped), [], 0
    for pair in pairs:
        if (ranked := pair.ranked) is None:
            continue
        prompt, ends = pair.as_prompt, dict(zip((pair.a, pair.b), pair.ended, strict=True))
        ids = [language_model.encode_as_is(text) + [language_model.end_token_id] * ends[text] for text in ranked[:2]]
        too_long += any(len(each) > env.max_new_tokens for each in ids)
        first, second = (each[: env.max_new_tokens] for each in ids)
        prompt_ids = tokenize_prompt(language_model, prompt, env.max_prompt_tokens, truncation=env.truncation)[0]
        found.append(PairExample(prompt.text, ranked[:2], prompt_ids, (first, second), ranked.target))
    if too_long:
        limit = f"max_new_tokens={env.max_new_tokens}"
        warn_user(f"{too_long} of {len(found)} pairs have a response that is longer than {limit}, and cut there")
    return found


def make_run(arguments: Sequence[str] | None = None) -> Run:
    """Everything up to the first update; see `main`."""

    def make_trainer(run: Run) -> DPO:
        settings, model = run.settings, run.policy.language_model
        train, held_out = (examples(pairs, run.venv, model) for pairs in gather(run, settings.data, model))
        sampling = SamplingParams(settings.temperature)  # of responses to held-out prompts
        return DPO(run.policy, settings.dpo, train, held_out=held_out, sampling=sampling, **run.options)

    return run_of_command_line("textgen_env.agents.dpo", DPOSettings, make_trainer, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.dpo --help``"""
    make_run(arguments).execute()


if __name__ == "__main__":
    run_program(make_run)
