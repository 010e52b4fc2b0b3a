"""Responses that branch, and branch again: what each of their tokens is worth, where all of them are learned from.

What lives here: `grow`, which plays trees of responses, and the advantages of their tokens. What does not: the loss
(``vine_ppo.py``), the tree that searches read (``branching.py``).

k responses to a prompt are a family. At each branch point t = m, 2m, …, whatever is still being written becomes one of
a family of k: itself, and k − 1 that go on from its first t tokens. So a prefix is decoded once for all that share it,
and the later a token, the more others were tried in its place. With V̂(s) the mean of what a family was paid from s on,
families further down counted likewise, the advantage of the tokens between two branch points is

    A = Σ r + V̂(s_{i+1}) − V̂₋(s_i),

V̂₋(s_i) being the mean of the *other* members of the family at s_i: independent of those tokens, and unbiased.

References:
    Guo et al., "Segment policy optimization" (2025): SPO-tree, there with a member's own return in its baseline.
    Hou et al., "TreeRL: LLM reinforcement learning with on-policy tree search" (2025).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .rollout import Rollout
from .rollout_parts import begun_lengths, join, select, whole_responses
from .training.on_policy import OnPolicyTrainer


class BranchEstimates(NamedTuple):
    """What branch points tell of the tokens of a rollout, (B, T) each."""

    advantages: Tensor
    values: Tensor  # of the branch point before a token
    weights: Tensor  # how much a token counts
    branch_points: int


def grow(trainer: OnPolicyTrainer, prompts: Sequence[int], count: int, every: int) -> Rollout:
    """Play responses to some prompts, one each, which branch as the module's docstring says.

    Args:
        trainer: whose policy, environment and generator are used.
        prompts: each ``count`` times, one response for each slot at least.
        count: k ≥ 2.
        every: m, tokens.

    Returns:
        All of them, those from the start first; each tells only of the tokens behind its own branch point.
    """
    chosen, parts = list(prompts), [play(trainer, prompts)]
    written = whole_responses(parts[0])
    for at in range(every, trainer.env.max_new_tokens, every):
        parents = [row for row, tokens in enumerate(written) if len(tokens) > at for _ in range(count - 1)]
        if not parents:
            break
        more = [chosen[row] for row in parents]
        parts.append(play(trainer, more, [written[row][:at] for row in parents]))
        written += whole_responses(parts[-1])
        chosen += more
    return join(parts)


def play(trainer: OnPolicyTrainer, prompts: Sequence[Any], responses: Sequence[Sequence[int]] | None = None) -> Rollout:
    """One response to each of some prompts, with what it begins with; there may be fewer than slots.

    Raises:
        ValueError: one was cut from outside, without a score, and is not worth anything that is known.
    """
    spare = [len(prompts) - 1] * max(0, trainer.venv.num_envs - len(prompts))  # every slot plays at least one
    rows = [*range(len(prompts)), *spare]
    begun = None if responses is None else [responses[row] for row in rows]
    rollout = OnPolicyTrainer.collect(trainer, [prompts[row] for row in rows], responses=begun)
    if cut := int(rollout.bootstrapped.sum()):
        raise ValueError(f"{cut} continuations were cut from outside, without a score; take the limit of steps away")
    return select(rollout, range(len(prompts))) if spare else rollout


def tree_advantages(rollout: Rollout, rewards: Tensor, count: int, every: int) -> BranchEstimates:
    """A, V̂₋, and weights that go with 1/k^i behind i branch points, so that each depth weighs what the start does.

    Args:
        rollout: what `grow` returned.
        rewards: (B, T), with whatever is paid besides, such as the KL.
        count, every: as they were for `grow`.
    """
    mask, begun = rollout.response_mask, begun_lengths(rollout)
    levels = torch.where(mask.bool(), (mask.cumsum(dim=1) - 1 + begun[:, None]) // every, -1)  # (B, T)
    families = families_of(rollout, every)
    worth: dict[tuple[int, int], float] = {}
    for row, level in sorted(families, key=lambda place: -place[1]):
        below = [worth[member, level + 1] for member in families.get((row, level + 1), ())]
        paid = float(rewards[row, levels[row] == level].double().sum())
        worth[row, level] = paid + (sum(below) / len(below) if below else 0.0)
    advantages, values, weights = (torch.zeros_like(rewards) for _ in range(3))
    roots = int((begun == 0).sum())
    for (row, level), family in families.items():
        here, others = levels[row] == level, [worth[member, level] for member in family if member != row]
        values[row, here] = sum(others) / len(others)
        advantages[row, here] = worth[row, level] - sum(others) / len(others)
        weights[row, here] = len(mask) / roots / count**level
    return BranchEstimates(advantages, values, weights, len({id(family) for family in families.values()}))


def families_of(rollout: Rollout, every: int) -> dict[tuple[int, int], list[int]]:
    """(row, number of a branch point on its way) → all rows that part there: they go on from the same tokens."""
    assert rollout.chosen_prompts is not None
    begun = begun_lengths(rollout).tolist()
    states: dict[Hashable, list[int]] = defaultdict(list)
    families = {}
    for row, (prompt, tokens) in enumerate(zip(rollout.chosen_prompts, whole_responses(rollout), strict=True)):
        for at in range(begun[row], len(tokens), every):
            families[row, at // every] = states[prompt, tuple(tokens[:at])]
            states[prompt, tuple(tokens[:at])].append(row)
    return families
