"""A reward model from pairs of responses: a sequence classifier that environments take as their scorer.

What lives here: the loss of a minibatch, its settings, its run, and the command
(``python -m textgen_env.agents.reward_model``). What does not: the loss functions (``preference_losses.py``), the
model, pairs and calibration (``preferences/``), minibatches (``training/supervised.py``).

References:
    Christiano et al., "Deep reinforcement learning from human preferences" (2017): ensembles on bootstraps.
    Ouyang et al., "Training language models to follow instructions with human feedback" (2022).
    Touvron et al., "Llama 2: open foundation and fine-tuned chat models" (2023): margins by strength of preference.
    Eisenstein et al., "Helping or herding? Reward model ensembles mitigate but do not eliminate reward hacking" (2023):
    centred rewards.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.token_batch import TokenBatch

from .preference_losses import preference_accuracy, preference_loss
from .preferences.calibration import calibration_error, draw_calibration, preference_metrics, reliability
from .preferences.pairs import Pair
from .preferences.rewards import RewardModel
from .preferences.source import JudgeConfig, PairConfig, gather
from .training.command_line import run as run_program
from .training.evaluate import EvalReport
from .training.extra import OmitArgPrefixes
from .training.files import replace_file
from .training.metrics_log import read_metrics
from .training.report import before_after_table
from .training.run import Run, run_of_command_line
from .training.run_settings import RunSettings
from .training.setting_checks import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, check, optional
from .training.supervised import SupervisedTrainer
from .training.trainer import OptimConfig


@dataclass
class RewardModelConfig(OptimConfig):
    """Settings of model and algorithm; minibatches and micro-batches are counted in pairs."""

    minibatch_size: int = 112
    """Pairs per optimiser step: those of four prompts with eight responses each. Pairs of one prompt come together, and
    each of its responses is read once."""
    micro_batch_size: int = 112
    """Pairs per forward pass; gradients accumulate over minibatch_size / micro_batch_size of them."""
    members: int = 1
    """Models of an ensemble; where there are several, each learns from a bootstrap sample of the pairs."""
    lora_rank: int = 0
    """Rank of LoRA adapters on all linear layers of each member; 0 trains the weights themselves."""
    lora_alpha: int = 32
    """LoRA scale: the update is alpha / rank · B·A."""
    fresh_layers: int | None = None
    """Transformer blocks, from the output down, that begin with fresh weights instead of the language model's. None:
    all of a model of less than ten million weights, whose states say less of what is preferred than its embeddings do;
    none of a larger one."""
    frozen_layers: int = 0
    """Transformer blocks, from the input up, that do not learn; any number above 0 freezes the embeddings too."""
    margin: float = 0.0
    """By how much the preferred response is to win, in units of the reward."""
    strength_margin: float = 0.0
    """What is added to that for each unit of a pair's column "strength", how much better the rater found it: the margin
    of Llama 2."""
    center_coef: float = 0.01
    """Weight of E[(r_a + r_b)²], which keeps rewards near 0: preferences leave their level open."""
    lr: float = 1e-3
    """Peak learning rate of backbones. 1e-3 suits a model of a few million weights; for one of 100 million begin
    between 5e-6 and 2e-5."""
    value_lr: float = 5e-3
    """Peak learning rate of heads, which start at zero: until they say something, nothing below them learns."""
    warmup_updates: int = 10
    """Updates of linear warm-up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, dict.fromkeys(("members", "lora_alpha"), COUNT))
        check(self, dict.fromkeys(("lora_rank", "frozen_layers"), COUNT_OR_ZERO))
        check(self, {"fresh_layers": optional(COUNT_OR_ZERO)})
        check(self, dict.fromkeys(("margin", "strength_margin", "center_coef", "value_lr"), NOT_NEGATIVE))


@dataclass
class RewardModelSettings(RunSettings):
    """Train a reward model on preferences."""

    updates: int = 400
    """Optimiser steps."""
    data: OmitArgPrefixes[PairConfig] = field(
        default_factory=lambda: PairConfig(responses=8, train_pairs=22400, held_out_pairs=2240)
    )
    """Which pairs are learned from."""
    reward_model: OmitArgPrefixes[RewardModelConfig] = field(default_factory=RewardModelConfig)
    """Model and algorithm."""


class RewardExample(NamedTuple):
    """A pair as tokens, the preferred response first."""

    prompt: str
    text: str  # the preferred response
    ids: tuple[list[int], list[int]]
    target: float  # P(first ≻ second): 1, or ½ for a tie
    weights: tuple[float, ...]  # one per member: how often it is in its bootstrap sample
    strength: float = 0.0  # of the preference


@dataclass
class RewardBatch:
    """B pairs as tensors; a text that is in several of them is one row of the tokens."""

    tokens: TokenBatch  # (texts, T)
    rows: Tensor  # (B, 2) of the tokens: the first text of each pair, and the second
    targets: Tensor  # (B,)
    weights: Tensor  # (members, B)
    strengths: Tensor  # (B,)
    prompts: list[str]
    texts: list[str]
    scores: Tensor  # (B,) r(first) − r(second), the mean over members, as the update finds it


class RewardModelTrainer(SupervisedTrainer):
    """Fits rewards to pairs; see `SupervisedTrainer`, whose ``policy`` is a `RewardModel`."""

    def size(self, example: RewardExample) -> int:
        """Tokens of the longer text."""
        return max(map(len, example.ids))

    def groups(self) -> Tensor:
        """Pairs of one prompt are dealt side by side: those that share a text need to read it only once."""
        number: dict[str, int] = {}
        return torch.tensor([number.setdefault(e.prompt, len(number)) for e in self.examples])

    def weight(self, batch: RewardBatch, rows: Tensor) -> int:
        """The loss is a mean over pairs."""
        return len(rows)

    def batch(self, examples: Sequence[RewardExample]) -> RewardBatch:
        """Pairs as tensors, on the model's device."""
        found: dict[tuple[int, ...], int] = {}
        pairs = [[found.setdefault(tuple(ids), len(found)) for ids in e.ids] for e in examples]
        tokens, device = self.policy.batch(list(found)), self.policy.device
        targets = torch.tensor([e.target for e in examples], device=device)
        weights = torch.tensor([e.weights for e in examples], device=device).T
        strengths = torch.tensor([e.strength for e in examples], device=device)
        told = [e.prompt for e in examples], [e.text for e in examples]
        rows = torch.tensor(pairs, device=device)
        return RewardBatch(tokens, rows, targets, weights, strengths, *told, torch.zeros_like(targets))

    def loss(self, batch: RewardBatch, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """−E[log σ(r(first) − r(second) − m)] + c·E[(r(first) + r(second))²], the mean over members.

        With m = margin + strength_margin·strength (Touvron et al. 2023, eq. 2).

        A tie is half of each direction, without a margin.
        """
        texts, place = batch.rows[rows].unique(return_inverse=True)  # (n,), (b, 2)
        rewards = self.policy(batch.tokens.rows(texts))[:, place]  # (members, b, 2)
        first, second = rewards.unbind(-1)
        targets, weights = batch.targets[rows].expand_as(first), batch.weights[:, rows]
        margins = self.config.margin + self.config.strength_margin * batch.strengths[rows]
        margins = torch.where(targets == 1, margins, 0.0)
        fit = preference_loss(first - second - margins, targets, weights)
        loss = fit + self.config.center_coef * (weights * (first + second).square()).mean()
        difference = (first - second).detach().mean(dim=0)
        batch.scores[rows] = difference
        parts = {"loss": loss, "accuracy": preference_accuracy(difference, targets[0]), "reward": rewards.mean()}
        return loss, {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def held_out_differences(self) -> tuple[Tensor, Tensor]:
        """Of the held-out pairs: (members, N) r(first) − r(second), and (N,) targets; on the CPU."""
        parts, size = [], self.config.micro_batch_size
        for start in range(0, len(self.held_out_examples), size):
            batch = self.batch(self.held_out_examples[start : start + size])
            first, second = self.policy(batch.tokens)[:, batch.rows].unbind(-1)
            parts.append((first - second).cpu())
        return torch.cat(parts, dim=1), torch.tensor([e.target for e in self.held_out_examples])

    def held_out(self) -> dict[str, float]:
        """``loss`` and ``accuracy`` of the held-out pairs; `RewardModelRun` measures more."""
        return self.held_out_means()


def examples(
    pairs: Sequence[Pair], model: RewardModel, generator: torch.Generator | None = None
) -> list[RewardExample]:
    """Pairs as tokens; those without anything to learn are left out.

    Args:
        pairs: any.
        model: whose tokens and how many members.
        generator: source of a bootstrap sample per member; None: each pair counts once for each.
    """
    ranked = [(pair, found) for pair in pairs if (found := pair.ranked)]
    count, members = len(ranked), len(model.members)
    weights = torch.ones(members, count)
    if generator is not None:
        drawn = torch.randint(count, (members, count), generator=generator)
        weights = torch.stack([row.bincount(minlength=count).float() for row in drawn])
    made = []
    for (pair, (first, _, target)), own in zip(ranked, weights.T.tolist(), strict=True):
        a, b = model.encode(pair)
        ids = (a, b) if first == pair.a else (b, a)
        made.append(RewardExample(pair.as_prompt.text, first, ids, target, tuple(own), pair.strength))
    return made


LAYERS = ("fresh_layers", "frozen_layers", "lora_rank", "lora_alpha")


class RewardModelRun(Run):
    """A run whose model writes nothing: held-out pairs take the place of responses to held-out prompts."""

    prefix, best_by = "reward-model-", "accuracy"
    trainer: Any  # a `RewardModelTrainer`
    judge: JudgeConfig | None = None
    """Who labelled the pairs, if it was the synthetic labeller."""
    held_out_pairs: Sequence[Pair] = ()

    @cached_property
    def judge_agreement(self) -> float | None:
        """How often the judge agrees with itself on the held-out pairs; None if it is not known."""
        return None if self.judge is None else self.judge.self_agreement(self.held_out_pairs, self.settings.seed)

    def make_policy(self) -> Any:
        """The reward model."""
        settings, config = self.settings, self.settings.reward_model
        language_model = LanguageModel(settings.model, device=settings.device, dtype=settings.dtype)
        weights = {name: getattr(config, name) for name in LAYERS}
        return RewardModel(language_model, config.members, **weights, seed=settings.seed)

    def make_reference(self) -> Any:
        """None: there is no KL."""
        return None

    def evaluate(self) -> EvalReport:
        """Accuracy, alone and beside the judge's own, log-loss, calibration and disagreement on the held-out pairs."""
        differences, targets = self.trainer.held_out_differences()
        mean = differences.mean(dim=0)
        held_out = self.trainer.held_out_examples
        measured = preference_metrics(mean, targets, [e.prompt for e in held_out])
        metrics = {name: values[0] for name, values in measured.items()}
        metrics["calibration_error"] = calibration_error(reliability(mean, targets))
        if len(differences) > 1:
            metrics["disagreement"] = float(differences.std(dim=0).mean())
        if self.judge_agreement:
            measured["judge_share"] = [value / self.judge_agreement for value in measured["accuracy"]]
            metrics["judge_share"] = measured["judge_share"][0]
        left_out = {name: values[1:] for name, values in measured.items() if len(values) > 2}
        return EvalReport(metrics, [e.prompt for e in held_out], [e.text for e in held_out], mean.tolist(), left_out)

    def _report(self) -> None:
        evaluations = self._keep_last(self.evaluate())
        targets = torch.tensor([example.target for example in self.trainer.held_out_examples])
        table = reliability(torch.tensor(evaluations[1].scores), targets)

        def draw(path: Path) -> None:
            records, title = read_metrics(self.folder / "metrics.jsonl"), f"reward model of {self.settings.env}"
            draw_calibration(path, records, table, title, self.judge_agreement)

        self.display.attempt("plot.png", lambda: replace_file(self.folder / "plot.png", draw))
        self.display.attempt("the table of before and after", lambda: before_after_table(*evaluations))
        scorer = {"name": "classifier", "model": str(self.folder / "last"), "output": "logit"}
        self.display.say(f"as a scorer: --scorer {shlex.quote(json.dumps(scorer))}")
        self._say_what_is_left()


def make_trainer(run: Run) -> RewardModelTrainer:
    """The trainer of a `RewardModelRun`, on its pairs."""
    settings, model = run.settings, cast(Any, run.policy)
    train, held_out = gather(run, settings.data, model.language_model)
    if isinstance(run, RewardModelRun):
        run.held_out_pairs = held_out
        run.judge = settings.data if settings.data.pairs is None else run.judge
    config, generator = settings.reward_model, torch.Generator().manual_seed(settings.seed)
    sets = examples(train, model, generator if config.members > 1 else None), examples(held_out, model)
    if not sets[1]:
        raise ValueError("no pair is left to hold out; give some more, of several prompts")
    options = {"seed": settings.seed, "total_updates": settings.updates}
    return RewardModelTrainer(model, config, sets[0], held_out=sets[1], **options)


def make_run(arguments: Sequence[str] | None = None) -> Run:
    """Everything up to the first update; see `main`."""
    return run_of_command_line(
        "textgen_env.agents.reward_model", RewardModelSettings, make_trainer, arguments, RewardModelRun
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.reward_model --help``"""
    make_run(arguments).execute()


if __name__ == "__main__":
    run_program(make_run)
