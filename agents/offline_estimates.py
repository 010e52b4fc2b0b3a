"""What a policy would be worth, from episodes that another has played: importance sampling, with intervals.

What lives here: `OffPolicy`, the estimators and their bootstrap over prompts. What does not: log-probs and the command
(``ope.py``), the data set (``minari_data.py``).

With ρ_t = π_e(a_t|s_t)/π_b(a_t|s_t) and w_t = ρ_1·…·ρ_t:

    ordinary            E[w_T·Σ_t r_t]
    weighted            Σ w_T·Σ_t r_t / Σ w_T: biased by 1/n, of much less variance
    per decision        E[Σ_t w_t·r_t]: a reward is weighed by what led to it; with one reward, at the end, the ordinary
    doubly robust       E[Σ_t w_t·(r_t − Q(s_t, a_t)) + w_{t−1}·V(s_t)]: right where either ρ or Q and V are

All but the weighted are unbiased where π_b can write whatever π_e can.

References:
    Precup, Sutton & Singh, "Eligibility traces for off-policy policy evaluation" (2000).
    Jiang & Li, "Doubly robust off-policy value evaluation for reinforcement learning" (2016).
    Kong, "A note on importance sampling using standardized weights" (1992): effective sample size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .best_of_n import Estimate, Measure, bootstrap

ENOUGH = 100.0  # effective episodes, below which an interval is not to be relied upon


class OffPolicyEstimates(NamedTuple):
    """What came out.

    Attributes:
        behaviour: mean return of who played.
        values: by estimator, what the policy in question is worth; 95 % intervals over prompts.
        ess: (Σw)²/Σw² of whole episodes: how many of the policy's own they are worth.
        episodes: how many there are.
        mean_weight: of whole episodes; 1 in expectation, where π_b can write whatever π_e can.
    """

    behaviour: Estimate
    values: dict[str, Estimate]
    ess: float
    episodes: int
    mean_weight: Estimate

    @property
    def reliable(self) -> bool:
        """Whether there are effective episodes enough for the intervals to be what they say."""
        return self.ess >= ENOUGH


@dataclass(frozen=True)
class OffPolicy:
    """B episodes of π_b, and what π_e says of them; every tensor but the numbers is (B, T), read on the mask alone.

    Attributes:
        log_ratios: log π_e(a|s)/π_b(a|s), nats; −inf where π_e would not.
        rewards: of each token.
        response_mask: 1 on the tokens of the agent.
        prompts: the number of each episode's prompt: B of them.
        values: V(s_t), if there is a guess.
        action_values: Q(s_t, a_t); None: V(s_t) for every a, which leaves the estimate unbiased.

    Raises:
        ValueError: shapes that differ, no episodes, or a Q without a V.
    """

    log_ratios: Tensor
    rewards: Tensor
    response_mask: Tensor
    prompts: Sequence[int]
    values: Tensor | None = None
    action_values: Tensor | None = None

    def __post_init__(self) -> None:
        if self.action_values is not None and self.values is None:
            raise ValueError("action_values needs values beside it: V(s) is the mean of Q(s, a) under π_e")
        shape = self.response_mask.shape
        for name in ("log_ratios", "rewards", "values", "action_values"):
            if (grid := getattr(self, name)) is not None and grid.shape != shape:
                raise ValueError(f"{name} has shape {tuple(grid.shape)}; it must be that of the mask, {tuple(shape)}")
        if not shape[0] or len(self.prompts) != shape[0]:
            raise ValueError(f"prompts has {len(self.prompts)} numbers; it needs one for each of {shape[0]} episodes")

    def per_episode(self) -> dict[str, Tensor]:
        """(B,) float64 each: return, w_T, and what each estimator is a mean of."""
        rewards = self._read(self.rewards)
        after = self._read(self.log_ratios).cumsum(dim=1).exp()  # w_t
        whole, returns = after[:, -1], rewards.sum(dim=1)
        columns = {"return": returns, "weight": whole, "ordinary": whole * returns}
        columns["per decision"] = (after * rewards).sum(dim=1)
        if self.values is not None:
            before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)  # w_{t−1}
            values = self._read(self.values)
            actions = values if self.action_values is None else self._read(self.action_values)
            columns["doubly robust"] = (after * (rewards - actions) + before * values).sum(dim=1)
        return columns

    def _read(self, grid: Tensor) -> Tensor:
        return torch.where(self.response_mask.bool(), grid.double(), 0.0)

    def estimate(self, *, seed: int = 0) -> OffPolicyEstimates:
        """All estimators; the bootstrap draws prompts, or episodes where there is but one prompt.

        Args:
            seed: of the bootstrap.
        """
        columns = self.per_episode()
        _, numbers = torch.tensor(self.prompts).unique(return_inverse=True)
        if int(numbers.max()) == 0:
            numbers = torch.arange(len(self.prompts))
        columns["count"] = torch.ones_like(columns["return"])
        sums = {
            name: torch.zeros(int(numbers.max()) + 1, dtype=torch.float64).index_add(0, numbers, values.cpu())
            for name, values in columns.items()
        }
        ratios = {name: (name, "count") for name in columns if name != "count"} | {"weighted": ("ordinary", "weight")}
        measures: dict[str, Measure] = {name: partial(_ratio, *pair) for name, pair in ratios.items()}
        found, weights = bootstrap(sums, measures, seed=seed), columns["weight"]
        order = ["ordinary", "weighted", "per decision", *(["doubly robust"] if "doubly robust" in found else [])]
        ess = float(weights.sum().square() / weights.square().sum().clamp(min=1e-300))
        values = {name: found[name] for name in order}
        return OffPolicyEstimates(found["return"], values, ess, len(weights), found["weight"])


def _ratio(numerator: str, denominator: str, means: Mapping[str, Tensor]) -> Tensor:
    """Of two means; 0 where both are: no weight at all."""
    return means[numerator] / means[denominator].clamp(min=1e-300)
