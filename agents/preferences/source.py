"""Where a run has its pairs from: a file, or the model itself, labelled by the task's scorer.

What lives here: the settings, and `gather`, the training and held-out pairs of a run. What does not: pairs and files
(``pairs.py``), the labeller and sampling (``labellers.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from gymnasium.vector import VectorEnv

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams
from textgen_env.scorers.answers import scorer_name

from ..training.run import Run
from ..training.setting_checks import COUNT, NOT_NEGATIVE, SHARE, TEXT, check, optional, whole
from .comparisons import sample_comparisons
from .labellers import SyntheticLabeller, agreement
from .pairs import Pair, as_row, read_pairs


@dataclass
class JudgeConfig:
    """How the synthetic labeller judges."""

    label_temperature: float = 0.0
    """Of the synthetic labeller, in units of the score: it prefers a with probability σ((s_a − s_b) / temperature)."""
    label_flip: float = 0.0
    """Share of its preferences that are turned round; 0.5 makes labels that say nothing."""
    label_tie: float = 0.0
    """It calls scores that differ by less than this a tie."""

    def __post_init__(self) -> None:
        check(self, {"label_flip": SHARE, **dict.fromkeys(("label_temperature", "label_tie"), NOT_NEGATIVE)})

    def judge(self, seed: int) -> SyntheticLabeller:
        """The labeller, which judges by the column "scores" of a pair."""
        temperature, flip, tie = self.label_temperature, self.label_flip, self.label_tie
        return SyntheticLabeller(temperature=temperature, flip=flip, tie=tie, seed=seed)

    def self_agreement(self, pairs: Sequence[Pair], seed: int) -> float:
        """How often the labeller says the same again, with other luck: the mean of 16 further labellings.

        Args:
            pairs: labelled by it.
            seed: that it labelled them with.
        """
        return math.fsum(agreement(pairs, self.judge((seed + i) % 2**32)(pairs)) for i in range(1, 17)) / 16


@dataclass
class PairConfig(JudgeConfig):
    """Which pairs are learned from."""

    pairs: str | None = None
    """A JSONL file, in our own form or in TRL's; None: responses of the model to each prompt, labelled by the
    task's scorer."""
    responses: int = 2
    """Responses to a prompt, K, of which all K·(K − 1)/2 pairs are labelled, where there is no file."""
    train_pairs: int = 512
    """Pairs that are sampled, where there is no file."""
    held_out_pairs: int = 128
    """Pairs that are not learned from: sampled on the held-out prompts, or those of some prompts of the file, at most a
    fifth of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = {"responses": whole(2), **dict.fromkeys(("train_pairs", "held_out_pairs"), COUNT)}
        check(self, {"pairs": optional(TEXT), **counts})


def gather(run: Run, config: PairConfig, language_model: LanguageModel) -> tuple[list[Pair], list[Pair]]:
    """The training and held-out pairs of a run, those with something to learn; its checkpoints are bound to them.

    Args:
        run: whose environments, settings and folder.
        config: which pairs.
        language_model: whose responses are sampled.

    Raises:
        FileNotFoundError, ValueError: the file; or there is nothing to learn from.
    """
    if config.pairs is None:
        sets = _sampled(run, config, language_model)
    else:
        sets = split_pairs(read_pairs(config.pairs), config.held_out_pairs)
    train, held_out = ([pair for pair in pairs if pair.ranked] for pairs in sets)
    if silent := sum(map(len, sets)) - len(train) - len(held_out):
        run.display.say(f'{silent} pairs are left out: no choice, or "cannot tell"')
    if not train:
        raise ValueError(f"pairs={config.pairs!r}: none of {len(sets[0])} pairs has a choice to learn from")
    run.run_folder.bind(pairs=[list(map(as_row, pairs)) for pairs in (train, held_out)])
    return train, held_out


def split_pairs(pairs: Sequence[Pair], held_out: int) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs, all pairs of one prompt on one side; the same split whatever the run's seed.

    Args:
        pairs: any.
        held_out: pairs to hold out, or a few more; never more than a fifth of all.
    """
    by_prompt: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_prompt.setdefault(repr(pair.prompt), []).append(pair)
    groups, most = list(by_prompt.values()), len(pairs) // 5
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0)).tolist()
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for group in (groups[i] for i in order):
        room = len(sides[1]) < held_out and len(sides[1]) + len(group) <= most
        sides[room].extend(group)
    return sides


def _sampled(run: Run, config: PairConfig, language_model: LanguageModel) -> tuple[list[Pair], list[Pair]]:
    settings = run.settings
    labeller = config.judge(settings.seed)
    generator = torch.Generator(next(language_model.model.parameters()).device).manual_seed(settings.seed)

    def sample(venv: VectorEnv, count: int) -> list[Pair]:
        options: dict[str, Any] = {"generator": generator, "sampling": SamplingParams(settings.temperature)}
        sampled = sample_comparisons(venv, language_model, count, config.responses, **options)
        judge = scorer_name(cast(Any, venv.unwrapped).scorer)
        dropped = f"; {sampled.dropped} prompts dropped, whose responses are all alike" if sampled.dropped else ""
        run.display.say(f"{len(sampled.pairs)} pairs of the model's own, labelled by {judge!r}{dropped}")
        return labeller(sampled.pairs)

    return sample(run.venv, config.train_pairs), sample(run.eval_venv, config.held_out_pairs)
