"""Columns of prompts: every name either reaches the scorer or is refused before the first episode."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import textgen_env.scorers
from textgen_env import TextGenEnv
from textgen_env.prompts import RESERVED_COLUMNS, as_prompt
from textgen_env.scorers import get_scorer
from textgen_env.vector_env import TextGenVectorEnv


def zeros(completions: Any, **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def words(texts: Any, **columns: Any) -> list[float]:
    return [float(len(text.split())) for text in texts]


class Parts:
    """A scorer of a user, with parts and a name of its own for the completions."""

    part_names = ("one", "two")

    def parts(self, answers: Any, **columns: Any) -> dict[str, list[float]]:
        return {name: [1.0] * len(answers) for name in self.part_names}

    def __call__(self, answers: Any, **columns: Any) -> list[float]:
        return [2.0] * len(answers)


SCORERS: dict[str, Any] = {
    "function": zeros,
    "parts": Parts(),
    "wrapped": {"name": "clip", "scorer": {"name": "affine", "scorer": words, "gain": 2.0, "bias": 1.0}, "low": 0},
    "sum": {"name": "sum", "scorers": {"a": zeros, "b": [0.5, {"name": "eos_penalty", "scorer": words}]}},
    "dense": {"name": "dense", "scorer": {"name": "normalize", "scorer": words}},
    "cached": {"name": "cached", "scorer": {"name": "patient", "scorer": zeros}},
    "length": {"name": "length", "target": 3},
    "keywords": {"name": "keywords", "keywords": ["a"]},
    "distinct": "distinct",
}


def parameter_names() -> list[str]:
    """Every name that a function of the scorers has for a parameter or a variable of its own."""
    names = {"completions", "prompts", "references", "completion_ids", "finish_reasons", "messages", "prompt", "extra"}
    names |= {"self", "cls", "args", "kwargs", "text", "texts", "answers", "scorer", "default_name", "columns", "_"}
    for path in Path(textgen_env.scorers.__file__).parent.glob("*.py"):
        names |= {node.arg for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.arg)}
    return sorted(names)


def refusal(kind: str, name: str) -> str:
    """What is said of a column with this name at construction; "" where an episode with it runs to its end."""
    prompt = {"prompt": "a", "references": ["b"], name: "a"}
    try:
        env = TextGenEnv(scorer=get_scorer(SCORERS[kind]), prompts=[prompt], max_new_tokens=2)
    except ValueError as error:
        return str(error)
    env.reset()
    env.step(20)
    assert env.step(21)[2]
    return ""


@pytest.mark.parametrize("kind", SCORERS)
def test_every_name_works_or_is_refused_at_construction(kind: str) -> None:
    no_columns = ("prompt", "references", "role")  # a mapping with a role is a message
    names = [name for name in parameter_names() if name not in no_columns]
    refused = {name: said for name in names if (said := refusal(kind, name))}
    for name, said in refused.items():
        assert said.startswith(f"prompts[0] has a column {name!r}")
        assert f"rename it, for instance to 'prompt_{name}'" in said
    own = {"wrapped": {"texts"}, "sum": {"texts"}, "dense": {"texts"}, "parts": {"answers"}}
    assert set(refused) == RESERVED_COLUMNS | own.get(kind, set())


@pytest.mark.parametrize("name", ["text", "texts", "extra", "score", "messages", "name", "reward"])
def test_other_names_reach_the_scorer(name: str) -> None:
    seen: dict[str, Any] = {}

    def scorer(completions: Any, **columns: Any) -> list[float]:
        seen.update(columns)
        return [0.0] * len(completions)

    env = TextGenEnv(prompts=[{"prompt": "a", name: "value"}], scorer=scorer, max_new_tokens=1)
    env.reset()
    env.step(20)
    assert seen[name] == ["value"]


def test_prompts_of_reset_are_checked_too() -> None:
    envs = TextGenVectorEnv(2, prompts=["a"], scorer=words)
    envs.reset()
    for name in ("texts", "finish_reasons"):
        with pytest.raises(ValueError, match=f"has a column '{name}'"):
            envs.reset(options={"prompt": {"prompt": "b", name: "c"}})


def test_a_parameter_that_cannot_be_named_takes_no_name() -> None:
    def scorer(texts: Any, /, **columns: Any) -> list[float]:
        return [float(columns["texts"][0] == "c")]

    env = TextGenEnv(prompts=[{"prompt": "b", "texts": "c"}], scorer=scorer, max_new_tokens=1)
    env.reset()
    assert env.step(20)[1] == 1.0


def test_names_are_texts() -> None:
    with pytest.raises(TypeError, match="prompt has the column 3"):
        as_prompt({"prompt": "a", 3: "b"})
