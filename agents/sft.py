"""Supervised fine-tuning: the responses of a data set, given their prompts.

What lives here: the loss, its settings, which texts are learned (references, or recorded episodes: behaviour cloning),
and the door of the command line (``python -m textgen_env.agents.sft``). What does not: minibatches and epochs
(``training/supervised.py``), the run (``training/run.py``), which judges responses to held-out prompts by the task's
scorer, as for every trainer; the data set of recorded episodes (``minari_data.py``).

References:
    Chen et al., "Decision transformer" (2021), section 5: behaviour cloning of the best share of episodes, "%BC".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams
from textgen_env.notices import warn_user

from .losses import language_model_loss
from .policy import ActorConfig
from .training.command_line import run as run_program
from .training.extra import OmitArgPrefixes
from .training.run import Run, run_of_command_line
from .training.run_settings import RunSettings
from .training.setting_checks import FLAG, MASS, TEXT, check, optional
from .training.supervised import Example, SupervisedTrainer, TextBatch, behind
from .training.trainer import OptimConfig

if TYPE_CHECKING:
    from .minari_data import RecordedEpisodes


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
    dataset: str | None = None
    """Recorded episodes to learn instead of references: a folder that `textgen record` has written."""
    best_share: float = 1.0
    """Learn this share of the recorded episodes, those with the best scores; 1 for all."""
    per_prompt: bool = False
    """Take that share of each prompt's episodes, not of all."""
    policy: OmitArgPrefixes[ActorConfig] = field(default_factory=ActorConfig)
    """Which weights learn."""
    sft: OmitArgPrefixes[SFTConfig] = field(default_factory=SFTConfig)
    """The algorithm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, {"dataset": optional(TEXT), "best_share": MASS, "per_prompt": FLAG})


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
        prompt_ids = env.engine.starts.read(prompt)[0]
        for text in texts:
            ids = language_model.encode_as_is(behind(prompt, text, separator)) + [language_model.end_token_id]
            found.append(Example(prompt.text, text, prompt_ids, ids))
    if too_long := sum(len(e.response_ids) > env.max_new_tokens for e in found):
        limit = f"max_new_tokens={env.max_new_tokens}"
        warn_user(f"{too_long} of {len(found)} responses are longer than {limit}, and cut there")
    return [e._replace(response_ids=e.response_ids[: env.max_new_tokens]) for e in found]


def recorded_examples(recorded: RecordedEpisodes, share: float = 1.0, *, per_prompt: bool = False) -> list[Example]:
    """Recorded episodes as examples: what the agent wrote is learned, what an environment replied is not.

    Args:
        recorded: the episodes.
        share: of them, those with the best scores; 1 for all.
        per_prompt: take that share of each prompt's.
    """
    rollout, found = recorded.rollout, []
    for row in best(rollout.scores, share, rollout.chosen_prompts if per_prompt else None):
        length, mask = int(rollout.tokens.lengths[row]), rollout.response_mask[row]
        begin = int(mask.argmax())  # a response is behind all of its prompt
        ids, learned = (grid[row, :length].tolist() for grid in (rollout.input_ids, rollout.response_mask))
        texts = rollout.prompts[row], rollout.texts[row]
        found.append(Example(*texts, ids[:begin], ids[begin:], learned[begin:]))
    return found


def best(scores: Tensor, share: float, groups: Sequence[int] | None = None) -> list[int]:
    """Rows of the best share of scores, rounded up, in their order; earlier ones among equals, those without one last.

    Args:
        scores: (B,), NaN where there is none.
        share: above 0 and up to 1.
        groups: the group of each row; None: all are one. The share is of each.
    """
    numbers = torch.zeros(len(scores)) if groups is None else torch.tensor(groups)
    kept = []
    for group in numbers.unique():
        rows = (numbers == group).nonzero().flatten()
        order = scores[rows].nan_to_num(-math.inf).sort(descending=True, stable=True).indices
        kept += rows[order[: math.ceil(share * len(rows))]].tolist()
    return sorted(kept)


def make_trainer(run: Run) -> SFT:
    """The trainer of a run, on the references of its prompts, or on recorded episodes."""
    settings, model = run.settings, run.policy.language_model
    if settings.dataset is None:
        train, held_out = (examples(venv, model, settings.separator) for venv in (run.venv, run.eval_venv))
    else:
        from .minari_data import read  # Minari is an extra of its own

        recorded = read(settings.dataset)
        recorded.check_fits(run.venv, run.eval_venv)
        run.run_folder.bind(dataset=recorded.fingerprint)
        train, held_out = recorded_examples(recorded, settings.best_share, per_prompt=settings.per_prompt), []
    options = {"sampling": SamplingParams(settings.temperature), "seed": settings.seed}
    return SFT(run.policy, settings.sft, train, held_out=held_out, total_updates=settings.updates, **options)


def make_run(arguments: Sequence[str] | None = None) -> Run:
    """Everything up to the first update; see `main`."""
    return run_of_command_line("textgen_env.agents.sft", SFTSettings, make_trainer, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.sft --help``"""
    make_run(arguments).execute()


if __name__ == "__main__":
    run_program(make_run)
