"""`BoundScorer`: whatever a scorer lacks is filled in, whatever it has is used, and nobody else asks what it has."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from typing import Any

import pytest

import textgen_env
from textgen_env.scorers import BoundScorer, ScorerError, as_scorer
from textgen_env.scorers.combine import Clip, Normalize, Sum

OPTIONAL = {"parts", "part_names", "dense", "info", "load_models", "fit_references", "state_dict", "load_state_dict"}
OPTIONAL |= {"needs_policy"}
COLUMNS = {"prompts": ["p", "q"], "references": [[], []]}


def length(completions: list[str], **columns: Any) -> list[int]:
    return [len(text) for text in completions]


class Everything:
    """A scorer with all that scorers may have; it notes what it is told."""

    name, part_names, dense, needs_policy = "all", ("a", "b"), True, False

    def __init__(self) -> None:
        self.told: list[Any] = []

    def parts(self, completions: list[str], **columns: Any) -> dict[str, list[float]]:
        return {"a": [1.0] * len(completions), "b": [float(len(text)) for text in completions]}

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        raise AssertionError("the parts are what counts")

    def info(self) -> dict[str, Any]:
        return {"calls": 3}

    def load_models(self) -> None:
        self.told.append("load_models")

    def fit_references(self, references: Any) -> None:
        self.told.append(references)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": len(self.told)}

    def load_state_dict(self, state: Any) -> None:
        self.told.append(state)


def test_a_function_lacks_nothing() -> None:
    scorer = as_scorer(length)
    assert (scorer.name, scorer.part_names, scorer.dense) == ("length", ("length",), False)
    assert scorer.parts(["abc", ""], **COLUMNS) == {"length": [3.0, 0.0]}
    assert scorer(["abc", ""], **COLUMNS) == [3.0, 0.0]
    assert (scorer.info(), scorer.state_dict()) == ({}, {})
    scorer.load_models()
    scorer.fit_references([["r"]])
    scorer.load_state_dict({})


def test_a_function_has_the_part_name_that_it_is_given() -> None:
    scorer = as_scorer(length, part_name="score")
    assert scorer.part_names == ("score",)
    assert scorer.parts(["abc", ""], **COLUMNS) == {"score": [3.0, 0.0]}


def test_what_a_scorer_has_is_used() -> None:
    inner = Everything()
    scorer = as_scorer(inner)
    assert (scorer.name, scorer.part_names, scorer.dense) == ("all", ("a", "b"), True)
    assert scorer.parts(["abc", ""], **COLUMNS) == {"a": [1.0, 1.0], "b": [3.0, 0.0]}
    assert scorer(["abc", ""], **COLUMNS) == [4.0, 1.0]
    scorer.load_models()
    scorer.fit_references([["r"]])
    assert scorer.info() == {"calls": 3.0}
    assert scorer.state_dict() == {"seen": 2}
    scorer.load_state_dict({"seen": 5})
    assert inner.told == ["load_models", [["r"]], {"seen": 5}]


def test_scorers_around_others_are_bound_already() -> None:
    clip = Clip(Everything(), 0, 2)
    assert as_scorer(clip) is clip
    assert as_scorer(as_scorer(length)).scorer is length
    assert clip.dense
    assert clip.info() == {"calls": 3.0}
    assert clip.parts(["abc", ""], **COLUMNS) == {"a": [1.0, 1.0], "b": [3.0, 0.0], "clip": [-2.0, 0.0]}


def test_counters_that_are_no_numbers_are_refused() -> None:
    class Bad(Everything):
        def info(self) -> Any:
            return {"calls": "many"}

    with pytest.raises(ScorerError, match=r"'all': info\(\) must map names to numbers, got .*many"):
        as_scorer(Bad()).info()


def test_bound_scorers_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(as_scorer(length, part_name="score"))).part_names == ("score",)


def test_a_sum_keeps_the_state_of_its_members() -> None:
    def made() -> Sum:
        return Sum({"plain": length, "scaled": Normalize(length)})

    learned = made()
    learned.parts(["a", "abc"], **COLUMNS, finish_reasons=["eos", "eos"])
    state = learned.state_dict()
    assert state["plain"] == {}
    assert state["scaled"]["count"] == 2
    earlier = {"scaled": state["scaled"]}  # earlier releases wrote the members that learn alone
    for saved in (state, earlier):
        again = made()
        again.load_state_dict(saved)
        assert again.state_dict() == state
    with pytest.raises(ValueError, match="normalize: a state must be a mapping with count"):
        made().load_state_dict({"plain": {}})


def test_nobody_else_asks_what_a_scorer_has() -> None:
    """`hasattr` and `getattr` of the optional attributes stand in `BoundScorer` alone."""
    root = Path(textgen_env.__file__).parent
    sources = [*(root / "scorers").glob("*.py"), root / "reward.py", root / "saved_state.py", root / "engine.py"]
    asked = [
        f"{path.name}:{node.lineno}"
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("hasattr", "getattr")
        and isinstance(name := node.args[1], ast.Constant)
        and name.value in OPTIONAL
    ]
    assert asked
    assert {place.partition(":")[0] for place in asked} == {"base.py"}


def test_the_class_is_public() -> None:
    assert isinstance(as_scorer("bleu"), BoundScorer)
