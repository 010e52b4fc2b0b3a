"""Monte-Carlo values and advantages of tokens against enumeration, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from two_tokens import EOS, LEFT_OUT, PROMPT, A, B

from textgen_env.agents.branching import Branching
from textgen_env.agents.credit import credit
from textgen_env.lm.language_model import LanguageModel
from textgen_env.render import render_ansi, render_html

LENGTH = 3
MakeVenv = Callable[..., gym.vector.VectorEnv]


def worth(text: str) -> float:
    return sum(x == y for x, y in zip(text.split(), ["b", "a", "b"], strict=False)) / 3


def scorer(completions: list[str], **_: Any) -> list[float]:
    return [worth(text) for text in completions]


def branching(make_venv: MakeVenv, source: Path, scorer: Any = scorer) -> Branching:
    task = {"prompts": ["d e"], "scorer": scorer, "max_new_tokens": LENGTH, "forbidden_tokens": LEFT_OUT}
    return Branching(make_venv(num_envs=8, **task), LanguageModel(source))


@torch.no_grad()
def value(model: Any, response: tuple[int, ...]) -> float:
    """The expected score by a recursion over all that may follow, with the library's own forward."""
    if EOS in response or len(response) == LENGTH:
        return worth(" ".join({A: "a", B: "b"}[token] for token in response if token != EOS))
    logits = model(torch.tensor([PROMPT + list(response)])).logits[0, -1][[EOS, A, B]]
    return sum(p * value(model, (*response, t)) for p, t in zip(logits.softmax(-1).tolist(), (EOS, A, B), strict=True))


def test_values_are_those_of_enumeration(make_venv: MakeVenv, word_model: Path):
    """Within four standard errors, which are small; and the advantages with them."""
    response, model = (B, B, EOS), LanguageModel(word_model).model
    found = credit(branching(make_venv, word_model), "d e", response, continuations=1000)
    exact = torch.tensor([value(model, response[:t]) for t in range(3)] + [0.0], dtype=torch.float64)
    assert found.value_errors[:3].max() < 0.02
    assert ((found.values - exact).abs() <= 4 * found.value_errors + 1e-9).all()
    paid = torch.tensor([0.0, 0.0, worth("b b")], dtype=torch.float64)
    assert found.rewards.tolist() == pytest.approx(paid.tolist())
    errors = found.advantages - (paid + exact.diff())
    assert (errors.abs() <= 4 * found.advantage_errors + 1e-9).all()
    assert float(found.values[0] + found.advantages.sum()) == pytest.approx(worth("b b"))


def test_behind_the_end_nothing_is_to_come(make_venv: MakeVenv, word_model: Path):
    found = credit(branching(make_venv, word_model), "d e", [A, B, B], continuations=2)  # ended by its length
    assert (float(found.values[-1]), float(found.value_errors[-1])) == (0.0, 0.0)


def test_errors_are_those_of_a_mean(make_venv: MakeVenv, word_model: Path):
    """Rewards of 0 and 1: s²/k = p(1 − p)/(k − 1)."""

    def first(completions: list[str], **_: Any) -> list[float]:
        return [float(text.split()[:1] == ["b"]) for text in completions]

    found = credit(branching(make_venv, word_model, first), "d e", [B], continuations=50)
    p = float(found.values[0])
    assert 0 < p < 1
    assert float(found.value_errors[0]) == pytest.approx(math.sqrt(p * (1 - p) / 49))
    assert (float(found.values[1]), float(found.value_errors[1])) == (1.0, 0.0)
    assert float(found.advantages[0]) == pytest.approx(1 - p)


def test_drawings_show_values_and_advantages(make_venv: MakeVenv, word_model: Path):
    found = credit(branching(make_venv, word_model), "d e", [B, A], continuations=8)
    assert found.frame.values == found.values[:-1].tolist()
    assert list(found.frame.series()) == ["reward", "value", "advantage"]
    page = render_html([found.frame])
    assert 'id="by-advantage"' in page
    assert f"{'advantage':<10}{float(found.advantages[0]): .4g}" in page
    assert "48;2;" not in render_ansi(found.frame)  # nothing was paid yet
    assert "48;2;" in render_ansi(found.frame, by="advantage")
    with pytest.raises(ValueError, match="by='KL' must be one of reward, value, advantage"):
        render_ansi(found.frame, by="KL")


@pytest.mark.parametrize(
    ("response", "continuations", "message"),
    [
        ([], 4, "response=.. must have at least one token"),
        ([EOS, A], 4, "response has 2 tokens, and its episode ended with 1 of them"),
        ([-1], 4, "response.0.=-1 is no token that may be written there"),
        ([A, 999], 4, "response.1.=999 is no token that may be written there"),
        ([A], 1, "continuations=1 must be an integer of at least 2"),
    ],
)
def test_mistakes_are_named(
    response: list[int], continuations: int, message: str, make_venv: MakeVenv, word_model: Path
):
    with pytest.raises(ValueError, match=message):
        credit(branching(make_venv, word_model), "d e", response, continuations)
