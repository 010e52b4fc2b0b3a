"""Several tokens as one step: what an action above the token (a text, a phrase) is played with.

How one token is played is the engine's business, how texts become tokens that of the wrappers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgen_env.config import check_number
from textgen_env.engine import Engine
from textgen_env.episode import StepResult


def step_sequences(engine: Engine, sequences: Mapping[int, Sequence[int]], discount: float = 1.0) -> StepResult:
    """Append several tokens to each of some slots, or to none if anything raises.

    A sequence ends where its episode or its turn ends; what is behind that is not written. All slots write their last
    tokens together, so that scorer and environment are asked once, after everything else has succeeded.

    Args:
        engine: of the slots.
        sequences: tokens by slot, at least one each; the slots play.
        discount: γ of one token, from 0 to 1.

    Returns:
        What the k tokens of each slot brought together: the reward (and each of its parts) is Σ γ^i·r_i, i from 0,
        `ref_log_prob` Σ log π_ref. `added` has `steps` (k), with a bound policy `kl` (Σ KL, nats), and `unwritten`: how
        many tokens were not written, if any.

    Raises:
        Whatever `Engine.step` raises; TypeError, ValueError: a discount that is none.
    """
    discount = check_number("discount", discount, "a number from 0 to 1", lambda gamma: 0 <= gamma <= 1)
    episodes = engine.episodes
    chosen = np.zeros(len(episodes), dtype=np.bool_)
    chosen[list(sequences)] = True
    slots = engine.playing(chosen)
    steps = np.zeros(len(episodes), dtype=np.int64)
    for slot in slots.tolist():
        steps[slot] = writable(engine, slot, sequences[slot])
    before, results = episodes.snapshot(slots), []
    try:
        for left in range(steps.max(initial=1), 0, -1):  # so many to go, in the slots with the longest sequences
            actions = np.zeros(len(episodes), dtype=np.int64)
            for slot in np.flatnonzero(steps >= left).tolist():
                actions[slot] = sequences[slot][steps[slot] - left]
            results.append(engine.step(actions, steps >= left))
        joined = _joined(engine, results, steps, discount)
    except BaseException:
        episodes.restore(slots, before)
        raise
    added: dict[int, Mapping[str, Any]] = {
        slot: {**joined.added.get(slot, {}), **_told(engine, slot, start, int(steps[slot]), len(sequences[slot]))}
        for slot, start in zip(slots.tolist(), before.lengths.tolist(), strict=True)
    }
    return replace(joined, added=added)


def writable(engine: Engine, slot: int, token_ids: Sequence[int]) -> int:
    """How many of these tokens the agent can write before its turn or its episode ends; at least one."""
    if engine.turns is not None and engine.turns.failed_to_begin(slot):
        return 1
    before, turn = engine.episodes.present_turn(slot)
    room = engine.config.max_new_tokens - int(engine.episodes.response_lengths[slot])
    for count, token in enumerate(token_ids[:room], start=1):
        turn.append(int(token))
        if engine.ends_turn(before, turn):
            return count
    return min(room, len(token_ids))


def _joined(engine: Engine, results: Sequence[StepResult], steps: NDArray[np.int64], discount: float) -> StepResult:
    """The results of steps, of which each slot took the last few, as those of one step."""
    weights = [discount ** np.maximum(steps - left, 0).astype(float) for left in range(len(results), 0, -1)]
    parts = {
        name: np.sum([w * result.reward_parts[name] for w, result in zip(weights, results, strict=True)], axis=0)
        for name in results[-1].reward_parts
    }
    ref_log_probs = [result.ref_log_prob for result in results if result.ref_log_prob is not None]
    return replace(
        results[-1],
        rewards=engine.reward.total(parts),
        reward_parts=parts,
        ref_log_prob=np.sum(ref_log_probs, axis=0) if ref_log_probs else None,
    )


def _told(engine: Engine, slot: int, start: int, steps: int, wanted: int) -> dict[str, Any]:
    """What `info` has of a slot's sequence, whose tokens were written from a column on."""
    told: dict[str, Any] = {"steps": steps}
    kls = engine.episodes.token_kls[slot, start : start + steps]
    if not np.isnan(kls).any():
        told["kl"] = float(kls.sum())
    return told | ({"unwritten": wanted - steps} if wanted > steps else {})
