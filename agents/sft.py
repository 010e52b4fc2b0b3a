"""Supervised fine-tuning: the responses of a data set, given their prompts.

What lives here: the loss, its settings, which texts are learned, and the door of the command line
(``python -m textgen_env.agents.sft``). What does not: minibatches and epochs (``training/supervised.py``), the run
(``training/run.py``), which judges responses to held-out prompts by the task's scorer, as for every trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from gymnasium.vector import VectorEnv
from torch import Tensor

from textgen_env.episode import Prompt
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams
from textgen_env.notices import warn_user
from textgen_env.vocabulary import tokenize_prompt

from .losses import language_model_loss
from .policy import ActorConfig
from .training.command_line import run as run_program
from .training.extra import OmitArgPrefixes
from .training.run import Run, run_of_command_line
from .training.run_settings import RunSettings
from .training.supervised import Example, SupervisedTrainer, TextBatch
from .training.trainer import OptimConfig


@dataclass
class SFTConfig(OptimConfig):
    """Settings of the algorithm: those of the optimiser."""

    lr: float = 1e-4
    """Peak learning rate. 1e-4 suits a model of a few million weights and LoRA; for all weights of one of 100 million
    begin between 1e-5 and 3e-5."""
    warmup_updates: int = 10
    """Updates of linear warm-up."""


@dataclass
class SFTSettings(RunSettings):
    """Fine-tune a language model on given responses."""

    env: str = "textgen/Summarize-v0"
    """Gymnasium id of a token environment; its prompts' references, or their column "completion", are learned."""
    updates: int = 100
    """Optimiser steps."""
    eval_every: int | None = 25
    """Updates between evaluations on the held-out prompts, the best of which is kept in best/; None: only before and
    after the run."""
    sample_every: int = 25
    """Updates between tables of samples."""
    separator: str = " "
    """What is put between a prompt and its response, unless there is white space already, or a chat template."""
    policy: OmitArgPrefixes[ActorConfig] = field(default_factory=ActorConfig)
    """Which weights learn."""
    sft: OmitArgPrefixes[SFTConfig] = field(default_factory=SFTConfig)
    """The algorithm."""


class SFT(SupervisedTrainer):
    """Maximises the likelihood of responses, EOS included, given their prompts; see `SupervisedTrainer`."""

    def loss(self, batch: TextBatch, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """−E[log π(x_t | x_<t)] over the response tokens of some examples."""
        tokens = batch.tokens.rows(rows)
        log_probs = self.policy(tokens).log_probs
        batch.scores[rows] = log_probs.detach().sum(dim=1) / tokens.response_lengths
        loss = language_model_loss(log_probs, tokens.response_mask)
        return loss, {"loss": loss.detach(), "perplexity": loss.detach().exp()}


def examples(venv: VectorEnv, language_model: LanguageModel, separator: str = " ") -> list[Example]:
    """Each prompt of an environment with each of its references, or with its column "completion".

    They are tokens as the environment would have them; a response that is longer than it allows is cut there.

    Args:
        venv: whose prompts and limits.
        language_model: whose tokens.
        separator: see `SFTSettings`.

    Raises:
        ValueError: a prompt has neither.
    """
    env, found = cast(Any, venv.unwrapped), []
    for number, prompt in enumerate(env.prompts):
        texts = [prompt.extra["completion"]] if "completion" in prompt.extra else prompt.references
        if not texts:
            raise ValueError(f'prompts[{number}]={prompt.text!r} has neither "references" nor a "completion" to learn')
        prompt_ids = tokenize_prompt(language_model, prompt, env.max_prompt_tokens, truncation=env.truncation)[0]
        for text in texts:
            ids = language_model.encode_as_is(_behind(prompt, text, separator)) + [language_model.end_token_id]
            found.append(Example(prompt.text, text, prompt_ids, ids))
    if too_long := sum(len(e.response_ids) > env.max_new_tokens for e in found):
        limit = f"max_new_tokens={env.max_new_tokens}"
        warn_user(f"{too_long} of {len(found)} responses are longer than {limit}, and cut there")
    return [e._replace(response_ids=e.response_ids[: env.max_new_tokens]) for e in found]


def _behind(prompt: Prompt, text: str, separator: str) -> str:
    apart = prompt.messages is not None or prompt.text[-1:].isspace() or text[:1].isspace()
    return text if apart else separator + text


def make_run(arguments: Sequence[str] | None = None) -> Run:
    """Everything up to the first update; see `main`."""

    def make_trainer(run: Run) -> SFT:
        settings, model = run.settings, run.policy.language_model
        train, held_out = (examples(venv, model, settings.separator) for venv in (run.venv, run.eval_venv))
        options = {"sampling": SamplingParams(settings.temperature), "seed": settings.seed}
        return SFT(run.policy, settings.sft, train, held_out=held_out, total_updates=settings.updates, **options)

    return run_of_command_line("textgen_env.agents.sft", SFTSettings, make_trainer, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.sft --help``"""
    make_run(arguments).execute()


if __name__ == "__main__":
    run_program(make_run)
