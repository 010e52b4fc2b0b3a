"""Scorers of a user's own, by a registered name or by module and attribute."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import mine
import pytest

import textgen_env  # noqa: F401
from textgen_env.scorers import call_scorer, get_scorer, register_scorer, registry, scorer_names
from textgen_env.scorers.combine import Sum


@pytest.fixture(autouse=True)
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})


@pytest.mark.parametrize(
    ("spec", "scores"),
    [
        ("mine:size", [2.0, 4.0]),
        ({"name": "mine:size", "factor": 0.5}, [1.0, 2.0]),
        ("mine:Longer", [0.0, 1.0]),
        ({"name": "mine:Longer", "than": 1}, [1.0, 1.0]),
        ("mine:longer_than_two", [0.0, 1.0]),
        ("mine:Longer.than_ten", [0.0, 0.0]),
        ("mine:trl_form", [-2.0, -4.0]),
        ({"name": "mine:trl_form", "target": 3}, [-1.0, -1.0]),
        ("mine:any_name", [2.0, 4.0]),
        ("mine:judged", [0.5, 0.5]),
        ("mine:make_longer", [0.0, 1.0]),
        ({"name": "mine:make_longer", "than": 4}, [0.0, 0.0]),
        ({"name": "mine:make_soft_limit", "limit": 2, "margin": 1}, [1.0, 0.0]),
        ({"sum": {"a": "mine:size", "b": [2.0, {"name": "mine:Longer", "than": 3}]}}, [2.0, 6.0]),
        ({"name": "clip", "scorer": "mine:size", "high": 3.0}, [2.0, 3.0]),
    ],
)
def test_places_of_ones_own(spec: Any, scores: list[float]) -> None:
    scorer = get_scorer(json.loads(json.dumps(spec)))
    assert call_scorer(scorer, ["ab", "abcd"], prompts=["", ""]) == scores
    assert call_scorer(pickle.loads(pickle.dumps(scorer)), ["ab", "abcd"], prompts=["", ""]) == scores


def test_functions_with_arguments_keep_their_name() -> None:
    assert Sum([{"name": "mine:size", "factor": 2.0}, "mine:any_name"]).part_names == ("size", "any_name")


def test_registered_names() -> None:
    register_scorer("long", "mine:Longer")
    register_scorer("long", "mine:Longer")  # a cell that runs twice
    assert "long" in scorer_names()
    assert get_scorer({"name": "long", "than": 1}).than == 1
    with pytest.raises(ValueError, match="unknown name 'lng'.*did you mean 'long'"):
        get_scorer("lng")
    env = gym.make("textgen/TextGen-v0", model="tiny", prompts=["a"], scorer={"sum": {"l": "long"}}, max_new_tokens=1)
    env.reset(seed=0)
    assert "l" in env.step(100)[-1]["reward_parts"]


def test_registering_imports_nothing() -> None:
    register_scorer("later", "no_such_module:thing")
    with pytest.raises(ImportError, match="scorer 'later': cannot import no_such_module: ModuleNotFoundError"):
        get_scorer("later")


@pytest.mark.parametrize(
    ("name", "location", "message"),
    [
        ("bleu", "mine:size", "'bleu' is the name of sacrebleu_metrics:BLEU already"),
        ("taken", "mine:size", "'taken' is the name of mine:Longer already"),
        ("", "mine:size", "name must be a text"),
        (3, "mine:size", "name must be a text"),
        ("a:b", "mine:size", "without a colon"),
        ("a", "mine", "\"module:attribute\", got 'mine'"),
        ("a", "mine.size", '"module:attribute"'),
        ("a", ":size", '"module:attribute"'),
        ("a", "../mine:size", '"module:attribute"'),
        ("a", mine.size, "can be handed over as it is"),
    ],
)
def test_names_that_cannot_be_registered(name: Any, location: Any, message: str) -> None:
    register_scorer("taken", "mine:Longer")
    with pytest.raises(ValueError, match=message):
        register_scorer(name, location)


def test_a_module_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_scorers.py").write_text("raise RuntimeError('not today')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="cannot import failing_scorers: RuntimeError: not today"):
        get_scorer("failing_scorers:f")


def test_in_a_fresh_process() -> None:
    code = "import textgen_env.scorers as s; print(s.get_scorer('mine:size')(['abc']), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(Path(__file__).parent)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[3.0] False\n"
