"""Pairs that part where an ensemble disagrees: the place against a search by hand, and what the two have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from textgen_env.agents.preferences.branches import find_branches, sample_branches
from textgen_env.agents.preferences.pairs import Pair
from textgen_env.agents.rollout import collect
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]
WORTH = {"a": 0.5, "b": 3.0, "c": 2.0, "k": 2.5}


def reward(text: str) -> list[float]:
    """What two members say of a response: the first likes some words, the second does not, and both like length."""
    likes = sum(WORTH.get(word, 0.0) for word in text.split())
    return [likes + len(text), len(text) - likes]


def differences(pairs: Sequence[Pair]) -> Tensor:
    """(members, N)."""
    return torch.tensor([[a - b for a, b in zip(reward(p.a), reward(p.b), strict=True)] for p in pairs]).T


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_the_place_is_in_front_of_the_most_disputed_word(make_venv: MakeVenv):
    venv = make_venv()
    venv.reset(seed=0)
    model = LanguageModel(venv.unwrapped.language_model.source)
    drawn = [0, 1, 2, 0, 1, 2, 0, 1]
    played = collect(venv, model, 8, generator=generator(), prompts=drawn)
    found = find_branches(venv, model, drawn, differences, generator=generator())
    assert len(found) == sum(bool(text) for text in played.texts)
    for branch, (prompt, text) in zip(
        found, [(p, t) for p, t in zip(drawn, played.texts, strict=True) if t], strict=True
    ):
        worth = [WORTH.get(word, 0.0) for word in text.split()]
        place = worth.index(max(worth))
        assert branch.prompt == prompt
        assert branch.shared.split() == text.split()[:place]
        assert len(branch.beginning) >= place  # a word is a token here; an unknown one has no text
        assert branch.disagreement == pytest.approx(max(worth))  # of +w and −w, the deviation is w
    assert len({len(branch.beginning) for branch in found}) > 1


def test_both_responses_begin_alike_and_the_most_disputed_are_taken(make_venv: MakeVenv):
    venv = make_venv()
    venv.reset(seed=0)
    model = LanguageModel(venv.unwrapped.language_model.source)
    sampled = sample_branches(venv, model, 6, differences, candidates=3, generator=generator())
    assert sampled == sample_branches(venv, model, 6, differences, candidates=3, generator=generator())
    assert len(sampled.pairs) + sampled.dropped == 6
    assert len(sampled.pairs) >= 3
    shared = [pair.columns["shared"].split() for pair in sampled.pairs]
    assert any(shared)
    for pair, begun in zip(sampled.pairs, shared, strict=True):
        for text, score in zip((pair.a, pair.b), pair.columns["scores"], strict=True):
            assert text.split()[: len(begun)] == begun
            assert score == pytest.approx(text.split().count("a") / max(1, len(text.split())))
        assert pair.a != pair.b
    drawn = [int(i) for _ in range(6) for i in torch.randperm(3, generator=torch.Generator().manual_seed(5))][:18]
    assert {pair.prompt for pair in sampled.pairs} <= {["a b", "c d e", "f"][i] for i in drawn}


def test_what_cannot_part_is_counted(make_venv: MakeVenv):
    """Always the same word, or nothing at all."""
    venv = make_venv(forbidden_tokens=[i for i in range(16) if i != 3], max_new_tokens=3)
    venv.reset(seed=0)
    model = LanguageModel(venv.unwrapped.language_model.source)
    sampled = sample_branches(venv, model, 2, differences, candidates=2, generator=generator(), attempts=2)
    assert (sampled.pairs, sampled.dropped) == ([], 2)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"candidates": 0}, {"attempts": 0}])
def test_wrong_numbers_are_refused(make_venv: MakeVenv, wrong: dict[str, Any]):
    venv = make_venv()
    venv.reset(seed=0)
    given = {"count": 2, "candidates": 2, "attempts": 2, **wrong}
    count = given.pop("count")
    with pytest.raises(ValueError, match="must be at least 1"):
        sample_branches(
            venv,
            LanguageModel(venv.unwrapped.language_model.source),
            count,
            differences,
            generator=generator(),
            **given,
        )
