"""Rollouts taken apart and put together.

What lives here: `select`, some trajectories of a rollout, `join`, those of several, and the tokens of
whole responses, with what they were given to begin with. What does not: how they are played (``rollout.py``),
minibatches (``training/trainer.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from textgen_env.lm.token_batch import TokenBatch

from .action_masks import ActionMasks
from .rollout import Rollout


def select(rollout: Rollout, rows: Sequence[int]) -> Rollout:
    """Some trajectories, in this order and as wide as they were; ``failed_episodes`` stays that of the rollout."""
    index = torch.tensor(rows, dtype=torch.int64, device=rollout.input_ids.device)
    masks, states, chosen = rollout.action_masks, rollout.states, rollout.chosen_prompts
    return Rollout(
        tokens=TokenBatch(*(grid[index] for grid in rollout.tokens)),
        rewards=rollout.rewards[index],
        sampled_log_probs=rollout.sampled_log_probs[index],
        terminated=rollout.terminated[index],
        truncated=rollout.truncated[index],
        scores=rollout.scores[index],
        prompts=[rollout.prompts[row] for row in rows],
        texts=[rollout.texts[row] for row in rows],
        finish_reasons=[rollout.finish_reasons[row] for row in rows],
        action_masks=masks and ActionMasks(masks.distinct, masks.number[index], masks.vocab_size),
        scored=None if rollout.scored is None else rollout.scored[index],
        states=None if states is None else torch.cat([states.split(rollout.lengths.tolist())[row] for row in rows]),
        chosen_prompts=None if chosen is None else [chosen[row] for row in rows],
        failed_episodes=rollout.failed_episodes,
        reward_parts={name: sums[index] for name, sums in rollout.reward_parts.items()},
        begun=None if rollout.begun is None else rollout.begun[index],
    )


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """The trajectories of several rollouts of one environment and policy, one behind the other.

    Raises:
        ValueError: there are none; or some have hidden states or chosen prompts, and others do not.
    """
    if not rollouts:
        raise ValueError("rollouts=[] has nothing to join")
    for name in ("states", "chosen_prompts"):
        if len({getattr(rollout, name) is None for rollout in rollouts}) > 1:
            raise ValueError(f"rollouts: some have {name} and others do not")
    width = max(rollout.input_ids.shape[1] for rollout in rollouts)
    names = dict.fromkeys(chain.from_iterable(rollout.reward_parts for rollout in rollouts))

    def columns(of: Callable[[Rollout], Tensor]) -> Tensor:
        return torch.cat([of(rollout) for rollout in rollouts])

    def lists(name: str) -> list[Any]:
        return list(chain.from_iterable(getattr(rollout, name) for rollout in rollouts))

    tokens = zip(*(rollout.tokens for rollout in rollouts), strict=True)
    return Rollout(
        tokens=TokenBatch(*(torch.cat([_wide(grid, width) for grid in grids]) for grids in tokens)),
        rewards=columns(lambda r: _wide(r.rewards, width)),
        sampled_log_probs=columns(lambda r: _wide(r.sampled_log_probs, width)),
        terminated=columns(lambda r: r.terminated),
        truncated=columns(lambda r: r.truncated),
        scores=columns(lambda r: r.scores),
        prompts=lists("prompts"),
        texts=lists("texts"),
        finish_reasons=lists("finish_reasons"),
        action_masks=_masks(rollouts, width),
        scored=columns(lambda r: ~r.truncated | r.terminated if r.scored is None else r.scored),
        states=None if rollouts[0].states is None else torch.cat([r.states for r in rollouts if r.states is not None]),
        chosen_prompts=None if rollouts[0].chosen_prompts is None else lists("chosen_prompts"),
        failed_episodes=sum(rollout.failed_episodes for rollout in rollouts),
        reward_parts={
            name: columns(lambda r, name=name: r.reward_parts.get(name, torch.zeros_like(r.scores)))  # type: ignore[misc]
            for name in names
        },
        begun=columns(begun_lengths),
    )


def begun_lengths(rollout: Rollout) -> Tensor:
    """(B,) tokens that each response was given to begin with."""
    return torch.zeros_like(rollout.lengths) if rollout.begun is None else rollout.begun


def whole_responses(rollout: Rollout) -> list[list[int]]:
    """The tokens of each response, what it was given to begin with included; no environment answered in between."""
    ends = rollout.tokens.lengths
    starts = ends - rollout.lengths - begun_lengths(rollout)
    return [ids[a:b].tolist() for ids, a, b in zip(rollout.input_ids, starts.tolist(), ends.tolist(), strict=True)]


def beginnings(rollout: Rollout) -> list[list[int]]:
    """The tokens that each response was given to begin with."""
    begun = begun_lengths(rollout).tolist()
    return [tokens[:count] for tokens, count in zip(whole_responses(rollout), begun, strict=True)]


def _wide(grid: Tensor, width: int) -> Tensor:
    """(B, t) → (B, width), filled with zeros."""
    return torch.nn.functional.pad(grid, (0, width - grid.shape[1]))


def _masks(rollouts: Sequence[Rollout], width: int) -> ActionMasks | None:
    """Their tables one behind the other; the first mask of each, and so of all, allows everything."""
    tables, numbers, rows = [], [], 0
    for rollout in rollouts:
        masks = rollout.action_masks
        numbers.append(_wide(torch.zeros_like(rollout.input_ids) if masks is None else masks.number + rows, width))
        if masks is not None:
            tables.append(masks)
            rows += len(masks.distinct)
    if not tables:
        return None
    return ActionMasks(torch.cat([masks.distinct for masks in tables]), torch.cat(numbers), tables[0].vocab_size)
