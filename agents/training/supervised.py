"""Learning from texts that are given: what every supervised trainer shares.

What lives here: `SupervisedTrainer`, which deals examples into minibatches, epoch after epoch, and `TextBatch`. What
does not: the loss and where examples come from (``sft.py``), one optimiser step (``trainer.py``), the run (``run.py``).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from textgen_env.episode import Prompt
from textgen_env.lm.sampling import PLAIN, SamplingParams
from textgen_env.lm.token_batch import TokenBatch

from .seeds import derived_seed
from .trainer import GradientTrainer, OptimConfig, Trainable

POOL = 16  # minibatches that are dealt from texts drawn together, sorted by length


class Example(NamedTuple):
    """A prompt and the response that is to be learned, as texts and as tokens."""

    prompt: str
    response: str
    prompt_ids: list[int]
    response_ids: list[int]
    learned: list[int] | None = None  # 1 for each of response_ids that is, 0 for what an environment replied; None: all


def behind(prompt: Prompt, text: str, separator: str = " ") -> str:
    """A text as it stands behind a prompt: apart from it, unless one of the two sees to that."""
    apart = prompt.messages is not None or prompt.text[-1:].isspace() or text[:1].isspace()
    return text if apart else separator + text


@dataclass
class TextBatch:
    """Some examples as tensors; what a run shows of an update."""

    tokens: TokenBatch  # (B, T) each
    prompts: list[str]
    texts: list[str]
    scores: Tensor  # (B,) mean log π per response token, as the update finds it


class SupervisedTrainer(GradientTrainer):
    """One optimiser step per update, over a minibatch of examples; a subclass gives its `loss`.

    One whose examples are of another kind also gives `size`, `batch` and `weight`, and what `held_out` measures.

    Each epoch shuffles the examples by a generator of its own, so that the number of updates says where it stands.

    Args:
        policy: trained in place.
        config: settings.
        examples: what is learned from.
        held_out: what is not, for `held_out`.
        sampling: how the policy's responses to held-out prompts are sampled; the loss is of the plain distribution.
        seed: of the order.
        total_updates: length of the learning-rate schedule.

    Raises:
        ValueError: there are no examples.
    """

    def __init__(
        self,
        policy: Trainable,
        config: OptimConfig,
        examples: Sequence[Any],
        *,
        held_out: Sequence[Any] = (),
        sampling: SamplingParams = PLAIN,
        seed: int = 1,
        total_updates: int = 100,
    ) -> None:
        super().__init__(policy, config, total_updates)
        if not examples:
            raise ValueError("examples holds none; there is nothing to learn from")
        self.examples, self.held_out_examples, self.sampling, self.seed = examples, held_out, sampling, seed
        self._epoch: tuple[int, list[Tensor]] = (-1, [])

    def size(self, example: Any) -> int:
        """How many tokens an example has: those of similar size share a minibatch."""
        return len(example.prompt_ids) + len(example.response_ids)

    def groups(self) -> Tensor | None:
        """(N,) the group of each example: those of one are dealt side by side; None: each is dealt by itself."""
        return None

    def weight(self, batch: Any, rows: Tensor) -> int:
        """The loss is a mean over response tokens."""
        return int(batch.tokens.response_lengths[rows].sum())

    def batch(self, examples: Sequence[Any]) -> Any:
        """Examples as tensors, on the policy's device."""
        pairs = [e.prompt_ids for e in examples], [e.response_ids for e in examples]
        tokens = TokenBatch.from_tokens(*pairs, self.policy.language_model.pad_token_id)
        for response_mask, example in zip(tokens.response_mask, examples, strict=True):
            if example.learned is not None:
                response_mask[response_mask.bool()] = torch.tensor(example.learned)
        tokens = tokens.to(self.policy.device)
        scores = torch.zeros(len(examples), device=self.policy.device)
        return TextBatch(tokens, [e.prompt for e in examples], [e.response for e in examples], scores)

    def iterate(self) -> tuple[dict[str, float], Any]:
        """One update: its metrics, and what it learned from."""
        begin = time.perf_counter()
        self.policy.eval()
        per_epoch = math.ceil(len(self.examples) / self.config.minibatch_size)
        epoch, at = divmod(self.updates, per_epoch)
        batch, factor = self.batch([self.examples[i] for i in self._dealt(epoch)[at].tolist()]), self.lr_factor
        micro_batches = torch.arange(len(batch.texts), device=self.policy.device).split(self.config.micro_batch_size)
        metrics = self._gradient(batch, micro_batches)
        metrics |= {"grad_norm": self._step(factor), "lr": self.config.lr * factor}
        self.updates += 1
        metrics["epoch"] = self.updates / per_epoch
        metrics["tokens_per_second"] = int(batch.tokens.lengths.sum()) / (time.perf_counter() - begin)
        return metrics, batch

    def _dealt(self, epoch: int) -> list[Tensor]:
        """The minibatches of an epoch."""
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
            lengths = torch.tensor([self.size(example) for example in self.examples])
            self._epoch = (epoch, deal(lengths, self.config.minibatch_size, generator, self.groups()))
        return self._epoch[1]

    def train(self, updates: int) -> list[dict[str, float]]:
        """``updates`` of them; all metrics."""
        return [self.iterate()[0] for _ in range(updates)]

    def held_out(self) -> dict[str, float]:
        """``loss`` of the held-out examples, in nats per token, and ``perplexity``; nothing if there are none."""
        means = self.held_out_means()
        return means and {"loss": means["loss"], "perplexity": math.exp(min(means["loss"], 700.0))}  # e^710 is no float

    @torch.no_grad()
    def held_out_means(self) -> dict[str, float]:
        """The numbers that `loss` logs, of all held-out examples; nothing if there are none."""
        if not self.held_out_examples:
            return {}
        self.policy.eval()
        batch, sums = self.batch(sorted(self.held_out_examples, key=self.size)), defaultdict[str, list[float]](list)
        micro_batches = torch.arange(len(batch.texts), device=self.policy.device).split(self.config.micro_batch_size)
        for rows in micro_batches:
            for name, value in self.loss(batch, rows)[1].items():
                sums[name].append(self.weight(batch, rows) * float(value))
        total = sum(self.weight(batch, rows) for rows in micro_batches)
        return {name: math.fsum(values) / total for name, values in sums.items()}


def deal(lengths: Tensor, size: int, generator: torch.Generator, groups: Tensor | None = None) -> list[Tensor]:
    """Each index once, in minibatches of ``size`` in random order; texts of similar length share one.

    Args:
        lengths: (N,) tokens.
        size: of a minibatch; the last may be smaller.
        generator: source of the order.
        groups: (N,) numbers from 0 on; indices of one group lie side by side, as long as its longest text.
    """
    order = torch.randperm(len(lengths), generator=generator)
    if groups is not None:
        order, lengths = _side_by_side(order, groups), _longest(lengths, groups)
    pools = order.split(size * POOL)
    minibatches = [part for pool in pools for part in pool[lengths[pool].argsort(stable=True)].split(size)]
    return [minibatches[i] for i in torch.randperm(len(minibatches), generator=generator).tolist()]


def _side_by_side(order: Tensor, groups: Tensor) -> Tensor:
    """(N,) indices in an order, but each group as a whole where its first index is."""
    place = order.argsort()
    first = torch.full_like(place, len(place)).scatter_reduce(0, groups, place, "amin")
    return (first[groups] * len(place) + place).argsort()


def _longest(lengths: Tensor, groups: Tensor) -> Tensor:
    """(N,) the largest length of each index's group."""
    return torch.zeros_like(lengths).scatter_reduce(0, groups, lengths, "amax")[groups]
