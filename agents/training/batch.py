"""What an update learns from: `Scores`, what the models say of a rollout, and `Batch`, with the advantages.

How they come about is the business of ``on_policy.py`` and of each algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from ..rollout import Rollout
from ..rollout_parts import select


@dataclass
class Batch:
    """A rollout with everything that an update treats as constant; tensors are (B, T), 0 off the response tokens."""

    rollout: Rollout
    micro_batches: list[Tensor]  # rows; each is one forward pass, of the same shape whenever it is run
    old_log_probs: Tensor
    values: Tensor | None  # of policies that have a critic
    ref_log_probs: Tensor | None
    rewards: Tensor  # with the KL penalty, if it is paid there
    advantages: Tensor
    returns: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    importance: Tensor | None = None  # weights by which the advantages are multiplied already; see importance.py
    kl_weight: Tensor | None = None  # by which an exact KL in the loss is multiplied; see kl_in.py

    def importance_of(self, rows: Tensor) -> Tensor | None:
        """(b, t) weights of some trajectories, if there are any."""
        return None if self.importance is None else self.rollout.cut(rows, self.importance)[0]

    def whole(self) -> Batch:
        """Only the responses that the agent wrote from the start, unless all were given a beginning."""
        begun = self.rollout.begun
        if begun is None or not (begun == 0).any():
            return self
        rows = (begun == 0).nonzero().flatten()
        grids: dict[str, Any] = {name: None if (grid := getattr(self, name)) is None else grid[rows] for name in GRIDS}
        return replace(self, rollout=select(self.rollout, rows.tolist()), micro_batches=[], **grids)

    @property
    def packs(self) -> list[Tensor]:
        """The former name of ``micro_batches``."""
        return self.micro_batches


GRIDS = ("old_log_probs", "values", "ref_log_probs", "rewards", "advantages", "returns", "importance")


class Scores(NamedTuple):
    """What policy and reference say of a rollout before the update; tensors are (B, T), 0 off the response tokens."""

    micro_batches: list[Tensor]
    log_probs: Tensor
    values: Tensor | None
    ref_log_probs: Tensor | None
    entropy: float  # mean over the tokens, nats
    kl: Tensor | None = None  # KL(π(·|s_t)‖π_ref(·|s_t)), nats, exactly; if the trainer has use for it
