"""One optimiser step over micro-batches: what on-policy and supervised trainers share.

What lives here: the optimiser's settings (`OptimConfig`), `GradientTrainer`, which turns a loss of its subclass into
steps, and which rows share a forward pass or a step. What does not: where data comes from (``on_policy.py``,
``supervised.py``), losses (each algorithm's own file), the optimiser (``optim.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from textgen_env.lm.token_batch import TokenBatch

from .finite import check_finite
from .optim import MasterAdamW, clip_grad_norm, lr_factor
from .setting_checks import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, POSITIVE, check, choice


@dataclass
class OptimConfig:
    """How weights are stepped.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range, with its name and what would be right.
    """

    minibatch_size: int = 32
    """Texts per optimiser step."""
    micro_batch_size: int = 32
    """Texts per forward pass; gradients accumulate over minibatch_size / micro_batch_size of them."""
    lr: float = 4e-4
    """Peak learning rate of the actor (and of a separate critic). 4e-4 suits a model of a few million weights and LoRA;
    for all weights of one of 100 million begin between 1e-5 and 3e-5."""
    warmup_updates: int = 3
    """Updates of linear warm-up."""
    lr_decay: Literal["constant", "linear", "cosine"] = "linear"
    """What the learning rate does after the warm-up, over the whole run."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""

    def __post_init__(self) -> None:
        check(self, RULES)
        if self.minibatch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size} must divide minibatch_size={self.minibatch_size}"
            )


RULES = {
    **dict.fromkeys(("minibatch_size", "micro_batch_size"), COUNT),
    "warmup_updates": COUNT_OR_ZERO,
    **dict.fromkeys(("lr", "weight_decay"), NOT_NEGATIVE),
    "max_grad_norm": POSITIVE,
    "lr_decay": choice("constant", "linear", "cosine"),
}


class Trainable(Protocol):
    """What a trainer needs of what it trains, a policy or a reward model; algorithms may need more of theirs."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def parameter_groups(self, lr: float, value_lr: float = 0.0) -> list[dict[str, Any]]:
        """What learns: the backbone at ``lr``, a critic's head, if there is one, at ``value_lr``."""

    def eval(self) -> Any:
        """Switch dropout off."""


class GradientTrainer:
    """Steps a policy down the gradient of `loss`. A subclass gives it, and by `weight` what it is a mean over.

    Args:
        policy: trained in place.
        config: settings.
        total_updates: length of the learning-rate schedule.

    Attributes:
        updates: how many it has done.
    """

    largest: ClassVar[frozenset[str]] = frozenset({"ratio_error"})
    """Parts of a loss of which the largest counts, not the mean."""
    kl_coef: float = 0.0
    """β of the objective score − β·KL; 0 for a trainer that has no other."""

    def __init__(self, policy: Trainable, config: OptimConfig, total_updates: int) -> None:
        self.policy: Any = policy
        self.total_updates, self.updates = total_updates, 0
        self.config: Any = config
        groups = policy.parameter_groups(config.lr, getattr(config, "value_lr", config.lr))
        self.optimizer = MasterAdamW(groups, weight_decay=config.weight_decay)

    def loss(self, batch: Any, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise for some rows of a batch, with gradient, and the numbers to log."""
        raise NotImplementedError

    def weight(self, batch: Any, rows: Tensor) -> int:
        """How much these rows weigh in the mean over a minibatch."""
        raise NotImplementedError

    @property
    def lr_factor(self) -> float:
        """Share of the peak learning rate in this update."""
        cfg = self.config
        return lr_factor(self.updates, self.total_updates, cfg.warmup_updates, cfg.lr_decay)

    def _gradient(self, batch: Any, minibatch: Sequence[Tensor]) -> dict[str, float]:
        """Accumulate the gradient of the mean loss over the micro-batches of a minibatch."""
        totals: dict[str, float] = defaultdict(float)
        weights = [self.weight(batch, rows) for rows in minibatch]
        for rows, weight in zip(minibatch, weights, strict=True):
            loss, parts = self.loss(batch, rows)
            self._check("loss", loss)
            share = weight / max(1, sum(weights))
            (share * loss).backward()
            self.optimizer.accumulate()
            for name, value in parts.items():
                largest, mean = max(totals[name], float(value)), totals[name] + share * float(value)
                totals[name] = largest if name in self.largest else mean
        return dict(totals)

    def _step(self, factor: float) -> float:
        """One step with the accumulated gradient, unless it is not finite; its norm before it was clipped."""
        norm = clip_grad_norm(self.optimizer, self.config.max_grad_norm)
        self._check("gradient norm", torch.tensor(norm))
        self.optimizer.step(factor)
        return norm

    def _check(self, name: str, values: Tensor) -> None:
        check_finite(name, values, f"in update {self.updates + 1}")

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, between two updates."""
        return {"updates": self.updates, "optimizer": self.optimizer.state_dict()}  # with all weights that learn, fp32

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as if never stopped, in a trainer that was made with the same arguments."""
        self.updates = int(state["updates"])
        self.optimizer.load_state_dict(state["optimizer"])


def bucket_by_length(tokens: TokenBatch, size: int, generator: torch.Generator) -> list[Tensor]:
    """Rows in micro-batches of ``size``, of similar length so that little is padding; rows of one length shuffled."""
    order = torch.randperm(len(tokens.input_ids), generator=generator).to(tokens.input_ids.device)
    return list(order[tokens.lengths[order].argsort(stable=True)].split(size))


def minibatches(
    micro_batches: list[Tensor], size: int, epochs: int, generator: torch.Generator
) -> Iterator[list[Tensor]]:
    """The micro-batches of each optimiser step, ``size`` of them, shuffled again in each of the epochs."""
    for _ in range(epochs):
        order = torch.randperm(len(micro_batches), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield [micro_batches[i] for i in order[start : start + size]]


def join(tokens: TokenBatch, micro_batches: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """(b, t) tensors of the micro-batches, each cut as `TokenBatch.cut` does → (B, T), 0 where none has anything."""
    grid = torch.zeros(tokens.response_mask.shape, device=tokens.response_mask.device)
    for rows, part in zip(micro_batches, parts, strict=True):
        grid[rows, : part.shape[1]] = part
    return grid
