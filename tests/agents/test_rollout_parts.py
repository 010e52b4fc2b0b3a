"""Rollouts taken apart and put together: row by row they say what they said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from words import WORDS

from textgen_env.agents.rollout import Rollout, collect
from textgen_env.agents.rollout_parts import beginnings, join, select, whole_responses
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]


def play(venv: gym.vector.VectorEnv, source: Path, seed: int, **options: Any) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    return collect(venv, LanguageModel(source), 6, generator=generator, with_states=True, **options)


def told(rollout: Rollout, row: int) -> dict[str, Any]:
    """All that a rollout says of one trajectory, without its padding."""
    columns = rollout.response_mask[row].bool()
    starts = rollout.lengths.cumsum(0) - rollout.lengths
    assert rollout.states is not None
    masks = rollout.masks(torch.tensor([row]))
    return {
        "ids": rollout.input_ids[row, rollout.attention_mask[row].bool()].tolist(),
        "rewards": rollout.rewards[row, columns].tolist(),
        "log_probs": rollout.sampled_log_probs[row, columns].tolist(),
        "states": rollout.states[starts[row] : starts[row] + rollout.lengths[row]].tolist(),
        "masks": None if masks is None else masks.tolist(),
        "ends": (bool(rollout.terminated[row]), bool(rollout.truncated[row]), rollout.finish_reasons[row]),
        "text": (rollout.prompts[row], rollout.texts[row], float(rollout.scores[row])),
        "parts": {name: float(values[row]) for name, values in rollout.reward_parts.items()},
        "whole": whole_responses(rollout)[row],
        "begun": beginnings(rollout)[row],
        "prompt": rollout.chosen_prompts and rollout.chosen_prompts[row],
    }


def test_what_is_joined_and_selected_says_what_it_said(make_venv: MakeVenv, word_model: Path):
    """Of different widths, with other masks, one of them begun."""
    numbers, begun = [0, 1, 2, 0, 1, 2], [[3], [], [4, 5], [], [6], [7]]
    free = play(make_venv(max_new_tokens=3), word_model, 1, prompts=numbers)
    bound = play(make_venv(forbidden_tokens=[WORDS[9]]), word_model, 2, prompts=numbers, responses=begun)
    other = play(make_venv(min_new_tokens=2, max_new_tokens=4), word_model, 3, prompts=numbers)
    parts = [free, bound, other]
    assert [rollout.action_masks is None for rollout in parts] == [True, False, False]
    assert free.input_ids.shape != bound.input_ids.shape
    rows = [(rollout, row) for rollout in parts for row in range(6)]
    joined = join(parts)
    everything = [True] * len(WORDS)
    for at, (rollout, row) in enumerate(rows):
        expected = told(rollout, row)
        if expected["masks"] is None:  # nothing was forbidden
            expected["masks"] = [everything] * len(expected["rewards"])
        assert told(joined, at) == expected
    chosen = select(joined, [17, 2, 8])
    assert [told(chosen, at) for at in range(3)] == [told(joined, row) for row in (17, 2, 8)]
    assert bound.masks(torch.tensor([0])) is not None
    assert not told(bound, 0)["masks"][0][9]


def test_what_cannot_be_joined_is_refused(make_venv: MakeVenv, word_model: Path):
    given, drawn = (play(make_venv(), word_model, 1, prompts=prompts) for prompts in ([0] * 6, None))
    with pytest.raises(ValueError, match="some have chosen_prompts and others do not"):
        join([given, drawn])
    with pytest.raises(ValueError, match=r"rollouts=\[\] has nothing"):
        join([])
