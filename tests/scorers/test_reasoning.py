"""Tasks of reasoning-gym as prompts and scorer, against the library itself. Needs reasoning-gym."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from textgen_env import TextGenEnv
from textgen_env.prompts import load_prompts, prompt_as_dict
from textgen_env.scorers import get_scorer


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"pip install 'textgen_env\[reasoning\]'"):
        load_prompts("reasoning-gym:basic_arithmetic?size=3&seed=77")


def test_prompts_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="no column 'reasoning_gym' that says which question it is"):
        get_scorer("reasoning-gym")(["3"])
    for tag in ("", "a b", 3):
        with pytest.raises((TypeError, ValueError), match="tag"):
            get_scorer({"name": "reasoning-gym", "tag": tag})


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("reasoning_gym")


SETTINGS = [
    ("basic_arithmetic", {"size": 5, "seed": 1}),
    ("leg_counting", {"size": 5, "seed": 0}),
    ("word_sorting", {"size": 4, "seed": 3, "min_words": 2, "max_words": 3}),
    ("rubiks_cube", {"size": 2, "seed": 0}),  # has no one right answer
]


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=[name for name, _ in SETTINGS])
def test_questions_and_scores_are_those_of_the_library(library: Any, name: str, settings: dict[str, Any]) -> None:
    query = "&".join(f"{key}={value}" for key, value in settings.items())
    prompts = load_prompts(f"reasoning-gym:{name}?{query}")
    assert load_prompts({"dataset": f"reasoning-gym:{name}", **settings}) == prompts
    peer = library.create_dataset(name, **settings)
    assert [prompt.text for prompt in prompts] == [entry["question"] for entry in peer]
    assert [list(prompt.references) for prompt in prompts] == [[e["answer"]] if e["answer"] else [] for e in peer]
    assert json.loads(json.dumps([prompt_as_dict(prompt) for prompt in prompts])) == list(map(prompt_as_dict, prompts))
    columns = {"reasoning_gym": [prompt.extra["reasoning_gym"] for prompt in prompts]}
    answers = [entry["answer"] or "nothing" for entry in peer]
    for said in (answers, answers[::-1], [f" {answer}\n" for answer in answers], [""] * len(answers)):
        expected = [peer.score_answer(text.strip(), entry) for text, entry in zip(said, peer, strict=True)]
        assert get_scorer("reasoning-gym")(said, **columns) == expected
    tagged = [f"so <answer>wrong</answer> or <answer> {answer} </answer>." for answer in answers]
    right = [peer.score_answer(answer, entry) for answer, entry in zip(answers, peer, strict=True)]
    assert get_scorer({"name": "reasoning-gym", "tag": "answer"})(tagged, **columns) == right
    nothing = [peer.score_answer(None, entry) for entry in peer]
    assert get_scorer({"name": "reasoning-gym", "tag": "answer"})(answers, **columns) == nothing


def test_defaults_are_the_same_every_time(library: Any) -> None:
    prompts = load_prompts("reasoning-gym:basic_arithmetic")
    assert len(prompts) == 500
    assert prompts[7].text == library.create_dataset("basic_arithmetic", size=500, seed=0)[7]["question"]
    template = load_prompts({"dataset": "reasoning-gym:basic_arithmetic", "size": 1, "prompt": "Q: {question}\nA:"})
    assert template[0].text == f"Q: {prompts[0].text}\nA:"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("reasoning-gym:basic_aritmetic", "is unknown; .* did you mean 'basic_arithmetic'"),
        ("reasoning-gym:basic_arithmetic?colour=red", r"settings .*'colour'.* are refused"),
        ("reasoning-gym:basic_arithmetic?min_terms=9&max_terms=2", "are refused"),
        ({"dataset": "reasoning-gym:basic_arithmetic", "prompt": "Q"}, "must be a text with '{question}' in it"),
        ("reasoning-gym:basic_arithmetic?seed", "seed"),
    ],
)
def test_what_is_no_data_set(library: Any, source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_prompts(source)


def test_an_environment_made_of_names(library: Any, byte_model: str) -> None:
    env = TextGenEnv(
        model=byte_model,
        prompts="reasoning-gym:basic_arithmetic?size=8&seed=1",
        scorer="reasoning-gym",
        max_new_tokens=8,
    )
    env.reset(options={"prompt": 2})
    answer = library.create_dataset("basic_arithmetic", size=8, seed=1)[2]["answer"]
    state = json.loads(json.dumps(env.state_dict()))
    env.load_state_dict(state)
    *_, info = env.step_tokens([*env.language_model.encode_plain(answer), 2])
    assert (info["score"], info["finish_reason"]) == (1.0, "eos")
